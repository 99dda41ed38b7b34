"""The quality sections: the charts of noise per layer and of values with their grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.report.charts import clipped
from lowbit.report.markup import Markup, element, section
from lowbit.report.units import (
    count_text,
    decibel_text,
    percent_text,
)
from lowbit.report.verdict import ENGINE_GAP_DB, engine_loses, grade_sqnr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.verification import LayerQuality, TensorHistogram


__all__ = ["histograms_section", "layers_section"]


def layers_section(layers: Sequence[LayerQuality]) -> Markup:
    """Return the chart of quality per layer with its table."""
    if not layers:
        return section("Quality, layer by layer", "No inner tensor was compared.")
    hidden = sum(layer.sqnr_real_db is None for layer in layers)
    parted = sum(engine_loses(layer.sqnr_real_db, layer.sqnr_simulated_db) for layer in layers)
    lead = "Signal to quantization noise against the float model, of everything up to and including each layer."
    if hidden:
        lead += f" {count_text(hidden, 'tensor')} hidden by the engine's fusion: simulated only."
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
            element(
                "td",
                decibel_text(layer.sqnr_simulated_db),
                class_=f"num {'poor' if engine_loses(layer.sqnr_real_db, layer.sqnr_simulated_db) else ''}",
            ),
        )
        for index, layer in enumerate(layers)
    )
    names = (("#", "num"), ("node", None), ("op", None), ("engine", "num"), ("simulated", "num"))
    head = element("tr", *(element("th", name, scope="col", class_=kind) for name, kind in names))
    table = element("table", element("thead", head), element("tbody", *rows))
    return section(
        "Quality, layer by layer",
        lead,
        element("div", id="layers-chart", class_="chart", role="img", aria_label="SQNR of each layer; table below"),
        element("details", element("summary", "The same as a table"), element("div", table, class_="scroll")),
    )


def histograms_section(histograms: Sequence[TensorHistogram]) -> Markup:
    """Return the chart of values and grids with a drop-down of tensors."""
    if not histograms:
        return section("Values and their grids", "No histogram was kept.")
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
    return section(
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


def _real_text(layer: LayerQuality) -> str:
    return "fused" if layer.sqnr_real_db is None else decibel_text(layer.sqnr_real_db)
