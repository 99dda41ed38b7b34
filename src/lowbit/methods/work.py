"""What stays the same while plans for one model are tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.runtime.engines import SIMULATION

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from lowbit.data import Dataset
    from lowbit.methods.costs import LoadedCosts
    from lowbit.methods.stages import Stages
    from lowbit.methods.verify import Metric
    from lowbit.plan.plan import AbsorptionPlan, MigrationPlan, RotationPlan
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["Work"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What stays the same while plans are tried."""

    model: ir.Model
    migrations: tuple[MigrationPlan, ...]
    rotations: tuple[RotationPlan, ...]
    absorptions: tuple[AbsorptionPlan, ...]
    sites: tuple[Site, ...]
    recipe: Recipe
    target: Target
    shapes: dict[str, tuple[int, ...]]
    float_path: Path
    folder: Path
    calibration_data: Dataset | None
    test_data: Dataset
    metric: Metric | None
    metric_name: str
    checkpoint: Path | None
    threads: int
    timing_feed: Feed
    batch: int
    seconds: float
    costs: LoadedCosts | None
    probing: bool
    here: bool
    stages: Stages

    @property
    def engine(self) -> str:
        """The engine that verifies: the target's own, or the simulation where this machine is not the target."""
        return self.target.engine if self.here else SIMULATION
