"""Small networks with real weights, data for them, and the command line as a process and as a function."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from lowbit.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONVNET = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N, 8, 16, 16] x) => (float[N, 10] scores) {
    a0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
    a1 = Relu (a0)
    c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a1, w1, b1)
    a2 = Relu (c1)
    c2 = Conv <kernel_shape = [1, 1]> (a2, w2, b2)
    s = Add (c2, a1)
    r = Relu (s)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    scores = Gemm <transB = 1> (f, w3, b3)
}
"""
SHAPES = {
    "w0": (32, 8, 3, 3),
    "b0": (32,),
    "w1": (64, 32, 3, 3),
    "b1": (64,),
    "w2": (32, 64, 1, 1),
    "b2": (32,),
    "w3": (10, 32),
    "b3": (10,),
}


def build(text: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Parse a graph and give it its weights."""
    model = parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model)
    return model


def convnet_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in SHAPES.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        weights[name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    return weights


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that stderr must be."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `net.onnx`, `data.npz` (40 samples, with labels) and `test.npz` (20)."""
    monkeypatch.chdir(tmp_path)
    onnx.save(build(CONVNET, convnet_weights()), "net.onnx")
    rng = np.random.default_rng(1)
    for name, count in (("data", 40), ("test", 20)):
        x = rng.standard_normal((count, 8, 16, 16)).astype(np.float32)
        np.savez(f"{name}.npz", x=x)
    return tmp_path


@pytest.fixture
def lowbit(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """The command line inside this process.

    Peak memory takes two processes a time, which would be most of the time of these tests: `process` measures it.
    """
    monkeypatch.setattr("lowbit.methods.verify.peak_memory_mb", lambda *_, **__: 10.0)
    monkeypatch.setattr("sys.path", list(sys.path))

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def process() -> Callable[..., Done]:
    """The command line as a process of its own, in the current folder."""

    def call(*arguments: object, **environment: str) -> Done:
        command = [sys.executable, "-m", "lowbit.cli", *map(str, arguments)]
        environ = {**os.environ, "COLUMNS": "100", **environment}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=120)
        return Done(done.returncode, done.stdout, done.stderr)

    return call
