"""What probing found, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.plan.cost_table import CostTable
    from lowbit.runtime.machine import Machine
    from lowbit.targets import Target

__all__ = ["OperatorCost", "ProbeResult"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One usual operator, in nanoseconds; `None` where the target has no such kernel."""

    label: str
    float_ns: float | None
    static_ns: float | None
    dynamic_ns: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What `lowbit probe` found.

    Attributes:
        source: The model as the user named it, or an empty string.
        target: The target that was measured.
        machine: The machine.
        processors: How many processors this process may use.
        saturates: Whether 8-bit products saturate here, found by running one.
        operators: Costs by operator: a model's own by path, or the usual ones.
        table: Costs of exactly this model, to be saved and shared.
        cache: The file that remembers them, `None` where it cannot be written.
        measured: How many operators were measured now; the others were known.
        seconds: How long it took.
        warnings: What the user should know.
    """

    source: str
    target: Target
    machine: Machine
    processors: int
    saturates: bool
    operators: tuple[OperatorCost, ...]
    table: CostTable
    cache: Path | None
    measured: int
    seconds: float
    warnings: tuple[str, ...] = ()
