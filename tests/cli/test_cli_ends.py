"""How a command can end apart from bad input: interrupted, with nobody listening, or by a bug."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

if os.name != "posix":
    pytest.skip("signals are sent as on POSIX systems", allow_module_level=True)

COMMAND = [sys.executable, "-m", "lowbit.cli"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_during_calibration_leaves_nothing(folder, number, status):
    np.savez("many.npz", x=np.random.default_rng(0).standard_normal((8000, 8, 16, 16)).astype(np.float32))
    temporary = folder / "tmp"
    temporary.mkdir()
    before = {path.name for path in folder.iterdir()}
    running = subprocess.Popen(
        [*COMMAND, "quantize", "net.onnx", "--data", "many.npz", "--method", "static", "--samples", "6000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        # Where the tests run in the background, a shell has them ignore interrupts, and what they start as well.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not any(temporary.glob("lowbit-*")):  # the work has begun
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    assert running.returncode == status, (out, err)
    assert err == "interrupted; nothing was written\n"
    assert out == ""
    assert {path.name for path in folder.iterdir()} == before
    assert list(temporary.iterdir()) == []


def test_an_interrupt_between_two_files_says_what_is_there(folder, lowbit, monkeypatch):
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit.report.html.write_report", interrupt)
    done = lowbit("quantize", "net.onnx", "--data", "data.npz", "--report", "r.html", "--time", "0", "--quiet")
    assert done.status == 130
    assert done.line == "interrupted; only net.int8.onnx was written before"
    assert Path("net.int8.onnx").exists()


def test_a_pipe_that_is_closed_early_is_no_error(folder):
    script = f"{sys.executable} -m lowbit.cli inspect net.onnx | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}


def test_a_bug_is_one_line_with_status_1_and_a_traceback_on_request(folder, lowbit, monkeypatch):
    def broken(*_args: object, **_kwargs: object) -> None:
        raise IndexError("list index\nout of range")

    monkeypatch.setattr("lowbit.methods.inspect.inspect", broken)
    done = lowbit("inspect", "net.onnx")
    assert done.status == 1
    assert done.line == (
        "error: IndexError: list index out of range. "
        "This is a bug in lowbit; LOWBIT_TRACEBACK=1 shows where it happened."
    )
    monkeypatch.setenv("LOWBIT_TRACEBACK", "1")
    told = lowbit("inspect", "net.onnx")
    assert told.status == 1
    assert "Traceback (most recent call last)" in told.err
    assert "in broken" in told.err
    assert told.err.splitlines()[-1] == done.line


def test_a_terminal_without_the_characters_is_no_error(folder, process):
    done = process("inspect", "net.onnx", PYTHONIOENCODING="ascii")
    assert done.status == 0, done.err
    assert "?" in done.out
