"""The operator sections: every site with its formats, and the kernels that the engine really runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lowbit.plan.plan import EXECUTIONS, Plan, SitePlan
from lowbit.report.comparison import predicted_ms
from lowbit.report.markup import Markup, element, join, section
from lowbit.report.units import (
    NOTHING,
    count_text,
    decibel_text,
    microseconds_text,
    milliseconds_text,
    ratio_text,
)
from lowbit.report.verdict import grade_sqnr, layer_db

if TYPE_CHECKING:
    from lowbit.plan.verification import LayerQuality, Verification


__all__ = ["kernels_section", "sites_section"]


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
    return section(
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
        return section("Kernels in the engine", f"{verification.engine} was not asked which kernels it runs.")
    if verification.unfused:
        aside = join(
            element("h3", "Planned in integers, run in float"),
            element("ul", *(element("li", element("span", node, class_="name")) for node in verification.unfused)),
        )
    else:
        aside = element("p", "Every operator that was planned in integers runs in integers.", class_="quiet")
    return section(
        "Kernels in the engine",
        f"What {verification.engine} runs after its own optimization. {integers}",
        element(
            "div",
            element("table", element("thead", head), element("tbody", *rows, total)),
            element("div", aside),
            class_="columns",
        ),
    )


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


def _number(value: float | None) -> str:
    """Return a sort key for a cell: empty where there is no value, `Infinity` in the spelling of JavaScript."""
    if value is None or math.isnan(value):
        return ""
    return f"{value:.6g}" if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
