"""Refitting in sequence: layers make up for what those before them lack, also where they have lost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import lowbit
from lowbit.graph import clean, load_model, serialize
from lowbit.graph.channels import find_groups, remove_channels, trace_channels
from lowbit.methods import channel_compensation
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.sequential_refit import layers_behind
from lowbit.pruning import refit_residual
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

# The first convolution's channels are those of the sum; the second's go through a depthwise one to the third.
NET = """g (float[n,3,8,8] x, float[16,3,3,3] w1, float[16] b1, float[24,16,1,1] w2, float[24] b2, float[24,1,3,3] w3,
           float[24] b3, float[16,24,1,1] w4, float[16] b4, float[8,16] w5, float[8] b5) => (float[n,8] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    p = Relu(a)
    b = Conv(p, w2, b2)
    q = Relu(b)
    c = Conv<group=24, pads=[1,1,1,1]>(q, w3, b3)
    r = Relu(c)
    d = Conv(r, w4, b4)
    s = Add(d, p)
    t = Relu(s)
    m = GlobalAveragePool(t)
    f = Flatten(m)
    y = Gemm<transB=1>(f, w5, b5)
}"""


def samples(count: int) -> np.ndarray:
    """Return pictures whose pixels have something to do with each other, `[count, 3, 8, 8]`."""
    generator = np.random.default_rng(3)
    waves = generator.standard_normal((count, 3, 2)) @ generator.standard_normal((2, 64))
    return (waves.reshape(count, 3, 8, 8) + 0.3 * generator.standard_normal((count, 3, 8, 8))).astype(np.float32)


def test_layers_make_up_for_those_before(parse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = parse(NET), samples(192)
    whole = open_session(model.SerializeToString(), threads=1).run({"x": data[96:]})[0]

    def error() -> tuple[float, list[str]]:
        small = lowbit.prune_channels(model, 0.5, data[:96], round_to=4, samples=96)
        found = open_session(serialize(small.model), threads=1).run({"x": data[96:]})[0]
        notes = [note for group in small.groups for note in group.notes]
        return float(np.square(whole - found).mean() / np.square(whole).mean()), notes

    with_sequence, notes = error()
    assert any("in sequence" in note for note in notes)
    monkeypatch.setattr(channel_compensation, "refit_in_sequence", lambda _trace, _gone, pruned, *_, **__: (pruned, {}))
    alone, notes = error()
    assert not any("in sequence" in note for note in notes)
    assert with_sequence < 0.85 * alone


def test_the_layers_behind_removed_channels(parse: Callable[..., Any]) -> None:
    model = clean(load_model(parse(NET))).model
    trace = trace_channels(model, observed_shapes(model, {"x": samples(1)}))
    groups = {len(group.units): group for group in find_groups(trace) if not group.reason}
    wide, shared = groups[24].units[:8], groups[16].units[:8]

    def names(removed: np.ndarray) -> list[str]:
        return [str(node.inputs[1].name) for node in layers_behind(trace, removed, remove_channels(trace, removed))]

    # What is left of the channels that the depthwise convolution reads is what it was.
    assert names(wide) == ["w4", "w5"]
    assert names(shared) == ["w2", "w3", "w4", "w5"]
    assert names(np.array([], np.int64)) == []


def test_a_residual_is_fitted_as_far_as_damping_lets_it() -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((500, 6))
    lacking = generator.standard_normal((6, 3))
    moments, residual = x.T @ x / 500, x.T @ (x @ lacking) / 500
    np.testing.assert_allclose(refit_residual(moments, residual, damping=1e-9), lacking, rtol=1e-6)
    assert np.abs(refit_residual(moments, residual, damping=1.0)).sum() < 0.7 * np.abs(lacking).sum()
