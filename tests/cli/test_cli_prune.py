"""`lowbit prune`: zeros by default, whole channels on request, and no option of the one with the other."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper


def weights(path: str) -> dict[str, np.ndarray]:
    return {value.name: numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer}


def test_weights_become_zero(folder, lowbit):
    done = lowbit("prune", "net.onnx", "--pattern", "2:4", "-o", "zeros.onnx")
    assert (done.status, done.err) == (0, "")
    assert np.mean(weights("zeros.onnx")["w1"] == 0) == 0.5
    assert weights("zeros.onnx")["w1"].shape == weights("net.onnx")["w1"].shape


def test_channels_are_removed(folder, lowbit):
    done = lowbit("prune", "net.onnx", "--channels", "--round-to", "4", "--amount", "0.75", "-o", "narrow.onnx")
    assert (done.status, done.err) == (0, "")
    assert "multiplications" in done.out
    assert weights("narrow.onnx")["w1"].shape == (16, 8, 3, 3)
    assert weights("narrow.onnx")["w3"].shape == (10, 8)


def test_a_residual_branch_goes(folder, lowbit):
    done = lowbit("prune", "net.onnx", "--branches", "1", "--data", "data.npz", "-o", "short.onnx")
    assert (done.status, done.err) == (0, "")
    assert "multiplications" in done.out
    assert len(onnx.load("short.onnx").graph.node) < len(onnx.load("net.onnx").graph.node)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--round-to", "4"], "--round-to needs --channels"),
        (["--no-compensation"], "--no-compensation needs --channels"),
        (["--channels", "--pattern", "2:4"], "--pattern does not go with --channels"),
        (["--channels", "--branches", "1"], "--branches does not go with --channels"),
        (["--branches", "1", "--amount", "0.5"], "--amount does not go with --branches"),
        (["--branches", "1"], "no data were given"),
        (["--branches", "2", "--data", "data.npz"], "2 branches cannot go"),
    ],
)
def test_options_of_the_other_kind(folder, lowbit, arguments, said):
    done = lowbit("prune", "net.onnx", *arguments)
    assert done.status != 0
    assert said in done.err
    assert not (folder / "net.pruned.onnx").exists()
