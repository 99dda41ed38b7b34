"""Bias correction without data: means of inputs that folded BatchNormalizations tell."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
import scipy.stats

import lowbit
from lowbit.graph import clean, load_model, serialize
from lowbit.graph.clean.normalized import normalized_of
from lowbit.graph.clean.values import set_constant
from lowbit.methods.equalize import equalize
from lowbit.methods.expected_inputs import clipped_normal, expected_mean
from lowbit.runtime.session import open_session

CHANNELS = 32


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (0.0, 6.0), (-np.inf, np.inf), (-np.inf, 1.0), (-1.0, 1.0)])
def test_clipped_normal_has_the_moments_of_its_density(bounds: tuple[float, float]) -> None:
    means, deviations = np.array([-3.0, 0.0, 0.4, 7.0, 2.0]), np.array([1.0, 0.5, 2.0, 3.0, 0.0])
    got = clipped_normal(means, deviations, *bounds)
    for mean, deviation, *found in zip(means, deviations, *got, strict=True):
        # A constant is its own quantiles.
        at = (np.arange(200_000) + 0.5) / 200_000
        values = np.clip(scipy.stats.norm.ppf(at, mean, deviation) if deviation else np.full(9, mean), *bounds)
        np.testing.assert_allclose(found, [values.mean(), values.std()], atol=2e-3)


def normalized(*, opset: int = 13, activation: str = "Relu (n)") -> onnx.ModelProto:
    """Return Conv, BatchNormalization, activation, Conv; standard normal inputs give the statistics that it holds."""
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : {opset}]>
        net (float[N, 16, 1, 1] x) => (float[N, {CHANNELS}, 1, 1] y) {{
            c = Conv (x, w)
            n = BatchNormalization (c, gamma, beta, mean, variance)
            r = {activation}
            y = Conv (r, v, b)
        }}""")
    for node, name in zip(proto.graph.node, ("first", "norm", "act", "second"), strict=True):
        node.name = name
    generator = np.random.default_rng(0)
    w = generator.standard_normal((CHANNELS, 16, 1, 1))
    arrays = {
        "w": w,
        "gamma": generator.uniform(0.5, 2, CHANNELS) * generator.choice([-1, 1], CHANNELS),
        "beta": generator.uniform(-1, 3, CHANNELS),
        "mean": np.zeros(CHANNELS),
        "variance": (w**2).sum(axis=(1, 2, 3)),
        "v": generator.standard_normal((CHANNELS, CHANNELS, 1, 1)),
        "b": np.zeros(CHANNELS),
    }
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


@pytest.mark.parametrize("activation", ["Relu (n)", "Identity (n)"])
def test_the_mean_error_vanishes_without_data(activation: str) -> None:
    proto = normalized(activation=activation)
    x = np.random.default_rng(1).standard_normal((20_000, 16, 1, 1)).astype(np.float32)
    wanted = open_session(proto.SerializeToString()).run({"x": x})[0].mean(axis=(0, 2, 3))
    errors = []
    for correct in (False, True):
        result = lowbit.quantize(
            proto,
            method="weight-only",
            weights="int4:per-channel",
            optimize="size",
            exclude=["first"],
            rounding="nearest",
            bias_correction=correct,
            target="onnxruntime-x86-avx2",
            measure_seconds=0,
        )
        assert [site.node for site in result.plan.sites if site.execution == "weight-only"] == ["second"]
        got = open_session(serialize(result.model)).run({"x": x})[0].mean(axis=(0, 2, 3))
        errors.append(np.abs(got - wanted).max())
    assert errors[1] < 0.1 * errors[0]


@pytest.mark.parametrize("opset", [11, 13])
def test_notes_survive_conversion_and_follow_equalization(opset: int) -> None:
    proto = normalized(opset=opset)
    model = clean(load_model(proto)).model
    x = np.random.default_rng(1).standard_normal((20_000, 16, 1, 1)).astype(np.float32)
    for each in (model, equalize(model).model):
        second = next(node for node in each.graph if node.name == "second")
        told = expected_mean(second.inputs[0])
        assert told is not None
        shown = onnx.load_from_string(serialize(each))
        shown.graph.output.append(onnx.helper.make_tensor_value_info(second.inputs[0].name, 1, None))
        measured = open_session(shown.SerializeToString()).run({"x": x})[1].mean(axis=(0, 2, 3))
        np.testing.assert_allclose(told, measured, rtol=0.05, atol=0.03)


def test_notes_of_other_weights_are_not_believed() -> None:
    model = clean(load_model(normalized())).model
    first = next(node for node in model.graph if node.name == "first")
    assert normalized_of(first) is not None
    set_constant(first.inputs[1], 2 * first.inputs[1].const_value.numpy())
    assert normalized_of(first) is None


def test_what_stands_in_front_has_to_be_known() -> None:
    model = clean(load_model(normalized(activation="Sigmoid (n)"))).model
    second = next(node for node in model.graph if node.name == "second")
    assert expected_mean(second.inputs[0]) is None
