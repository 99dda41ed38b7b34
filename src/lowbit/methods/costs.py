"""Where a plan's costs come from: this machine, its cache of measurements, or a file from another one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.exceptions import OutputError, TargetError
from lowbit.graph import digest
from lowbit.plan.cache import cache_folder
from lowbit.plan.cost_table import CostTable, merge, read_table, write_table
from lowbit.plan.plan import EXECUTIONS
from lowbit.plan.text_files import write_text
from lowbit.runtime.machine import Machine, this_machine
from lowbit.targets import host_target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.cost import Shapes
    from lowbit.plan.plan import Execution
    from lowbit.plan.recipe import Recipe
    from lowbit.targets import Target

__all__ = [
    "LoadedCosts",
    "TunedPlan",
    "cached_table",
    "forget_plans",
    "load_costs",
    "measurable",
    "plan_identity",
    "recall_plan",
    "remember",
    "remember_plan",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedCosts:
    """Costs from a file.

    Attributes:
        table: The costs.
        source: The file's name, for the report.
        warnings: What makes them less than exact.
    """

    table: CostTable
    source: str
    warnings: tuple[str, ...] = ()


def measurable(target: Target) -> bool:
    """Whether this machine is what `target` describes, so that costs measured here hold there."""
    try:
        host = host_target()
    except TargetError:
        return False
    if target.name == host.name:
        return True
    # Another engine on the same instruction set, e.g. `openvino-x86-avx2` where the host is `onnxruntime-x86-avx2`.
    return target.engine != host.engine and target.name.removeprefix(target.engine) == host.name.removeprefix(
        host.engine
    )


def load_costs(path: str | Path, target: Target, *, threads: int, force: bool = False) -> LoadedCosts:
    """Read a file of costs and check that it fits the target.

    A file for this machine has to be from this engine version and processor. A file from another device is taken for a
    target that is not this machine, if it is from that target's engine.

    Args:
        path: The file, written by `lowbit probe --save`.
        target: Where the model will run.
        threads: Threads of the engine.
        force: Whether a file that does not fit is used all the same, with a warning.

    Raises:
        TargetError: The file is no table of costs, or does not fit and `force` is off.
    """
    table = read_table(path)
    name = Path(path).name
    if measurable(target):
        problems = table.machine.differences(this_machine(threads=threads, engine=target.engine))
        remedy = "measure here with `lowbit probe`, name the device's target with --target, or insist with --force"
    else:
        problems = _foreign_problems(table.machine, target, threads)
        remedy = f"measure on the device with `lowbit probe --target {target.name}`, or insist with --force"
    if problems and not force:
        raise TargetError(f"the costs '{path}' are not for {target.name}", cause="; ".join(problems), remedy=remedy)
    warnings = tuple(f"the costs of {name} were forced upon {target.name}: {problem}" for problem in problems)
    return LoadedCosts(table=table, source=name, warnings=warnings)


def _foreign_problems(machine: Machine, target: Target, threads: int) -> tuple[str, ...]:
    problems = []
    engine = machine.engine.split(" ")[0]
    if engine != target.engine:
        problems.append(f"they were measured with {engine}, the target runs {target.engine}")
    if machine.threads != threads:
        problems.append(f"threads: {machine.threads} there, {threads} asked for")
    arm = bool({"asimd", "asimddp", "i8mm"} & set(machine.instruction_sets))
    if ("arm64" in target.name and not arm) or ("x86" in target.name and arm):
        problems.append(f"they were measured on {machine.processor}")
    return tuple(problems)


def cached_table(machine: Machine) -> CostTable:
    """Return what is known of a machine; an empty table if nothing is, or if the cache cannot be read."""
    empty = CostTable(machine=machine)
    path = _cache_path(machine)
    if not path.exists():
        return empty
    try:
        table = read_table(path)
    except TargetError:
        return empty  # a cache of another version of lowbit, or a damaged one: measured again and replaced
    return table if table.machine == machine else empty


def remember(table: CostTable) -> Path | None:
    """Add costs to the cache.

    Returns:
        The file, or `None` where the cache cannot be written; measuring again is then the only harm.
    """
    path = _cache_path(table.machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(dataclasses.replace(merge(cached_table(table.machine), table), spread=table.spread), path)
    except (OSError, OutputError):
        return None
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedPlan:
    """What tuning found for one model on one machine, kept so that the same command gives the same artifact.

    Attributes:
        executions: Execution by path.
        reasons: Reason in words, by path.
        times: Predicted times of every operator in float and as planned, in nanoseconds, by path; `None` if unknown.
        predicted_ns: Predicted latency before the plan was measured, in nanoseconds.
        predicted_float_ns: Predicted latency of the float model.
        corrected_ns: Predicted latency from the corrected costs.
        spread: Distance between the quartiles of the measurements over their median.
    """

    executions: Mapping[str, Execution]
    reasons: Mapping[str, str]
    times: Mapping[str, Sequence[float | None]]
    predicted_ns: float
    predicted_float_ns: float
    corrected_ns: float
    spread: float


def plan_identity(model: ir.Model, recipe: Recipe, target: Target, machine: Machine, shapes: Shapes) -> str:
    """Return what a tuned plan belongs to: model, shapes, machine and what was asked for, as a digest."""
    options = {key: value for key, value in recipe.to_dict().items() if key not in _NO_MATTER}
    parts = (digest(model), target.name, repr(options), repr(machine.to_dict()), repr(sorted(shapes.items())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def recall_plan(identity: str) -> TunedPlan | None:
    """Return the plan that was found before, `None` if there is none or it cannot be read."""
    path = cache_folder() / "plans" / f"{identity}.json"
    try:
        plan = TunedPlan(**json.loads(path.read_text(encoding="utf-8")))
        times: tuple[float, ...] = (plan.predicted_ns, plan.predicted_float_ns, plan.corrected_ns, plan.spread)
        for pair in plan.times.values():
            own, chosen = pair
            times += tuple(time for time in (own, chosen) if time is not None)
        sound = all(isinstance(time, float | int) and math.isfinite(time) for time in times)
        sound = sound and all(isinstance(reason, str) for reason in plan.reasons.values())
        return plan if sound and set(plan.executions.values()) <= set(EXECUTIONS) else None
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


def remember_plan(identity: str, plan: TunedPlan) -> None:
    """Keep a tuned plan in the cache; where that cannot be written, the next run tunes again."""
    path = cache_folder() / "plans" / f"{identity}.json"
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(plan), indent=1))


def forget_plans() -> None:
    """Remove all tuned plans from the cache, because the costs behind them were measured again."""
    for path in (cache_folder() / "plans").glob("*.json"):
        with contextlib.suppress(OSError):
            path.unlink()


# Options that change scales and weights but neither which kernels run nor how long.
_NO_MATTER = frozenset(
    {"calibration", "percentile", "weight_range", "bias_correction", "rounding", "seed", "samples", "io"}
)


def _cache_path(machine: Machine) -> Path:
    identity = hashlib.sha256(repr(machine.to_dict()).encode()).hexdigest()[:12]
    return cache_folder() / "costs" / f"{machine.engine.replace(' ', '-')}-{machine.threads}-{identity}.json"
