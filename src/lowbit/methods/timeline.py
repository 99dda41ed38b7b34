"""Where the milliseconds go: every operator of an artifact beside the same operator in float."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.methods.site_times import time_sites
from lowbit.plan.verification import SiteTime

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from lowbit.methods.apply import Applied
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed

__all__ = ["time_beside_float"]


def time_beside_float(
    model: ir.Model,
    applied: Applied,
    sites: Sequence[Site],
    feed: Feed,
    *,
    threads: int = 1,
    seconds: float = 1.0,
    engine: str = "onnxruntime",
) -> tuple[SiteTime, ...]:
    """Time every operator and conversion in an artifact and in the float model, running in turn.

    Args:
        model: The cleaned float model.
        applied: The artifact and its plan.
        sites: The model's sites.
        feed: One set of inputs for both.
        threads: Threads of the engine.
        seconds: How long to measure.
        engine: The engine to measure.

    Returns:
        One entry for every operator in topological order, and one for each tensor with conversions behind the operator
        that writes it. What neither model spends time on is left out.

    Raises:
        EngineError: The engine refuses one of them.
    """
    plain, coded = time_sites(
        [(model, feed), (applied.model, feed)], sites, threads=threads, seconds=seconds, engine=engine
    )
    planned = {entry.node: entry for entry in applied.plan.sites}
    conversions: dict[str, float] = {}
    for owner, nanoseconds in coded.times.items():
        if owner.kind != "site":
            conversions[owner.name] = conversions.get(owner.name, 0.0) + nanoseconds
    rows: list[SiteTime] = []

    def convert(name: str | None) -> None:
        if name is not None and name in conversions:
            rows.append(
                SiteTime(
                    node=name,
                    op_type="conversion",
                    execution="conversion",
                    float_us=0.0,
                    artifact_us=conversions.pop(name) / 1e3,
                )
            )

    for site in sites:
        for value in site.node.inputs:
            if value is not None and value.is_graph_input():
                convert(value.name)
        entry = planned.get(site.path)
        before, after = plain.site(site.path), coded.site(site.path)
        if before or after:
            rows.append(
                SiteTime(
                    node=site.path,
                    op_type=site.op_type,
                    execution=entry.execution if entry is not None else "float",
                    float_us=before / 1e3,
                    artifact_us=after / 1e3,
                    predicted_us=entry.predicted_us if entry is not None else None,
                )
            )
        for value in site.last.outputs:
            convert(value.name)
    for name in list(conversions):
        convert(name)
    return tuple(rows)
