"""Second moments of what kernels sum, and plans whose weights are rounded by them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import observed_shapes
from lowbit.methods.decide import decide, make_plan
from lowbit.methods.rerounding import roundings
from lowbit.methods.second_moments import input_rows, second_moments
from lowbit.methods.weights import kernel_matrix
from lowbit.plan.packed import pack_steps, unpack_steps
from lowbit.plan.plan import Plan
from lowbit.plan.sites import find_sites
from lowbit.rounding import hazards
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = find_target("onnxruntime-x86-avx2")
OPERATORS = {
    "conv": "g (float[2,6,9,11] x, float[8,6,3,3] w) => (float[a,b,c,d] y) { y = Conv(x, w) }",
    "padded": "g (float[2,6,9,11] x, float[8,6,3,3] w) => (float[a,b,c,d] y) { y = Conv<pads=[1,2,0,1]>(x, w) }",
    "strided": "g (float[2,6,9,11] x, float[8,6,3,5] w) => (float[a,b,c,d] y) { y = Conv<strides=[2,3]>(x, w) }",
    "dilated": "g (float[2,6,9,11] x, float[8,6,3,3] w) => (float[a,b,c,d] y) { y = Conv<dilations=[2,3]>(x, w) }",
    "grouped": "g (float[2,6,9,11] x, float[8,3,3,3] w) => (float[a,b,c,d] y) { y = Conv<group=2>(x, w) }",
    "depthwise": "g (float[2,6,9,11] x, float[6,1,3,3] w) => (float[a,b,c,d] y) { y = Conv<group=6>(x, w) }",
    "same-upper": """g (float[2,6,9,11] x, float[8,6,4,3] w) => (float[a,b,c,d] y) {
        y = Conv<auto_pad="SAME_UPPER">(x, w) }""",
    "same-lower": """g (float[2,6,9,11] x, float[8,6,4,3] w) => (float[a,b,c,d] y) {
        y = Conv<auto_pad="SAME_LOWER">(x, w) }""",
    "one-dimension": "g (float[2,6,19] x, float[8,6,5] w) => (float[a,b,c] y) { y = Conv<pads=[2,2]>(x, w) }",
    "matmul": "g (float[2,7,12] x, float[12,5] w) => (float[a,b,c] y) { y = MatMul(x, w) }",
    "gemm": "g (float[9,12] x, float[12,5] w) => (float[a,b] y) { y = Gemm(x, w) }",
    "gemm-transposed": "g (float[9,12] x, float[5,12] w) => (float[a,b] y) { y = Gemm<transB=1>(x, w) }",
}


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_times_weights_are_the_outputs(name: str, parse: Callable) -> None:
    proto = parse(OPERATORS[name])
    model = load_model(proto)
    (site,) = find_sites(model, TARGET)
    shape = [int(dim) for dim in model.graph.inputs[0].shape]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = open_session(serialize(model)).run({"x": x})[0]
    rows = input_rows(site, x, 10**6, np.random.default_rng(0))
    matrix = kernel_matrix(site, site.weight_array())
    groups = rows.shape[1]
    found = np.einsum("rgk,kgn->rgn", rows, matrix.reshape(len(matrix), groups, -1)).reshape(len(rows), -1)
    if site.op_type == "Conv":
        expected = np.moveaxis(expected, 1, -1)
    np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4)


def test_moments_are_those_of_all_rows(parse: Callable) -> None:
    proto = parse(OPERATORS["grouped"])
    model = load_model(proto)
    sites = find_sites(model, TARGET)
    generator = np.random.default_rng(1)
    feeds = [{"x": generator.standard_normal((2, 6, 9, 11)).astype(np.float32) + 2} for _ in range(3)]
    rows = np.concatenate([input_rows(sites[0], feed["x"], 10**6, generator) for feed in feeds]).astype(np.float64)
    for centred in (True, False):
        found = second_moments(model, sites, feeds, rows=10**6, centred=centred)[sites[0].path]
        seen = rows - rows.mean(axis=0) * centred
        expected = np.einsum("rgk,rgl->gkl", seen, seen) / len(rows)
        share = 27 / (27 + len(rows))
        expected = expected * (1 - share) + share * expected * np.eye(27)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_steps_survive_packing_and_belong_to_their_codes() -> None:
    generator = np.random.default_rng(0)
    steps = generator.integers(-2, 3, (40, 7)).astype(np.int8)
    base = generator.integers(-128, 128, (40, 7)).astype(np.int8)
    np.testing.assert_array_equal(unpack_steps(pack_steps(steps, base), base), steps)
    assert unpack_steps(pack_steps(steps, base), base + np.int8(1)) is None
    with pytest.raises(RecipeError, match="unreadable"):
        unpack_steps("!!", base)


def network() -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 8, 12, 12] x) => (float[N, 10] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv (b, w2, b2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            y = Gemm <transB = 1> (f, w3, b3)
        }
    """)
    generator = np.random.default_rng(0)
    shapes = {"w1": (32, 8, 3, 3), "b1": (32,), "w2": (64, 32, 1, 1), "b2": (64,), "w3": (10, 64), "b3": (10,)}
    for name, shape in shapes.items():
        array = (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def images(count: int = 24) -> list[dict[str, np.ndarray]]:
    """Return images whose channels and neighbours are alike, as those of cameras are."""
    generator = np.random.default_rng(1)
    result = []
    for _ in range(count):
        coarse = generator.standard_normal((1, 2, 4, 4)).repeat(3, axis=2).repeat(3, axis=3)
        mixed = np.einsum("cd,ndhw->nchw", generator.standard_normal((8, 2)), coarse)
        result.append({"x": (mixed + 0.05 * generator.standard_normal(mixed.shape)).astype(np.float32)})
    return result


def quantized(**options: object) -> lowbit.Result:
    return lowbit.quantize(network(), data=images(), target=TARGET.name, method="static", measure_seconds=0, **options)


def test_errors_cancel_at_the_outputs_of_inputs_never_seen() -> None:
    nearest, better = quantized(rounding="nearest"), quantized()
    assert all(site.rounding is None for site in nearest.plan.sites)
    rounded = {site.op_type for site in better.plan.sites if site.rounding is not None}
    assert rounded >= {"Conv"}
    model = clean(load_model(network())).model
    sites = [site for site in find_sites(model, TARGET) if site.op_type in {"Conv", "Gemm"}]
    fresh = second_moments(model, sites, images(64)[24:], rows=10**6)
    for site in sites:
        errors = []
        for result in (nearest, better):
            encoded = apply_plan(model, result.plan).weights[site.path].encoded
            wrong = kernel_matrix(site, encoded.decode()) - kernel_matrix(site, site.weight_array())
            errors.append(float(np.einsum("kn,kl,ln->", wrong, fresh[site.path][0], wrong)))
        # The last layer sees one row a sample: too few to learn much from, enough to lose nothing.
        assert errors[1] < 0.9 * errors[0] if site.op_type == "Conv" else errors[1] <= errors[0]
    sqnr = [result.verification.outputs[0].sqnr_simulated_db for result in (nearest, better)]
    assert sqnr[1] > sqnr[0]


def test_a_plan_holds_its_rounding() -> None:
    first = quantized()
    again = lowbit.quantize(network(), test_data=images(), plan=first.plan, target=TARGET.name, measure_seconds=0)
    assert serialize(again.model) == serialize(first.model)
    assert serialize(quantized().model) == serialize(first.model)


def test_rounding_of_other_codes_is_left_out_with_a_note() -> None:
    first = quantized()
    model = clean(load_model(network())).model
    sites = tuple(
        dataclasses.replace(site, weights="int8:per-tensor") if site.weights else site for site in first.plan.sites
    )
    applied = apply_plan(model, dataclasses.replace(first.plan, sites=sites))
    notes = [note for site in applied.plan.sites for note in site.notes]
    expected = sum(site.rounding is not None for site in first.plan.sites)
    assert sum("the plan's rounding does not fit" in note for note in notes) == expected > 0


def test_steps_to_codes_that_would_saturate_are_refused() -> None:
    first = quantized()
    model = clean(load_model(network())).model
    applied = apply_plan(model, first.plan)
    path = next(site.path for site in find_sites(model, TARGET) if site.op_type == "Gemm")
    site = next(site for site in find_sites(model, TARGET) if site.path == path)
    plain = apply_plan(
        model,
        dataclasses.replace(
            first.plan, sites=tuple(dataclasses.replace(entry, rounding=None) for entry in first.plan.sites)
        ),
    )
    codes = kernel_matrix(site, plain.weights[path].encoded.codes)
    steps = np.clip(127 - codes.astype(np.int16), -128, 127).astype(np.int8)
    forged = tuple(
        dataclasses.replace(entry, rounding=pack_steps(steps, codes)) if entry.node == path else entry
        for entry in first.plan.sites
    )
    with pytest.raises(RecipeError, match="codes that the kernel does not take"):
        apply_plan(model, dataclasses.replace(first.plan, sites=forged))
    assert applied.weights[path].encoded.codes.shape == plain.weights[path].encoded.codes.shape


def test_what_cannot_be_rerounded_is_left_alone() -> None:
    first = quantized(rounding="nearest")
    model = clean(load_model(network())).model
    found = roundings(model, find_sites(model, TARGET), first.plan, TARGET, images())
    static = {site.node for site in first.plan.sites if site.execution == "static" and site.weights is not None}
    assert set(found) == static
    assert all(
        found[path].execution == "static" and found[path].weights == first.plan.site(path).weights for path in found
    )
    assert roundings(model, (), first.plan, TARGET, images()) == {}


STORED = {
    "matmul": "g (float[N,7,32] x, float[32,12] w1, float[12] b1) => (float[N,7,12] y) {"
    " h = MatMul(x, w1) y = Add(h, b1) }",
    "gemm": "g (float[N,32] x, float[12,32] w1) => (float[N,12] y) { y = Gemm<transB=1>(x, w1) }",
    "conv": "g (float[N,4,9,9] x, float[16,4,3,3] w1) => (float[N,16,7,7] y) { y = Conv(x, w1) }",
    "grouped": "g (float[N,8,9,9] x, float[16,4,3,3] w1) => (float[N,16,7,7] y) { y = Conv<group=2>(x, w1) }",
}


def alike(proto: onnx.ModelProto, count: int, seed: int = 5) -> list[dict[str, np.ndarray]]:
    """Return inputs of which few directions carry most of the energy, the same whatever the seed."""
    (value,) = proto.graph.input
    shape = [dim.dim_value or 8 for dim in value.type.tensor_type.shape.dim]
    axis = 1 if len(shape) == 4 else -1
    width = shape[axis]
    mixing = np.random.default_rng(9).standard_normal((width, width)) * np.geomspace(2, 0.05, width)
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        raw = np.moveaxis(generator.standard_normal(shape), axis, -1) @ mixing.T + 0.5
        result.append({value.name: np.moveaxis(raw, -1, axis).astype(np.float32)})
    return result


def stored(proto: onnx.ModelProto, weights: str, rounding: str) -> lowbit.Result:
    return lowbit.quantize(
        proto,
        data=alike(proto, 40),
        test_data=alike(proto, 4, seed=6),
        target=TARGET.name,
        method="weight-only",
        optimize="size",
        weights=weights,
        rounding=rounding,
        measure_seconds=0,
    )


def output_error_of(result: lowbit.Result, proto: onnx.ModelProto) -> float:
    """Return the mean squared error of the artifact on inputs that calibration has not seen."""
    sessions = [open_session(serialize(model)) for model in (load_model(proto), result.model)]
    wrong = []
    for feed in alike(proto, 8, seed=7):
        expected, found = (session.run(feed)[0] for session in sessions)
        wrong.append(np.mean((found - expected) ** 2))
    return float(np.mean(wrong))


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(
    "weights", ["int4:block=16", "int4:per-channel", "uint4:block=8", "uint4:per-channel", "int2:per-channel", "int8"]
)
def test_weights_that_are_only_stored_are_rounded_by_their_outputs(name: str, weights: str, parse: Callable) -> None:
    proto = parse(STORED[name])
    results = {kind: stored(proto, weights, kind) for kind in ("nearest", "compensated", "gptq")}
    errors = {kind: output_error_of(result, proto) for kind, result in results.items()}
    assert errors["compensated"] < errors["nearest"]
    assert errors["gptq"] < 0.7 * errors["nearest"]
    (site,) = (site for site in results["gptq"].plan.sites if site.weights is not None)
    assert site.execution == "weight-only"
    assert site.rounding is not None
    assert any("by gptq rounding" in note for note in site.notes)
    model = clean(load_model(proto)).model
    again = apply_plan(model, Plan.from_dict(results["gptq"].plan.to_dict()))
    assert serialize(again.model) == serialize(results["gptq"].model)


def test_without_data_stored_weights_are_rounded_to_nearest_with_a_note(parse: Callable) -> None:
    proto = parse(STORED["matmul"])
    options = {"method": "weight-only", "optimize": "size", "weights": "int4:block=16", "rounding": "gptq"}
    for data in ({}, {"test_data": alike(proto, 4)}):
        result = lowbit.quantize(proto, target=TARGET.name, measure_seconds=0, **data, **options)
        (site,) = (site for site in result.plan.sites if site.weights is not None)
        assert site.rounding is None
        assert "rounded to nearest: gptq needs calibration data" in site.notes


def test_nearest_is_kept_where_it_is_better_on_what_was_held_out(parse: Callable) -> None:
    # Three samples of four show inputs that are all alike, the fourth shows that they are not.
    proto = parse(STORED["gemm"])
    generator = np.random.default_rng(0)
    feeds = []
    for index in range(40):
        alone = generator.standard_normal((8, 1)) * np.ones(32)
        sign = 1 if index % 4 != 3 else np.resize([1, -1], 32)
        feeds.append({"x": (alone * sign).astype(np.float32)})
    model = clean(load_model(proto)).model
    sites = find_sites(model, TARGET)
    recipe = lowbit.Recipe(method="weight-only", optimize="size", weights="int4:per-channel", bias_correction=False)
    shapes = observed_shapes(model, feeds[0])
    plan = make_plan(model, sites, recipe, TARGET, decide(sites, recipe, TARGET, shapes), None, shapes)
    for kind in ("compensated", "gptq"):
        (found,) = roundings(model, sites, plan, TARGET, feeds, kind=kind).values()
        assert found.steps is None
        assert f"rounded to nearest, where {kind} has" in found.note


def test_sites_that_share_a_weight_share_its_codes(parse: Callable) -> None:
    proto = parse("""g (float[N,16] x, float[16,16] w1) => (float[N,16] y) {
        a = MatMul(x, w1) b = Tanh(a) y = MatMul(b, w1) }""")
    result = stored(proto, "int4:per-channel", "gptq")
    first, second = (site.rounding for site in result.plan.sites if site.weights is not None)
    assert first == second is not None
    assert len([name for name in result.model.graph.initializers if name.endswith("_codes")]) == 1


def test_gptq_keeps_the_pairs_of_saturating_kernels() -> None:
    saturating = find_target("onnxruntime-x86-avx2")
    assert saturating.saturates
    results = {kind: quantized(rounding=kind) for kind in ("nearest", "compensated", "gptq")}
    model = clean(load_model(network())).model
    sites = [site for site in find_sites(model, saturating) if site.op_type in {"Conv", "Gemm"}]
    fresh = second_moments(model, sites, images(64)[24:], rows=10**6)
    for site in sites:
        errors = {}
        for kind, result in results.items():
            encoded = apply_plan(model, result.plan).weights[site.path].encoded
            assert not hazards(kernel_matrix(site, encoded.codes)).any()
            wrong = kernel_matrix(site, encoded.decode()) - kernel_matrix(site, site.weight_array())
            errors[kind] = float(np.einsum("kn,kl,ln->", wrong, fresh[site.path][0], wrong))
        assert errors["gptq"] <= errors["nearest"]
