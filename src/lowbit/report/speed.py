"""The speed sections: where the milliseconds go, what was predicted, and which kernels keep the contract."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.report.markup import Markup, element, join, section
from lowbit.report.units import NOTHING, count_text, microseconds_text, milliseconds_text, percent_text, ratio_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.verification import Prediction, SiteKernel, SiteTime, Verification

__all__ = ["by_operator", "contract_section", "hazards_section", "slowest", "timeline_section"]

# Bars that the page shows at once; all others are in the table below them.
_BARS = 40
# From here on an operator counts as slower than in float: a tenth, and more than a launch.
_SLOWER = 1.1
_LAUNCH_US = 3.0


def slowest(timeline: Sequence[SiteTime], count: int) -> list[SiteTime]:
    """Return the operators that take longest in either model, in execution order."""
    ranked = sorted(range(len(timeline)), key=lambda index: -max(timeline[index].float_us, timeline[index].artifact_us))
    return [timeline[index] for index in sorted(ranked[:count])]


def by_operator(timeline: Sequence[SiteTime]) -> list[tuple[str, float, float]]:
    """Return the time of all operators of a type in float and in the artifact, in microseconds, the slowest first."""
    totals: dict[str, tuple[float, float]] = {}
    for row in timeline:
        before, after = totals.get(row.op_type, (0.0, 0.0))
        totals[row.op_type] = (before + row.float_us, after + row.artifact_us)
    return sorted(
        ((name, before, after) for name, (before, after) in totals.items()), key=lambda item: (-max(item[1:]), item[0])
    )


def timeline_section(verification: Verification) -> Markup:
    """Return where the time of one inference goes, operator by operator, float beside the artifact."""
    timeline = verification.timeline
    if not timeline:
        return Markup()
    before, after = sum(row.float_us for row in timeline), sum(row.artifact_us for row in timeline)
    lead = (
        f"One inference, kernel by kernel, read inside the running models: {microseconds_text(before)} in float, "
        f"{microseconds_text(after)} in the artifact. A kernel that does the work of several operators counts for one."
    )
    shown = slowest(timeline, _BARS)
    longest = max(max(row.float_us, row.artifact_us) for row in timeline) or 1.0
    parts = [
        element(
            "p",
            element("span", "float", class_="key key-float"),
            element("span", "artifact", class_="key key-artifact"),
            element("span", "slower than float", class_="key key-slower"),
            class_="keys",
        ),
        element("div", *(_bars(row, longest) for row in shown), class_="timeline"),
    ]
    if len(shown) < len(timeline):
        rest = count_text(len(timeline) - len(shown), "faster row")
        parts.append(element("p", f"In the order of execution; {rest} only in the table.", class_="quiet"))
    head = _head(
        ("node", None), ("op", None), ("runs", None), ("float", "num"), ("artifact", "num"), ("planned", "num")
    )
    table = element("table", element("thead", head), element("tbody", *(_row(row) for row in timeline)))
    parts.append(element("details", element("summary", "All of it as a table"), element("div", table, class_="scroll")))
    return section("Where the milliseconds go", lead, *parts, _operators(timeline), _prediction(verification))


def hazards_section(verification: Verification) -> Markup:
    """Return which layers could have saturated, and what was done about it."""
    hazards = verification.hazards
    if not hazards:
        return Markup()
    pairs = sum(row.hazards for row in hazards)
    repaired = sum(row.rescaled + row.recoded for row in hazards)
    lead = (
        "On this processor 8-bit kernels add two neighbouring products in 16 bits, where large ones overflow without a "
        f"word. {count_text(pairs, 'pair')} of weights in {count_text(len(hazards), 'layer')} could do that; "
        f"{count_text(repaired, 'channel')} were changed until none can, whatever the inputs are."
    )
    head = _head(
        ("node", None),
        ("pairs", "num"),
        ("could overflow", "num"),
        ("channels", "num"),
        ("larger scale", "num"),
        ("moved codes", "num"),
    )
    rows = (
        element(
            "tr",
            element("th", element("span", row.node, class_="name"), scope="row"),
            *(
                element("td", f"{value:,}", class_="num")
                for value in (row.pairs, row.hazards, row.channels, row.rescaled, row.recoded)
            ),
        )
        for row in hazards
    )
    table = element("table", element("thead", head), element("tbody", *rows))
    summary = element("summary", f"The {count_text(len(hazards), 'layer')}")
    return section("Saturation", lead, element("details", summary, element("div", table, class_="scroll")))


def contract_section(verification: Verification) -> Markup:
    """Return the kernel of every operator that was planned in integers, failures first."""
    rows = verification.contract
    if not rows and not verification.unasked:
        return Markup()
    broken = [row for row in rows if not row.integer]
    kept = len(rows) - len(broken)
    lead = f"{kept} of {count_text(len(rows), 'operator')} planned in integers run in integer kernels."
    parts = []
    if broken:
        items = (
            element("li", element("span", row.node, class_="name"), f": {row.cause}", class_="poor") for row in broken
        )
        parts.append(element("ul", *items, class_="broken"))
    if verification.unasked:
        items = (element("li", element("span", node, class_="name"), class_="poor") for node in verification.unasked)
        parts.append(join(element("h3", "Left in float, quantized by the engine"), element("ul", *items)))
    if rows:
        summary = element("summary", "The kernel of each")
        parts.append(element("details", summary, element("div", _kernels(rows), class_="scroll")))
    return section("Planned and run", lead, *parts)


def _kernels(rows: Sequence[SiteKernel]) -> Markup:
    head = _head(("node", None), ("op", None), ("planned", None), ("kernel", None))
    body = (
        element(
            "tr",
            element("th", element("span", row.node, class_="name"), scope="row"),
            element("td", row.op_type),
            element("td", element("span", row.execution, class_=f"run run-{row.execution}")),
            element("td", row.kernel or NOTHING, class_="" if row.integer else "poor"),
        )
        for row in rows
    )
    return element("table", element("thead", head), element("tbody", *body))


def _bars(row: SiteTime, longest: float) -> Markup:
    slower = row.artifact_us > row.float_us * _SLOWER and row.artifact_us - row.float_us > _LAUNCH_US
    times = f"{microseconds_text(row.float_us)} → {microseconds_text(row.artifact_us)}"
    return element(
        "div",
        element("span", row.node, element("small", f"{row.op_type}, {row.execution}"), class_="name"),
        element(
            "span",
            element("span", "", class_="bar bar-float", style=f"width:{100 * row.float_us / longest:.2f}%"),
            element(
                "span",
                "",
                class_=f"bar {'bar-slower' if slower else 'bar-artifact'}",
                style=f"width:{100 * row.artifact_us / longest:.2f}%",
            ),
            class_="bars",
        ),
        element("span", times, class_="num poor" if slower else "num"),
        title=f"{row.node}: {times}",
    )


def _row(row: SiteTime) -> Markup:
    return element(
        "tr",
        element("th", element("span", row.node, class_="name"), scope="row"),
        element("td", row.op_type),
        element("td", element("span", row.execution, class_=f"run run-{row.execution}")),
        element("td", microseconds_text(row.float_us), class_="num"),
        element("td", microseconds_text(row.artifact_us), class_="num"),
        element("td", NOTHING if row.predicted_us is None else microseconds_text(row.predicted_us), class_="num"),
    )


def _operators(timeline: Sequence[SiteTime]) -> Markup:
    rows = (
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", microseconds_text(before), class_="num"),
            element("td", microseconds_text(after), class_="num"),
            element("td", ratio_text(before / after) if before and after else NOTHING, class_="num"),
        )
        for name, before, after in by_operator(timeline)
    )
    head = _head(("operator", None), ("float", "num"), ("artifact", "num"), ("speed-up", "num"))
    return element("details", element("summary", "By operator"), element("table", element("thead", head), *rows))


def _prediction(verification: Verification) -> Markup:
    prediction, latency = verification.prediction, verification.latency
    if prediction is None or latency is None:
        return Markup()
    head = _head(("", None), ("float", "num"), ("artifact", "num"), ("speed-up", "num"))
    rows = [
        _latencies(f"predicted ({prediction.source})", prediction.float_ms, prediction.artifact_ms),
        _latencies("measured", latency.float_ms, latency.artifact_ms),
    ]
    if prediction.corrected_ms is not None:
        rows.insert(1, _latencies("predicted again, after the costs were corrected", None, prediction.corrected_ms))
    return join(
        element("h3", "Predicted and measured"),
        element("table", element("thead", head), element("tbody", *rows), class_="predicted"),
        element("p", _error(prediction, latency.artifact_ms), class_="quiet"),
    )


def _latencies(label: str, before: float | None, after: float) -> Markup:
    return element(
        "tr",
        element("th", label, scope="row"),
        element("td", NOTHING if before is None else milliseconds_text(before), class_="num"),
        element("td", milliseconds_text(after), class_="num"),
        element("td", NOTHING if before is None or not after else ratio_text(before / after), class_="num"),
    )


def _error(prediction: Prediction, measured_ms: float) -> str:
    error = abs(prediction.artifact_ms / measured_ms - 1) if measured_ms else 0.0
    text = f"The prediction of the artifact is {percent_text(error)} off."
    if prediction.machine_spread:
        text += f" While costs were measured, repeated times varied by {percent_text(prediction.machine_spread)}."
    return text


def _head(*columns: tuple[str, str | None]) -> Markup:
    return element("tr", *(element("th", name, scope="col", class_=kind) for name, kind in columns))
