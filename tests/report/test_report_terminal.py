"""The tables say everything at 80 columns, on dark and on light terminals."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

import pytest
from rich.color import Color
from rich.console import Console, RenderableType

from lowbit.report.terminal import (
    EXECUTION_STYLES,
    GRADE_STYLES,
    kernels_table,
    layers_table,
    reasons_summary,
    sites_table,
    summary_table,
)

if TYPE_CHECKING:
    from conftest import Account

WIDTHS = pytest.mark.parametrize("width", [80, 120])


def rendered(renderable: RenderableType, width: int, *, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(renderable)
    text = console.file.getvalue()
    if not colour:
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert all(ord(letter) < 0x2600 for letter in text)
    return text


def column(text: str, start: int, stop: int) -> str:
    """Return a column of a rendered table in one piece, the line breaks of folded cells removed."""
    return "".join(line[start:stop].strip() for line in text.splitlines())


@WIDTHS
def test_summary_has_every_number(account: Account, width: int) -> None:
    text = rendered(summary_table(account.plan, account.verification, title="efficientnet.onnx"), width)
    words = " ".join(text.split())
    for expected in (
        "efficientnet.onnx", "18.6 MB", "4.93 MB", "3.77× smaller", "9.20 ms", "6.05 ms", "1.52× faster (1.49–1.55×)",
        "61.3 MB", "38.9 MB", "1.58× less", "0.884", "0.868", "−0.016", "14.4 dB", "simulated 17.1 dB: 2.7 dB lost",
        "96.2 %", "47 of 60 sites planned", "onnxruntime 1.32.0", "onnxruntime-x86-avx2", "200 pairs",
        "Only 100 calibration samples", "saturation of u8×s8 products.",
    ):  # fmt: skip
        assert expected in words


@WIDTHS
def test_summary_of_the_least_that_can_be_measured(account: Account, width: int) -> None:
    least = dataclasses.replace(
        account.verification, latency=None, metric=None, float_peak_mb=None, artifact_peak_mb=None, outputs=()
    )
    text = rendered(summary_table(dataclasses.replace(account.plan, sites=()), least, title="m"), width)
    assert "not measured" in text
    assert "Peak memory" not in text


@WIDTHS
def test_sites_keep_names_formats_and_reasons_whole(account: Account, width: int) -> None:
    text = rendered(sites_table(account.plan), width)
    head = next(line for line in text.splitlines() if "node" in line)
    name_width = head.index("runs") if width == 80 else head.index(" op ")
    names = column(text, 0, name_width)
    for site in account.plan.sites:
        assert (f"{site.node}{site.op_type}" if width == 80 else site.node) in names
    for expected in ("weight-only", "half"):
        assert expected not in text
    for expected in ("static", "dynamic", "float", "W int8:per-channel", "A uint8", "Sigmoid", "MatMul"):
        assert expected in text


@WIDTHS
def test_sites_beyond_the_limit_are_counted(account: Account, width: int) -> None:
    text = rendered(sites_table(account.plan, limit=9), width)
    assert "and 51 more sites" in text
    assert "conv_9" not in text
    assert "more site" not in rendered(sites_table(account.plan, limit=60), width)


@WIDTHS
def test_layers_mark_the_worst_and_the_gaps(account: Account, width: int) -> None:
    text = rendered(layers_table(account.verification), width)
    known = [layer for layer in account.verification.layers if layer.sqnr_real_db is not None]
    worst = min(known, key=lambda layer: layer.sqnr_real_db or 0.0)
    marked = [line for line in text.splitlines() if "worst" in line]
    assert len(marked) == 1
    assert f"{worst.sqnr_real_db:.1f} dB" in text
    assert text.count("fused") == sum(layer.sqnr_real_db is None for layer in account.verification.layers) + 1
    assert "26 layers at least 1 dB worse in the engine than simulated" in text
    assert ("█" in text) == (width == 120)


@WIDTHS
def test_kernels_before_and_after(account: Account, width: int) -> None:
    text = rendered(kernels_table(account.verification), width)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["QLinearConv"] == ["–", "31", "+31"]
    assert rows["Conv"] == ["28", "5", "−23"]
    assert rows["Sigmoid"] == ["8", "8"]
    assert rows["all"] == ["61", "64", "+3"]
    for node in account.verification.unfused:
        assert node in "".join(text.split())


@WIDTHS
def test_reasons_are_grouped(account: Account, width: int) -> None:
    words = " ".join(rendered(reasons_summary(account.plan), width).split())
    assert "30 × Conv static W int8:per-channel, A uint8: integer kernel is predicted 1.94× as fast" in words
    assert "1 × Conv float: first layer loses in integers: 0.71× as fast as float here" in words


def test_names_are_never_read_as_markup(account: Account) -> None:
    site = dataclasses.replace(account.plan.sites[0], node="[red]x[/red]", reason="[/b] why")
    text = rendered(sites_table(dataclasses.replace(account.plan, sites=(site,))), 80)
    assert "[red]x[/red]" in text
    assert "[/b] why" in text
    assert "[/b] why" in rendered(reasons_summary(dataclasses.replace(account.plan, sites=(site,))), 80)
    title = rendered(summary_table(account.plan, account.verification, title="[red]m[/red]"), 80)
    assert "[red]m[/red]" in title


def test_execution_is_coloured(account: Account) -> None:
    text = rendered(sites_table(account.plan), 120, colour=True)
    red, green, blue = Color.parse(EXECUTION_STYLES["static"]).get_truecolor()
    assert f"38;2;{red};{green};{blue}mstatic" in text


@pytest.mark.parametrize("style", sorted({*EXECUTION_STYLES.values(), *GRADE_STYLES.values()}))
def test_colours_read_on_black_and_on_white(style: str) -> None:
    channels = [value / 255 for value in Color.parse(style.rsplit(maxsplit=1)[-1]).get_truecolor()]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # WCAG 2.1: black against white is 21, so that no colour has more than the root of it, 4.58, against both.
    assert (luminance + 0.05) / 0.05 >= 4
    assert 1.05 / (luminance + 0.05) >= 4
