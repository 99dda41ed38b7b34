"""Where the time goes, what was predicted, what could have overflowed, and which kernels run what was planned."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from lowbit.plan.verification import Hazards, Latency, Prediction, SiteKernel, SiteTime
from lowbit.report.html import render_report
from lowbit.report.speed import by_operator, slowest
from lowbit.report.terminal import summary_table, timeline_table

if TYPE_CHECKING:
    from rich.console import RenderableType


def time(index: int, before: float, after: float, node: str = "", op_type: str = "Conv") -> SiteTime:
    return SiteTime(
        node=node or f"layer_{index}", op_type=op_type, execution="static", float_us=before, artifact_us=after
    )


def kernel(node: str, *, integer: bool = True) -> SiteKernel:
    cause = "" if integer else "the engine runs it as Conv in float behind DequantizeLinear"
    name = "QLinearConv" if integer else "Conv"
    return SiteKernel(node=node, op_type="Conv", execution="static", kernel=name, integer=integer, cause=cause)


def page(account: Any, **fields: object) -> str:
    verification = dataclasses.replace(account.verification, **fields)
    return render_report(
        title="net",
        plan=account.plan,
        verification=verification,
        histograms=(),
        provenance=account.provenance,
    )


def printed(part: RenderableType, width: int = 120) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(part)
    return capture.get()


def summary(account: Any, **fields: object) -> str:
    verification = dataclasses.replace(account.verification, **fields)
    return printed(summary_table(account.plan, verification, title="net"))


def test_sections_without_data_are_left_out(account: Any) -> None:
    text = page(account, timeline=(), contract=(), hazards=(), prediction=None, latency_all_cores=None)
    for title in ("Where the milliseconds go", "Planned and run", "Saturation</h2>", "Predicted and measured"):
        assert title not in text


def test_the_timeline_adds_up_and_marks_what_became_slower(account: Any) -> None:
    timeline = (time(0, 1000.0, 250.0), time(1, 100.0, 300.0), time(2, 400.0, 399.0))
    text = page(account, timeline=timeline)
    assert "1.50 ms in float, 949 µs in the artifact" in text
    assert text.count("bar-slower") - text.count(".bar-slower") == 1
    widths = [float(found) for found in re.findall(r'style="width:([0-9.]+)%"', text)]
    assert widths == [100.0, 25.0, 10.0, 30.0, 40.0, 39.9]


def test_a_long_timeline_shows_the_slowest_in_order_and_all_in_the_table(account: Any) -> None:
    timeline = tuple(time(index, float(1 + (index * 37) % 301), 1.0) for index in range(300))
    text = page(account, timeline=timeline)
    assert text.count('class="bars"') == 40
    assert "260 faster rows only in the table" in text
    assert all(f">layer_{index}<" in text for index in range(300))
    shown = slowest(timeline, 40)
    assert min(row.float_us for row in shown) >= max(row.float_us for row in timeline if row not in shown)
    assert [timeline.index(row) for row in shown] == sorted(timeline.index(row) for row in shown)


def test_times_by_operator() -> None:
    timeline = (time(0, 10.0, 5.0), time(1, 20.0, 6.0), time(2, 7.0, 90.0, op_type="Softmax"))
    assert by_operator(timeline) == [("Softmax", 7.0, 90.0), ("Conv", 30.0, 11.0)]


def test_predicted_beside_measured(account: Any) -> None:
    prediction = Prediction(
        source="measured here", float_ms=10.0, artifact_ms=6.6572, corrected_ms=6.0, machine_spread=0.04
    )
    text = page(account, timeline=(time(0, 1.0, 1.0),), prediction=prediction)
    assert "predicted (measured here)" in text
    assert "The prediction of the artifact is 10.0 % off." in text
    assert "varied by 4.0 %" in text
    said = summary(account, prediction=prediction)
    assert re.search(r"Latency predicted\s+10.0 ms\s+6.66 ms\s+1.50× from costs measured here", said)


def test_latency_on_all_cores_is_a_row_of_its_own(account: Any) -> None:
    latency = Latency(
        float_ms=5.0, artifact_ms=4.0, speedup=1.25, speedup_low=1.2, speedup_high=1.3, pairs=50, threads=2
    )
    assert re.search(
        r"Latency, 2 threads\s+5.00 ms\s+4.00 ms\s+1.25× faster", summary(account, latency_all_cores=latency)
    )


def test_the_contract_names_what_broke_it_first(account: Any) -> None:
    rows = (kernel("good"), kernel("bad", integer=False))
    text = page(account, contract=rows)
    assert "1 of 2 operators planned in integers run in integer kernels." in text
    assert "the engine runs it as Conv in float behind DequantizeLinear" in text
    assert re.search(r"Planned in integers\s+–\s+1 of 2", summary(account, contract=rows))
    assert "Left in float, quantized by the engine" in page(account, contract=rows[:1], unasked=("quiet_conv",))


def test_hazards_are_counted(account: Any) -> None:
    hazards = (
        Hazards(node="a", pairs=1000, hazards=12, channels=64, rescaled=5, recoded=2),
        Hazards(node="b", pairs=500, hazards=3, channels=32, rescaled=1, recoded=0),
    )
    text = page(account, hazards=hazards)
    assert "15 pairs of weights in 2 layers could do that; 8 channels were changed" in text
    assert re.search(r"Overflowing pairs\s+–\s+0\s+15 in 2 layers repaired", summary(account, hazards=hazards))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "[bold]x[/bold]", 'a" onload="b', "x" * 300])
def test_names_of_strangers_are_only_text(account: Any, name: str) -> None:
    fields = {
        "timeline": (time(0, 3.0, 9.0, node=name),),
        "contract": (dataclasses.replace(kernel("bad", integer=False), node=name),),
        "hazards": (Hazards(node=name, pairs=1, hazards=1, channels=1, rescaled=1, recoded=0),),
    }
    text = page(account, **fields)
    assert "<script>alert" not in text
    assert 'onload="b' not in text
    said = printed(timeline_table(dataclasses.replace(account.verification, **fields)), width=400)
    assert name[:80] in said


def test_the_terminal_shows_the_slowest_and_the_rest_together(account: Any) -> None:
    timeline = tuple(time(index, 100.0 + index, 50.0) for index in range(20))
    said = printed(timeline_table(dataclasses.replace(account.verification, timeline=timeline)))
    assert "5 more" in said
    assert "layer_19" in said
    assert "layer_4 " not in said
    assert re.search(r"all\s+2.19 ms\s+1.00 ms", said)
