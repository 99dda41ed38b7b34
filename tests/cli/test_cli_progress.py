"""Progress: on a terminal, one line a stage; elsewhere, nothing."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lowbit.cli.progress import stages, terminal_stages


@pytest.mark.parametrize("width", [80, 120])
def test_stages_leave_one_line_each(width):
    file = io.StringIO()
    stage = terminal_stages(Console(file=file, force_terminal=True, width=width, color_system=None))
    with stage("Load the model", None) as advance:
        pass
    with stage("Calibrate", 3) as advance:
        for _ in range(3):
            advance()
    shown = [line.split("\r")[-1] for line in file.getvalue().split("\n")]
    assert any("✓ Load the model" in line for line in shown)
    (line,) = [line for line in shown if "✓ Calibrate" in line]
    assert "3/3" in line
    assert " s" in line
    assert len(line) <= width


def test_an_interrupted_stage_passes_the_interrupt_on():
    stage = terminal_stages(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(KeyboardInterrupt), stage("Calibrate", 3):
        raise KeyboardInterrupt


def test_nothing_is_drawn_where_nobody_watches(capfd):
    with stages(quiet=False)("Calibrate", 2) as advance:
        advance()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
