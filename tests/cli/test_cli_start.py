"""`lowbit --help` and friends: instant, complete, and true."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lowbit as package

COMMANDS = ("quantize", "prune", "compare", "diagnose", "check", "inspect", "targets")
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "plotly", "rich", "scipy", "torch", "yaml")
PROBE = """
import json, sys
from lowbit.cli import main
status = main(sys.argv[1:])
print(json.dumps([status, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
    status, modules = json.loads(done.stderr)
    assert status == 0
    assert "click" in modules
    assert not set(HEAVY) & set(modules)
    assert done.stdout


def test_help_answers_in_less_than_half_a_second():
    command = [sys.executable, "-m", "lowbit.cli", "--help"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_the_installed_command_is_this_program():
    script = Path(sys.executable).with_name("lowbit")
    found = str(script) if script.exists() else shutil.which("lowbit")
    if found is None:
        pytest.skip("the package runs from its source tree: no `lowbit` command is installed")
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"lowbit {package.__version__}\n"


def test_without_arguments_the_help_is_shown(lowbit):
    done = lowbit()
    assert done.status == 0
    assert all(name in done.out for name in COMMANDS)
    assert done.err == ""


def test_the_help_lists_the_values_that_exist(lowbit):
    from lowbit.plan.recipe import CALIBRATIONS, METHODS

    text = lowbit("quantize", "--help").out
    assert f"--method {'|'.join(METHODS)}" in text
    assert f"--calibration {'|'.join(CALIBRATIONS)}" in text


def test_targets_are_listed_and_one_is_the_host(lowbit):
    from lowbit.targets import TARGETS

    done = lowbit("targets")
    assert done.status == 0
    assert all(name in done.out for name in TARGETS)
    assert done.out.count("host: this machine") <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["quantize"], "Missing argument 'MODEL'"),
        (["quantize", "net.onnx", "--nonsense"], "No such option"),
        (["quantize", "net.onnx", "--threads", "0"], "--threads"),
        (["quantize", "net.onnx", "--seed", "x"], "--seed"),
        (["compare", "net.onnx"], "Missing argument 'ARTIFACT'"),
        (["compare", "net.onnx", "net.onnx"], "Missing option '--data'"),
        (["inspect", "net.onnx", "other.onnx"], "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(lowbit, arguments, said):
    done = lowbit(*arguments)
    assert done.status == 2
    assert done.line.startswith("error: ")
    assert said in done.line
    assert "--help`" in done.line
    assert done.out == ""
