"""The verb `probe`: measure this machine, or what a model costs on it, and remember it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.data import Preprocessing, batched, input_specs, open_data
from lowbit.exceptions import TargetError
from lowbit.graph import clean, load_model
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.costs import cached_table, forget_plans, measurable, remember
from lowbit.methods.probe import UNSTEADY, missing_costs, probe_model
from lowbit.methods.probe_machine import probe_machine, products_saturate
from lowbit.methods.stages import Stages, silent
from lowbit.plan.cost_keys import site_key
from lowbit.plan.cost_table import CostTable
from lowbit.plan.probed import OperatorCost, ProbeResult
from lowbit.plan.sites import find_sites
from lowbit.runtime.machine import this_machine
from lowbit.runtime.session import available_threads
from lowbit.targets import Target, find_target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["probe"]


def probe(
    model: str | Path | onnx.ModelProto | ir.Model | None = None,
    *,
    target: str | Target = "host",
    data: Any = None,
    preprocessing: Preprocessing | None = None,
    threads: int = 1,
    batch: int = 1,
    seconds: float = 3.0,
    fresh: bool = False,
    stages: Stages = silent,
) -> ProbeResult:
    """Measure this machine, or what the operators of a model cost on it.

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; without one usual operators are measured.
        target: A target that this machine is.
        data: A sample, where the model leaves its shapes open; random by default.
        preprocessing: What to do to images.
        threads: Threads of the engine.
        batch: Number of samples at once.
        seconds: How long to measure; more on a loaded machine.
        fresh: Whether to measure again what is in the cache; plans that were tuned before are then tuned again.
        stages: Shows progress.

    Raises:
        TargetError: The target is unknown or not what this machine is.
        ModelError: The model cannot be read.
        DataError: The data do not fit the model.
        EngineError: The engine is not installed, or refuses the model.
    """
    started = time.perf_counter()
    chosen = find_target(target)
    if not measurable(chosen):
        raise TargetError(
            f"{chosen.name} cannot be measured here",
            cause="this machine is another one",
            remedy="run `lowbit probe` on the device, and bring its file here with --save and --costs",
        )
    machine = this_machine(threads=threads, engine=chosen.engine)
    if model is None:
        with stages("Measure usual operators", None):
            usual = probe_machine(chosen, threads=threads, seconds=seconds)
        return ProbeResult(
            source="",
            target=chosen,
            machine=machine,
            processors=available_threads(),
            saturates=usual.saturates,
            operators=usual.operators,
            table=usual.table,
            cache=remember(usual.table),
            measured=len(usual.operators),
            seconds=time.perf_counter() - started,
            warnings=_warnings(usual.table, usual.saturates, chosen),
        )
    with stages("Load and clean the model", None):
        cleaned = clean(load_model(model)).model
        sites = find_sites(cleaned, chosen)
        specs = input_specs(cleaned)
        with open_data(
            "random" if data is None else data, specs, preprocessing=preprocessing, limit=1, seed=0
        ) as opened:
            feed = batched(next(iter(opened)), specs, batch)
        shapes = observed_shapes(cleaned, feed)
    known = CostTable(machine=machine) if fresh else cached_table(machine)
    missing = missing_costs(known, sites, shapes)
    with stages("Time the operators" if missing else "Read the cache", None):
        found = probe_model(cleaned, sites, chosen, shapes, feed, known=known, threads=threads, seconds=seconds)
    cache = remember(found.table) if missing else None
    if fresh:
        forget_plans()
    rows = []
    keys = set()
    for site in sites:
        key = site_key(site, shapes)
        entry = found.table.operators.get(key or "", {})
        if key is not None and entry:
            keys.add(key)
            rows.append(
                OperatorCost(
                    label=f"{site.path}\n{key}",
                    float_ns=entry.get("float"),
                    static_ns=entry.get("static"),
                    dynamic_ns=entry.get("dynamic"),
                )
            )
    own = dataclasses.replace(
        found.table, operators={key: entry for key, entry in found.table.operators.items() if key in keys}
    )
    saturates = products_saturate()
    return ProbeResult(
        source=Path(model).name if isinstance(model, (str, Path)) else "model",
        target=chosen,
        machine=machine,
        processors=available_threads(),
        saturates=saturates,
        operators=tuple(rows),
        table=own,
        cache=cache,
        measured=found.measured,
        seconds=time.perf_counter() - started,
        warnings=_warnings(own, saturates, chosen),
    )


def _warnings(table: CostTable, saturates: bool, target: Target) -> tuple[str, ...]:
    found = []
    if table.spread > UNSTEADY:
        found.append(
            f"other work disturbed the measurements: their quartiles lie {table.spread:.0%} of the median apart, after "
            "several tries; probe again on an idle machine with --fresh"
        )
    if saturates and not target.saturates:
        found.append(
            f"8-bit products saturate on this machine, which {target.name} does not expect: name another target"
        )
    return tuple(found)
