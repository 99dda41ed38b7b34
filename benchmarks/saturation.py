"""What exact products cost on a processor whose 8-bit instruction saturates: decibels and milliseconds.

The same plan (everything that is legal in integers, per-channel int8 weights) is built three times: `plain`, with the
full range, rounded to nearest; `repaired`, with weights changed until no pair of products can saturate; and `safe`, the
same rounded so that errors cancel, which is what lowbit writes. `plain`, simulated, is what an exact processor would
compute; in the engine it saturates. `safe` has to be as good as the first and as fast as the second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.latency import interleaved
from benchmarks.zoo import DEFAULT_CACHE, ZooError, load_case
from lowbit.data import input_specs, open_data
from lowbit.graph import clean, load_model, save_model
from lowbit.methods.apply import Applied, apply_plan
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import decide, make_plan, watch_list
from lowbit.methods.rerounding import roundings
from lowbit.methods.weights import channel_axis
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.rounding import conv_to_kn, hazards
from lowbit.runtime.session import Session, open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.zoo import Case
    from lowbit.plan.sites import Site

_CASES = (
    "efficientnet_lite0",
    "keyword_spotting",
    "keyword_spotting_float",
    "resnet8_cifar10",
    "fastestdet",
    "ppocr_det",
    "ppocr_rec",
    "ppocr_cls",
    "crepe_tiny",
)
_SAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        case: Name of the case.
        plain_simulated_db: SQNR of plain codes with exact products.
        repaired_real_db: SQNR of repaired codes in the engine.
        safe_real_db: SQNR of repaired codes whose errors cancel in the engine.
        plain_real_db: SQNR of plain codes in the engine, where they saturate.
        speed: Median latency of plain over that of safe; 1 is equal, below 1 slower than plain.
        low: 25th percentile of that ratio.
        high: 75th percentile.
        pairs: Pairs of products in the model.
        hazards: How many of them could saturate with plain codes.
        channels: In how many channels.
        layers: Number of layers with integer weights.
        left: How many pairs can still saturate after the repair.
    """

    case: str
    plain_simulated_db: float
    repaired_real_db: float
    safe_real_db: float
    plain_real_db: float
    speed: float
    low: float
    high: float
    pairs: int
    hazards: int
    channels: int
    layers: int
    left: int

    @property
    def loss_db(self) -> float:
        """What the repair and the engine together cost, in decibel."""
        return self.plain_simulated_db - self.safe_real_db


def measure(case: Case, *, calibration: str, seconds: float) -> Row:
    """Build both artifacts of one model, compare and time them."""
    target = find_target("onnxruntime-x86-avx2")
    plain_target = dataclasses.replace(target, saturates=False)
    model = clean(load_model(case.model)).model
    sites = find_sites(model, target)
    recipe = Recipe.from_dict({"target": target.name, "calibration": calibration})
    with open_data(case.calibration, input_specs(model)) as data:
        shapes = observed_shapes(model, next(iter(data)))
        decision = decide(sites, recipe, target, shapes, everything=True)
        found = calibrate(model, data, watch_list(sites, decision, recipe))
        plan = make_plan(model, sites, recipe, target, decision, found, shapes)
        rounded = roundings(model, sites, plan, target, data)
    better = make_plan(model, sites, recipe, target, decision, dataclasses.replace(found, roundings=rounded), shapes)
    repaired, plain = apply_plan(model, plan, target=target), apply_plan(model, plan, target=plain_target)
    safe = apply_plan(model, better, target=target)
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("safe", "repaired", "plain")}
        save_model(safe.model, paths["safe"])
        save_model(repaired.model, paths["repaired"])
        save_model(plain.model, paths["plain"])
        reference = open_session(case.model)
        feeds = list(islice(case.test, _SAMPLES))

        def decibel(name: str, *, optimized: bool) -> float:
            return _sqnr(reference, open_session(paths[name], optimized=optimized), feeds)

        timings = interleaved(
            case.name, {"float": paths["plain"], "safe": paths["safe"]}, case.latency_feed, threads=1, seconds=seconds
        )
        timed = next(timing for timing in timings if timing.peer == "safe")
        reports = [report for weight in safe.weights.values() if (report := weight.encoded.saturation) is not None]
        return Row(
            case=case.name,
            plain_simulated_db=decibel("plain", optimized=False),
            repaired_real_db=decibel("repaired", optimized=True),
            safe_real_db=decibel("safe", optimized=True),
            plain_real_db=decibel("plain", optimized=True),
            speed=timed.speedup,
            low=timed.low,
            high=timed.high,
            pairs=sum(report.pairs for report in reports),
            hazards=sum(report.hazards for report in reports),
            channels=sum(report.repaired for report in reports),
            layers=len(reports),
            left=_left(safe, sites),
        )


def _left(applied: Applied, sites: Sequence[Site]) -> int:
    """Count the pairs of the artifact's own codes that can still saturate, in the kernels' order."""
    count = 0
    for site in sites:
        weight = applied.weights.get(site.path)
        if weight is None or weight.encoded.saturation is None:
            continue
        codes = weight.encoded.codes
        if site.op_type == "Conv":
            codes = conv_to_kn(codes)
        elif channel_axis(site) == 0:
            codes = np.ascontiguousarray(codes.T)
        count += int(hazards(codes).sum())
    return count


def _sqnr(reference: Session, session: Session, feeds: Sequence[dict[str, np.ndarray]]) -> float:
    signal = noise = 0.0
    for feed in feeds:
        exact = reference.run(feed)[0].astype(np.float64)
        actual = session.run(feed)[0].astype(np.float64)
        signal += float((exact**2).sum())
        noise += float(((actual - exact) ** 2).sum())
    return 10 * math.log10(signal / noise) if noise else math.inf


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=list(_CASES), help="cases of the zoo")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of models that are built once")
    parser.add_argument("--calibration", default="auto", help="how activation ranges are chosen")
    parser.add_argument("--seconds", type=float, default=5.0, help="least time of timing one model")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    console = Console()
    rows: list[Row] = []
    table = Table("model", "exact", "saturating", "repaired", "safe", "loss dB", "speed", "hazards", "left")
    for name in arguments.cases:
        try:
            row = measure(
                load_case(name, cache=arguments.cache), calibration=arguments.calibration, seconds=arguments.seconds
            )
        except ZooError as error:
            console.print(f"{name}: {error}")
            continue
        rows.append(row)
        console.print(row)
        table.add_row(
            row.case,
            f"{row.plain_simulated_db:.2f}",
            f"{row.plain_real_db:.2f}",
            f"{row.repaired_real_db:.2f}",
            f"{row.safe_real_db:.2f}",
            f"{row.loss_db:+.2f}",
            f"{row.speed:.3f} ({row.low:.3f}-{row.high:.3f})",
            f"{row.hazards:,} of {row.pairs:,}, {row.channels} channels",
            str(row.left),
        )
        if arguments.out:
            arguments.out.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")
    console.print(table)


if __name__ == "__main__":
    main()
