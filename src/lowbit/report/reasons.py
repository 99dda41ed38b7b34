"""Reasons, grouped: what was decided for many sites at once, on one line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.plan.plan import EXECUTIONS, Execution, Plan, SitePlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["ReasonGroup", "formats_text", "group_reasons"]

# A number of its own, not the digit of a name such as int8 or conv1.
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonGroup:
    """Sites that share operator, execution, formats and reason.

    Attributes:
        op_type: ONNX operator.
        execution: How they run.
        formats: Their formats as text, empty for float.
        reason: The reason; where only its numbers differ from site to site, their range stands in their place.
        nodes: Names of the nodes, in topological order.
    """

    op_type: str
    execution: Execution
    formats: str
    reason: str
    nodes: tuple[str, ...]


def group_reasons(plan: Plan, executions: Iterable[Execution] = EXECUTIONS) -> tuple[ReasonGroup, ...]:
    """Group the sites of a plan by what was decided and why.

    Args:
        plan: The plan.
        executions: Only sites that run in one of these ways.

    Returns:
        Groups in the order of `EXECUTIONS`, the largest first.
    """
    wanted = set(executions)
    groups: dict[tuple[str, ...], list[SitePlan]] = {}
    for site in plan.sites:
        if site.execution in wanted:
            key = (site.execution, site.op_type, formats_text(site), _NUMBER.sub("#", site.reason))
            groups.setdefault(key, []).append(site)
    found = [
        ReasonGroup(
            op_type=sites[0].op_type,
            execution=sites[0].execution,
            formats=formats_text(sites[0]),
            reason=_merge([site.reason for site in sites]),
            nodes=tuple(site.node for site in sites),
        )
        for sites in groups.values()
    ]
    return tuple(sorted(found, key=lambda group: (EXECUTIONS.index(group.execution), -len(group.nodes))))


def formats_text(site: SitePlan) -> str:
    """Return the formats of a site on one line, e.g. `W int8:per-channel, A uint8`; empty for float."""
    parts = (("W", site.weights), ("A", site.activations))
    return ", ".join(f"{letter} {form}" for letter, form in parts if form is not None)


def _merge(reasons: Sequence[str]) -> str:
    """Merge reasons that differ in their numbers only: `0.71× as fast`, `0.78× as fast` give `0.71–0.78× as fast`."""
    columns = iter(list(zip(*(_NUMBER.findall(reason) for reason in reasons), strict=True)))

    def span(_match: re.Match[str]) -> str:
        texts = sorted(set(next(columns)), key=float)
        return texts[0] if len(texts) == 1 else f"{texts[0]}–{texts[-1]}"

    return _NUMBER.sub(span, reasons[0])
