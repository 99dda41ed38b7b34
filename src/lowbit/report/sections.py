"""The sections of the HTML report, each from plain values to markup."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowbit.plan.plan import EXECUTIONS, Plan, SitePlan
from lowbit.report.charts import clipped
from lowbit.report.comparison import compare, predicted_ms, warnings_of
from lowbit.report.markup import Markup, element, join
from lowbit.report.reasons import ReasonGroup, group_reasons
from lowbit.report.units import (
    NOTHING,
    count_text,
    decibel_text,
    microseconds_text,
    milliseconds_text,
    percent_text,
    ratio_text,
)
from lowbit.report.verdict import ENGINE_GAP_DB, engine_gap, grade_sqnr, layer_db, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lowbit.plan.verification import LayerQuality, TensorHistogram, Verification

__all__ = [
    "comparison_section",
    "headline_section",
    "histograms_section",
    "kernels_section",
    "layers_section",
    "provenance_section",
    "reasons_section",
    "sites_section",
    "warnings_section",
]


def headline_section(title: str, plan: Plan, verification: Verification) -> Markup:
    """Return the verdict in plain words, and the three findings that it rests on."""
    judged = verdict(verification)
    findings = (("Size", judged.size), ("Speed", judged.speed), ("Quality", judged.quality))
    measured = f"{plan.method} for {plan.target}, measured in {verification.engine}"
    return element(
        "header",
        element("h1", title),
        element("p", measured, class_="quiet"),
        element("p", *(element("span", clause) for clause in judged.clauses()), class_="verdict"),
        element(
            "dl",
            *(
                element(
                    "div",
                    element("dt", name),
                    element("dd", finding.headline),
                    element("dd", finding.detail),
                    class_=finding.grade,
                )
                for name, finding in findings
            ),
            class_="findings",
        ),
    )


def warnings_section(plan: Plan, verification: Verification) -> Markup:
    """Return what the reader must know, or nothing if there is nothing to know."""
    warnings = warnings_of(plan, verification)
    if not warnings:
        return Markup()
    items = (element("li", warning) for warning in warnings)
    return element("section", element("h2", "Before you trust it"), element("ul", *items), class_="warnings")


def comparison_section(plan: Plan, verification: Verification) -> Markup:
    """Return every measured quantity of both models in a table."""
    rows = (
        element(
            "tr",
            element("th", row.label, element("small", row.condition), scope="row"),
            element("td", row.float_text, class_="num", data_label="float"),
            element("td", row.artifact_text, class_="num", data_label="artifact"),
            element("td", row.change, class_=f"full {row.grade}"),
        )
        for row in compare(plan, verification)
    )
    head = element(
        "tr",
        element("th", "", scope="col"),
        element("th", "float", scope="col", class_="num"),
        element("th", "artifact", scope="col", class_="num"),
        element("th", "change", scope="col"),
    )
    return _section(
        "Float beside the artifact",
        "",
        element("table", element("thead", head), element("tbody", *rows), class_="cards comparison"),
    )


def layers_section(layers: Sequence[LayerQuality]) -> Markup:
    """Return the chart of quality per layer with its table."""
    if not layers:
        return _section("Quality, layer by layer", "No inner tensor was compared.")
    hidden = sum(layer.sqnr_real_db is None for layer in layers)
    parted = sum(_parted(layer) for layer in layers)
    lead = "Signal to quantization noise against the float model, of everything up to and including each layer."
    if hidden:
        lead += f" The engine's fusion hides {count_text(hidden, 'tensor')}, which have a simulated value only."
    if parted:
        verb = "loses" if parted == 1 else "lose"
        gap = f"at least {ENGINE_GAP_DB:.0f} dB in the engine beyond the simulation"
        lead += f" {count_text(parted, 'layer')} {verb} {gap}."
    rows = (
        element(
            "tr",
            element("td", str(index + 1), class_="num"),
            element("th", element("span", layer.node, class_="name"), scope="row"),
            element("td", layer.op_type),
            element("td", _real_text(layer), class_=f"num {grade_sqnr(layer.sqnr_real_db)}"),
            element("td", decibel_text(layer.sqnr_simulated_db), class_=f"num {'poor' if _parted(layer) else ''}"),
        )
        for index, layer in enumerate(layers)
    )
    names = (("#", "num"), ("node", None), ("op", None), ("engine", "num"), ("simulated", "num"))
    head = element("tr", *(element("th", name, scope="col", class_=kind) for name, kind in names))
    table = element("table", element("thead", head), element("tbody", *rows))
    return _section(
        "Quality, layer by layer",
        lead,
        element("div", id="layers-chart", class_="chart", role="img", aria_label="SQNR of each layer; table below"),
        element("details", element("summary", "The same as a table"), element("div", table, class_="scroll")),
    )


def histograms_section(histograms: Sequence[TensorHistogram]) -> Markup:
    """Return the chart of values and grids with a drop-down of tensors."""
    if not histograms:
        return _section("Values and their grids", "No histogram was kept.")
    options = []
    for kind in dict.fromkeys(histogram.kind for histogram in histograms):
        inside = (
            element("option", f"{histogram.tensor} ({percent_text(sum(clipped(histogram)))} clipped)", value=str(index))
            for index, histogram in enumerate(histograms)
            if histogram.kind == kind
        )
        options.append(element("optgroup", *inside, label=kind))
    stats = (
        ("tensor", "tensor"),
        ("format", "format"),
        ("range", "grid"),
        ("step", "step"),
        ("below", "clipped below"),
        ("above", "clipped above"),
    )
    return _section(
        "Values and their grids",
        "How often each value occurs. The dashed lines are the ends of the quantization grid; what lies in the shaded "
        "part is clipped.",
        element(
            "div",
            element("select", *options, id="histogram-picker", class_="wide", aria_label="tensor"),
            element("button", "Previous", id="histogram-previous", type="button"),
            element("button", "Next", id="histogram-next", type="button"),
            element("label", element("input", type="checkbox", id="histogram-log", checked=""), "log scale"),
            class_="controls",
        ),
        element(
            "dl",
            *(
                element("div", element("dt", label), element("dd", id=f"histogram-{key}"), class_=key)
                for key, label in stats
            ),
            class_="stats",
        ),
        element("div", id="histogram-chart", class_="chart", role="img", aria_label="histogram of the tensor"),
        element(
            "p",
            element("span", id="histogram-grid", aria_live="polite"),
            element("span", " Drag across the chart to zoom, double-click to return.", class_="mouse"),
            class_="quiet",
        ),
    )


def sites_section(plan: Plan, verification: Verification) -> Markup:
    """Return the table of every site: formats, prediction, measurement and reason."""
    qualities = {layer.node: layer for layer in verification.layers}
    unfused = set(verification.unfused)
    columns = (
        ("node", None),
        ("op", None),
        ("runs", None),
        ("formats", None),
        ("predicted", "num"),
        ("speed-up", "num"),
        ("in the engine", None),
        ("SQNR", "num"),
    )
    head = element(
        "tr",
        *(element("th", element("button", name, type="button"), scope="col", class_=kind) for name, kind in columns),
    )
    measured = bool(verification.kernels)
    rows = (
        _site_row(site, qualities.get(site.node), measured=measured, unfused=site.node in unfused)
        for site in plan.sites
    )
    present = [name for name in EXECUTIONS if any(site.execution == name for site in plan.sites)]
    options = (element("option", f"runs: {name}", value=name) for name in present)
    return _section(
        "Every operator",
        _prediction(plan, verification),
        element(
            "div",
            element("input", type="search", id="sites-search", placeholder="Filter by typing", aria_label="filter"),
            element(
                "select", element("option", "runs: any", value=""), *options, id="sites-execution", aria_label="runs"
            ),
            element("span", count_text(len(plan.sites), "site"), id="sites-count", class_="count", aria_live="polite"),
            class_="controls",
        ),
        element(
            "div",
            element("table", element("thead", head), element("tbody", *rows), id="sites", class_="cards sortable"),
            class_="scroll",
        ),
    )


def reasons_section(plan: Plan) -> Markup:
    """Return what stayed in float and why, and then the other decisions, grouped by reason."""
    stayed = group_reasons(plan, ("float",))
    others = group_reasons(plan, [name for name in EXECUTIONS if name != "float"])
    parts = []
    if stayed:
        parts.append(_section("What stayed in float, and why", "", _reasons(stayed)))
    else:
        parts.append(_section("What stayed in float, and why", "Nothing: every operator is compressed."))
    if others:
        parts.append(_section("What was compressed, and why", "", _reasons(others)))
    return join(*parts)


def kernels_section(verification: Verification) -> Markup:
    """Return the operator counts in the engine before and after, and what it did not fuse."""
    before, after = verification.float_kernels, verification.kernels
    names = sorted({*before, *after}, key=lambda name: (-after.get(name, 0), -before.get(name, 0), name))
    rows = [_kernel_row(name, before.get(name, 0), after.get(name, 0)) for name in names]
    total = _kernel_row("all", sum(before.values()), sum(after.values()), class_="total")
    head = element(
        "tr",
        element("th", "operator", scope="col"),
        *(element("th", name, scope="col", class_="num") for name in ("float", "artifact", "change")),
    )
    integers = (
        f"{verification.integer_kernels} of {sum(after.values())} operators compute in integers; "
        f"{verification.planned_integer} were planned to."
    )
    if not after:
        return _section("Kernels in the engine", f"{verification.engine} was not asked which kernels it runs.")
    if verification.unfused:
        aside = join(
            element("h3", "Planned in integers, run in float"),
            element("ul", *(element("li", element("span", node, class_="name")) for node in verification.unfused)),
        )
    else:
        aside = element("p", "Every operator that was planned in integers runs in integers.", class_="quiet")
    return _section(
        "Kernels in the engine",
        f"What {verification.engine} runs after its own optimization. {integers}",
        element(
            "div",
            element("table", element("thead", head), element("tbody", *rows, total)),
            element("div", aside),
            class_="columns",
        ),
    )


def provenance_section(plan: Plan, provenance: Mapping[str, str]) -> Markup:
    """Return where the artifact comes from: what the caller knows, and what the plan records."""
    options = {f"option {name}": str(value) for name, value in sorted(plan.options.items())}
    recorded = {"target": plan.target, "method": plan.method, "model sha256": plan.model_sha256, **options}
    entries = {**recorded, **dict(sorted(provenance.items()))}
    items = (join(element("dt", name), element("dd", value, class_="name")) for name, value in entries.items())
    return _section("Provenance", "", element("dl", *items, class_="provenance"))


def _section(title: str, lead: str, *children: str) -> Markup:
    return element("section", element("h2", title), element("p", lead, class_="lead") if lead else Markup(), *children)


def _site_row(site: SitePlan, quality: LayerQuality | None, *, measured: bool, unfused: bool) -> Markup:
    predicted, speedup = NOTHING, None
    if site.predicted_us is not None:
        predicted = microseconds_text(site.predicted_us)
        if site.predicted_float_us is not None and site.predicted_us > 0:
            speedup = site.predicted_float_us / site.predicted_us
    integer = site.execution in ("static", "dynamic")
    if not measured:
        engine = (NOTHING, "quiet")
    elif unfused:
        engine = ("float instead", "poor")
    else:
        engine = ("integer", "") if integer else ("as planned", "quiet")
    sqnr = None if quality is None else layer_db(quality)
    formats = [
        element("small", f"{letter} {form}")
        for letter, form in (("W", site.weights), ("A", site.activations))
        if form is not None
    ]
    why = element("small", site.reason, *(f"; {note}" for note in site.notes))
    return element(
        "tr",
        element("th", element("span", site.node, class_="name"), why, scope="row"),
        element("td", site.op_type),
        element("td", element("span", site.execution, class_=f"run run-{site.execution}")),
        element("td", *formats, class_="formats"),
        element("td", predicted, class_="num", data_value=_number(site.predicted_us), data_label="predicted"),
        element(
            "td",
            NOTHING if speedup is None else ratio_text(speedup),
            class_="num",
            data_value=_number(speedup),
            data_label="speed-up",
        ),
        element("td", engine[0], class_=engine[1], data_label="engine:"),
        element(
            "td",
            decibel_text(sqnr),
            class_=f"num {grade_sqnr(sqnr)}",
            data_value=_number(sqnr),
            data_label="SQNR",
        ),
        data_execution=site.execution,
    )


def _prediction(plan: Plan, verification: Verification) -> str:
    predicted = predicted_ms(plan)
    if predicted is None:
        return "Latency was not predicted for this target."
    float_ms, planned_ms, sites = predicted
    text = (
        f"Predicted for {count_text(sites, 'site')} together: {milliseconds_text(float_ms)} in float, "
        f"{milliseconds_text(planned_ms)} as planned, without conversions between them."
    )
    latency = verification.latency
    if latency is not None:
        text += (
            f" Measured for the whole model: {milliseconds_text(latency.float_ms)} and "
            f"{milliseconds_text(latency.artifact_ms)}."
        )
    return text


def _reasons(groups: Sequence[ReasonGroup]) -> Markup:
    items = []
    for group in groups:
        nodes = (element("li", element("span", node, class_="name")) for node in group.nodes)
        formats = join(" ", element("span", group.formats, class_="quiet")) if group.formats else Markup()
        items.append(
            element(
                "li",
                element("span", f"{len(group.nodes)} ×", class_="times"),
                element(
                    "div",
                    element("strong", group.op_type),
                    " ",
                    element("span", group.execution, class_=f"run run-{group.execution}"),
                    formats,
                    element("br"),
                    group.reason,
                    element("details", element("summary", count_text(len(group.nodes), "node")), element("ul", *nodes)),
                ),
            )
        )
    return element("ul", *items, class_="reasons")


def _kernel_row(name: str, before: int, after: int, class_: str | None = None) -> Markup:
    change = f"{after - before:+d}".replace("-", "−") if after != before else ""
    return element(
        "tr",
        element("th", name, scope="row"),
        element("td", str(before) if before else NOTHING, class_="num"),
        element("td", str(after) if after else NOTHING, class_="num"),
        element("td", change, class_="num"),
        class_=class_,
    )


def _real_text(layer: LayerQuality) -> str:
    return "fused" if layer.sqnr_real_db is None else decibel_text(layer.sqnr_real_db)


def _parted(layer: LayerQuality) -> bool:
    gap = engine_gap(layer.sqnr_real_db, layer.sqnr_simulated_db)
    return gap is not None and gap >= ENGINE_GAP_DB


def _number(value: float | None) -> str:
    """Return a sort key for a cell: empty where there is no value, `Infinity` in the spelling of JavaScript."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.6g}" if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
