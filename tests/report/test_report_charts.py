"""What the charts are given is what the histograms hold."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.plan.verification import LayerQuality, TensorHistogram
from lowbit.report.charts import clipped, histogram_data, layers_data
from lowbit.report.markup import element, embedded_json, join


def histogram(edges: list[float], counts: list[int], low: float, high: float, step: float = 0.1) -> TensorHistogram:
    return TensorHistogram(
        tensor="x",
        kind="activation",
        edges=np.array(edges, dtype=np.float64),
        counts=np.array(counts, dtype=np.int64),
        low=low,
        high=high,
        step=step,
        format="uint8",
    )


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3000))
def test_merged_bins_lose_no_count_and_keep_the_range(counts: list[int]) -> None:
    edges = np.linspace(-1.5, 2.5, len(counts) + 1).tolist()
    data = histogram_data(histogram(edges, counts, -1.5, 2.5))
    assert len(data["counts"]) <= 384
    assert sum(data["counts"]) == data["total"] == sum(counts)
    if "edges" in data:
        first, last = data["edges"][0], data["edges"][-1]
    else:
        first, last = data["start"], data["start"] + data["width"] * len(data["counts"])
    assert (first, last) == pytest.approx((-1.5, 2.5))


def test_bins_of_unequal_width_keep_their_edges() -> None:
    assert histogram_data(histogram([0, 1, 10, 100], [5, 3, 1], 0, 100))["edges"] == [0, 1, 10, 100]


def test_clipped_mass() -> None:
    below, above = clipped(histogram([-2, -1, 0, 1, 2, 3], [1, 2, 90, 4, 3], -1, 2))
    assert (below, above) == pytest.approx((0.01, 0.03))


def test_zeros_of_a_relu_are_not_clipped_by_the_bin_they_share_with_the_limit() -> None:
    assert clipped(histogram([-0.5, 0.5, 1.5], [900, 100], 0.0, 1.5)) == (0.0, 0.0)


def test_an_empty_histogram_is_not_clipped() -> None:
    assert clipped(histogram([0, 1], [0], 0, 1)) == (0.0, 0.0)


def test_layers_name_the_worst_and_spell_what_json_cannot() -> None:
    def layer(node: str, real: float | None, simulated: float) -> LayerQuality:
        return LayerQuality(node=node, op_type="Conv", tensor=node, sqnr_real_db=real, sqnr_simulated_db=simulated)

    data = layers_data([layer("a", math.inf, 30), layer("b", None, 12), layer("c", 20, 21), layer("d", math.nan, 9)])
    assert data["real"] == ["exact", None, 20, "undefined"]
    assert data["worst"] == 1
    assert json.loads(embedded_json(data)) == data
    assert layers_data([])["worst"] is None


@given(st.text())
def test_embedded_json_cannot_end_its_script(text: str) -> None:
    written = embedded_json({"text": text})
    assert json.loads(written) == {"text": text}
    assert not set(written) & {"<", ">", "&", "\u2028", "\u2029"}


def test_markup_escapes_text_once() -> None:
    inner = element("b", '<i> & "q"', title='"<')
    assert inner == '<b title="&quot;&lt;">&lt;i&gt; &amp; &quot;q&quot;</b>'
    assert join(inner, "<") == inner + "&lt;"
