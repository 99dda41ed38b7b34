"""Structured pruning: residual branches and channels that are really gone, and what that is worth in ONNX Runtime.

    python -m benchmarks.structured resnet20 --out results/structured

leaves `float.onnx`, `pruned.onnx`, `int8.onnx` and `results.json` in the folder. Test pictures are looked at once,
after everything is decided. Latencies are medians of interleaved rounds on one thread, as ratios to float's.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.latency import interleaved
from benchmarks.training.augmented import AugmentedLoader
from benchmarks.training.datasets import load_pictures
from benchmarks.training.float_training import PACES, accuracy, float_network
from benchmarks.zoo import DEFAULT_CACHE

if TYPE_CHECKING:
    from benchmarks.training.datasets import Pictures

__all__ = ["CUTS", "Cut"]

_PICTURES = 256  # that pruning and calibration look at


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is taken away.

    Attributes:
        branches: Residual branches that are left out.
        macs: Fraction of the remaining multiplications that is left after channels are removed; 1 removes none.
        round_to: Channels left are a multiple of this.
        epochs: Of learning from the float network and the labels afterwards.
        rate: Learning rate, in units of every tensor's own size.
        labels: Weight of the labels beside the teacher in the loss.
    """

    branches: int
    macs: float
    round_to: int
    epochs: int
    rate: float = 2e-2
    labels: float = 0.3


CUTS: dict[str, Cut] = {
    "resnet20": Cut(branches=4, macs=0.9, round_to=16, epochs=30),
    "xray": Cut(branches=1, macs=0.6, round_to=8, epochs=10),
}


def run(name: str, cut: Cut, out: Path, *, seed: int, cache: Path, seconds: float) -> dict[str, Any]:
    """Prune, train, quantize and measure; files are left in `out`."""
    import lowbit
    from lowbit.methods.qat import Distillation

    pace = PACES[name]
    pictures = load_pictures(pace.dataset, cache=cache)
    out.mkdir(parents=True, exist_ok=True)
    source = out / "float.onnx"
    shutil.copyfile(float_network(name, seed=seed, cache=cache), source)
    samples = _samples(pictures)
    fewer = lowbit.prune_branches(source, samples, count=cut.branches, samples=_PICTURES, compensate=False)
    fewer.save(out / "cut.onnx")
    macs = list(fewer.macs)
    if cut.macs < 1.0:
        narrow = lowbit.prune_channels(
            out / "cut.onnx",
            data=samples,
            criterion="taylor",
            target_macs=cut.macs,
            round_to=cut.round_to,
            samples=_PICTURES,
            seed=seed,
        )
        narrow.save(out / "cut.onnx")
        macs[1] = narrow.macs[1]
    trained = lowbit.qat(
        out / "cut.onnx",
        AugmentedLoader(pictures.normalized(pictures.train), pictures.train_labels, pace),
        quantized=False,
        bfloat16=True,
        epochs=cut.epochs,
        lr=cut.rate,
        distillation=Distillation(teacher=source, weight=1.0 - cut.labels, temperature=4.0),
        seed=seed,
        measure_seconds=0.0,
    )
    assert trained.result is not None
    trained.result.save(out / "pruned.onnx")
    lowbit.quantize(out / "pruned.onnx", samples).save(out / "int8.onnx")
    lowbit.quantize(source, samples).save(out / "float-int8.onnx")
    files = [out / f"{kind}.onnx" for kind in ("float", "pruned", "int8", "float-int8")]
    picture = pictures.normalized(pictures.train[:1])
    timings = interleaved(name, {path.stem: path for path in files}, {"x": picture}, threads=1, seconds=seconds)
    found = {
        "network": name,
        "seed": seed,
        "cut": asdict(cut),
        "macs": macs,
        "accuracy": {path.stem: accuracy(path, pace.dataset, cache=cache) for path in files},
        "speed_up": {timing.peer: timing.speedup for timing in timings},
        "milliseconds": {timing.peer: timing.ms for timing in timings},
        "bytes": {path.stem: path.stat().st_size for path in files},
    }
    (out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def _samples(pictures: Pictures) -> list[dict[str, np.ndarray]]:
    chosen = np.random.default_rng(0).choice(len(pictures.train), _PICTURES, replace=False)
    return [{"x": picture[None]} for picture in pictures.normalized(pictures.train[np.sort(chosen)])]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=sorted(CUTS))
    parser.add_argument("--out", type=Path, required=True, help="folder; one below it for every seed but the first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="that latencies are measured for")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of data and float networks")
    arguments = parser.parse_args()
    for index, seed in enumerate(arguments.seeds):
        out = arguments.out if index == 0 else arguments.out / f"seed-{seed}"
        cut = CUTS[arguments.network]
        row = run(arguments.network, cut, out, seed=seed, cache=arguments.cache, seconds=arguments.seconds)
        for kind in row["accuracy"]:
            print(
                f"{row['network']} seed {seed}, {kind}: accuracy {row['accuracy'][kind]:.4f}, "
                f"{row['speed_up'][kind]:.2f} times as fast, {row['bytes'][kind]:,} bytes",
                flush=True,
            )


if __name__ == "__main__":
    main()
