"""Few bits made up for: artifacts that run, plans that hold all of it, and findings that are undone where they hurt."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.formats import ELEMENTS
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.inspect import inspect
from lowbit.plan.recipe import Recipe, Rule
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.plan import Plan

TARGET = "onnxruntime-x86-avx2"
TEXT = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (int64[N, 8] ids) => (float[N, 8, 10] y) {
        e = Gather (table, ids)
        h = MatMul (e, w1)
        a = Add (h, b1)
        r = Relu (a)
        y = MatMul (r, w2)
    }
"""
CONVOLUTIONS = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 32, 8, 8] x) => (float[N, 10] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
        r = Relu (a)
        c = Conv <group = 64> (r, wd, bd)
        p = GlobalAveragePool (c)
        f = Flatten (p)
        y = Gemm <transB = 1> (f, w2, b2)
    }
"""
SHAPES = {"table": (128, 64), "w1": (64, 128), "b1": (128,), "w2": (128, 10)}
CONV_SHAPES = {"w1": (64, 32, 3, 3), "b1": (64,), "wd": (64, 1, 3, 3), "bd": (64,), "w2": (128, 64), "b2": (128,)}


def model_of(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = generator.standard_t(4, shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return proto


def sentences(count: int = 48) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(1)
    return [{"ids": (128 * generator.random((1, 8)) ** 2).astype(np.int64)} for _ in range(count)]


def images(count: int = 48) -> list[dict[str, np.ndarray]]:
    """Return images whose channels are alike and of different power."""
    generator = np.random.default_rng(1)
    mixing = generator.standard_normal((32, 4)) * np.geomspace(0.05, 4, 32)[:, None]
    mixed = [np.einsum("cd,ndhw->nchw", mixing, generator.standard_normal((1, 4, 8, 8))) for _ in range(count)]
    return [{"x": (each + 0.05 * generator.standard_normal(each.shape)).astype(np.float32)} for each in mixed]


def quantized(proto: onnx.ModelProto, data: object, weights: str, **options: object) -> lowbit.Result:
    return lowbit.quantize(
        proto, data=data, target=TARGET, method="weight-only", weights=weights, measure_seconds=0, **options
    )


def language(weights: str, **options: object) -> lowbit.Result:
    return quantized(model_of(TEXT, SHAPES), sentences(), weights, optimize="size", **options)


def vision(weights: str, **options: object) -> lowbit.Result:
    return quantized(model_of(CONVOLUTIONS, CONV_SHAPES), images(), weights, optimize="size", **options)


def notes(result: lowbit.Result) -> list[str]:
    return [note for site in result.plan.sites for note in site.notes]


@pytest.mark.parametrize(
    "weights",
    [
        *(f"{each.name}:per-channel" for each in ELEMENTS.values() if each.levels),
        *("int2:block=32", "nf4:block=64", "nf2:block=32", "codebook4:block=32", "codebook16", "pot4"),
    ],
)
@pytest.mark.parametrize("make", [language, vision])
def test_artifacts_run_as_their_codes_say(make: Callable[..., lowbit.Result], weights: str) -> None:
    result = make(weights, rounding="nearest")
    stored = [site for site in result.plan.sites if site.execution == "weight-only"]
    assert len(stored) == 3
    # Weights as decoded, in the float model.
    model = clean(load_model(model_of(TEXT, SHAPES) if make is language else model_of(CONVOLUTIONS, CONV_SHAPES))).model
    applied = apply_plan(model, result.plan)
    decoded = model.clone()
    for weight in applied.weights.values():
        decoded.graph.initializers[weight.name].const_value = ir.tensor(weight.encoded.decode(), name=weight.name)
    feed = (sentences() if make is language else images())[0]
    artifact = open_session(serialize(apply_plan(model, _uncorrected(result.plan)).model)).run(feed)[0]
    expected = open_session(serialize(decoded)).run(feed)[0]
    # The engine's block-wise kernel rounds its inputs to 8 bits.
    in_kernel = any(site.decode == "kernel" for site in stored)
    np.testing.assert_allclose(artifact, expected, atol=(0.03 if in_kernel else 1e-4) * np.abs(expected).max())
    assert serialize(apply_plan(model, result.plan).model) == serialize(result.model)


def _uncorrected(plan: Plan) -> Plan:
    return dataclasses.replace(plan, sites=tuple(dataclasses.replace(site, input_mean=None) for site in plan.sites))


@pytest.mark.parametrize(
    "weights",
    [
        "nf2:block=32",
        "nf3:per-channel",
        "pot4:per-tensor",
        "apot4:per-channel",
        "codebook8:block=32",
        "codebook4:per-tensor",
        "int2:block=32",
    ],
)
@pytest.mark.parametrize("make", [language, vision])
def test_inspection_names_the_format(make: Callable[..., lowbit.Result], weights: str) -> None:
    plain, corrected = make(weights, rounding="nearest"), make(weights, outliers=0.01, low_rank=2)
    for result in (plain, corrected):
        found = {site.node: site for site in inspect(result.model, engine=False).operators}
        for site in result.plan.sites:
            if site.execution == "weight-only":
                assert found[site.node].execution == "weight-only"
                fallen = any("per channel instead" in note for note in site.notes)
                expected = (
                    f"{weights.split(':', maxsplit=1)[0]}:per-channel"
                    if fallen
                    else weights.removesuffix(":per-tensor")
                )
                assert found[site.node].weights == expected


def test_what_helps_is_kept_and_noted() -> None:
    for make in (language, vision):
        plain = make("int2:per-channel", rounding="nearest")
        helped = make("int2:per-channel", rounding="nearest", outliers=0.02, low_rank=8)
        said = [note for note in notes(helped) if " -> " in note]
        assert any("20 ‰ of outliers kept apart" in note for note in said)
        assert any("by a product of rank 8" in note for note in said)
        quality = [each.verification.outputs[0].sqnr_simulated_db for each in (plain, helped)]
        assert quality[1] > quality[0] + 2


def test_levels_are_learned_by_the_inputs() -> None:
    # Inputs of one channel in eight matter a hundred times more than the others.
    generator = np.random.default_rng(3)
    power = np.where(np.arange(64) % 8, 0.1, 10.0)
    data = [{"x": (generator.standard_normal((32, 64)) * power).astype(np.float32)} for _ in range(24)]
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 64] x) => (float[N, 128] y) { y = MatMul (x, w1) }"""
    proto = model_of(text, {"w1": (64, 128)})
    learned = quantized(proto, data, "codebook8", rounding="nearest")
    blind = quantized(proto, None, "codebook8", rounding="nearest")
    (site,) = learned.plan.sites
    assert site.codebook is not None
    assert "by levels learned by the inputs" in site.notes[0]
    assert blind.plan.sites[0].codebook is None
    assert "both need calibration data" in blind.plan.sites[0].notes[0]
    again = lowbit.quantize(proto, test_data=data, plan=blind.plan, target=TARGET, measure_seconds=0)
    quality = [each.verification.outputs[0].sqnr_simulated_db for each in (again, learned)]
    assert quality[1] > quality[0] + 1


def test_what_does_not_help_is_undone() -> None:
    # A residual without any structure under inputs without any: rank 1 of 128 takes away next to nothing.
    generator = np.random.default_rng(3)
    data = [{"x": generator.standard_normal((32, 128)).astype(np.float32)} for _ in range(24)]
    text = """<ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 128] x) => (float[N, 256] y) { y = MatMul (x, w1) }"""
    proto = model_of(text, {"w1": (128, 256)})
    weight = onnx.numpy_helper.from_array(generator.uniform(-1, 1, (128, 256)).astype(np.float32), "w1")
    proto.graph.initializer[0].CopyFrom(weight)
    (site,) = quantized(proto, data, "int4:per-channel", low_rank=1, outliers=0.001).plan.sites
    assert (site.low_rank, site.outliers) == (None, None)
    assert sum("without" in note and "where it is" in note for note in site.notes) == 2


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("codebook8:per-channel", {}),
        ("codebook4:block=32", {"outliers": 0.01}),
        ("int2:block=32", {"low_rank": 4}),
        ("int2:block=32", {"outliers": 0.01, "low_rank": 4}),
        ("nf2:block=32", {"outliers": 0.01, "low_rank": 4, "rounding": "gptq"}),
    ],
)
@pytest.mark.parametrize("make", [language, vision])
def test_a_plan_holds_all_of_it(
    make: Callable[..., lowbit.Result], weights: str, options: dict[str, object], tmp_path
) -> None:
    first = make(weights, **options)
    assert any(site.codebook or site.outliers or site.low_rank for site in first.plan.sites)
    first.save_plan(tmp_path / "plan.yaml")
    proto, data = (
        (model_of(TEXT, SHAPES), sentences()) if make is language else (model_of(CONVOLUTIONS, CONV_SHAPES), images())
    )
    again = lowbit.quantize(proto, test_data=data, plan=tmp_path / "plan.yaml", target=TARGET, measure_seconds=0)
    assert serialize(again.model) == serialize(first.model)
    assert serialize(make(weights, **options).model) == serialize(first.model)
    # What the engine computes is what was planned, whether corrections are folded or stand beside the kernel.
    output = first.verification.outputs[0]
    assert output.sqnr_real_db == pytest.approx(output.sqnr_simulated_db, abs=0.5)


@pytest.mark.parametrize("gemm", [False, True])
def test_a_product_stands_beside_a_weight_that_the_kernel_decodes(gemm: bool) -> None:
    generator = np.random.default_rng(3)
    mixing = generator.standard_normal((8, 64))
    data = [{"x": (generator.standard_normal((1, 8)) @ mixing).astype(np.float32)} for _ in range(40)]
    operator = "Gemm <transB = 1> (x, w1, b1)" if gemm else "MatMul (x, w1)"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[1, 64] x) => (float[1, 128] y) {{ y = {operator} }}"""
    proto = model_of(text, {"w1": (128, 64) if gemm else (64, 128), "b1": (128,)})
    result = quantized(proto, data, "int2:block=32", low_rank=8, rounding="nearest")
    (site,) = result.plan.sites
    assert (site.decode, site.low_rank is not None) == ("kernel", True)
    operators = [node.op_type for node in result.model.graph]
    assert operators.count("MatMul") == (2 if gemm else 3)
    assert [value.name for value in result.model.graph.outputs] == ["y"]
    plain = quantized(proto, data, "int2:block=32", rounding="nearest")
    quality = [each.verification.outputs[0].sqnr_simulated_db for each in (plain, result)]
    assert quality[1] > quality[0] + 3


def test_plans_with_corrections_of_another_weight_are_refused() -> None:
    model = clean(load_model(model_of(TEXT, SHAPES))).model
    plan = language("codebook4:block=32", outliers=0.01, low_rank=2).plan
    first, second = (site for site in plan.sites if site.low_rank is not None or site.outliers is not None)
    for name in ("outliers", "low_rank", "codebook"):
        value = getattr(first, name)
        if value is None:
            continue
        forged = tuple(
            dataclasses.replace(site, **{name: value}) if site.node == second.node else site for site in plan.sites
        )
        if name != "outliers":  # positions fit any larger weight
            with pytest.raises(RecipeError, match="another"):
                apply_plan(model, dataclasses.replace(plan, sites=forged))
    broken = tuple(dataclasses.replace(site, low_rank="!!") if site is first else site for site in plan.sites)
    with pytest.raises(RecipeError, match="unreadable"):
        apply_plan(model, dataclasses.replace(plan, sites=broken))


def test_a_plan_that_multiplies_indices_is_refused() -> None:
    proto = model_of(CONVOLUTIONS, CONV_SHAPES)
    plan = lowbit.quantize(proto, data=images(), target=TARGET, method="static", measure_seconds=0).plan
    sites = tuple(dataclasses.replace(site, weights="nf4:per-channel") if site.weights else site for site in plan.sites)
    with pytest.raises(RecipeError, match="indices of levels"):
        apply_plan(clean(load_model(proto)).model, dataclasses.replace(plan, sites=sites))


@pytest.mark.parametrize(
    "values",
    [
        {"activations": "nf4"},
        {"weights": "nf4", "method": "static"},
        {"weights": "codebook16:per-channel", "method": "dynamic"},
        {"weights": "nf4", "activations": "uint8"},
        {"weights": "nf4", "activations": "dynamic"},
        {"method": "static", "rules": (Rule(pattern="*", weights="pot4"),)},
        {"rules": (Rule(pattern="*", weights="pot4", method="dynamic"),)},
    ],
)
def test_codebooks_are_for_weights_under_float_operators(values: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="indices of levels"):
        Recipe(**values)


def test_recipes_that_ask_for_codebooks_where_they_may_be() -> None:
    Recipe(weights="nf4")
    Recipe(weights="nf4", activations="none")
    Recipe(method="static", rules=(Rule(pattern="*", weights="nf4", method="weight-only"),))
    for values, said in (({"outliers": 0.2}, "outliers"), ({"low_rank": -1}, "low_rank"), ({"low_rank": 1.5}, "rank")):
        with pytest.raises(RecipeError, match=said):
            Recipe(**values)


def test_a_rule_gives_codebooks_to_some_operators_of_an_automatic_plan() -> None:
    proto = model_of(CONVOLUTIONS, CONV_SHAPES)
    rules = [{"pattern": "op:Conv", "weights": "nf4:per-channel"}]
    result = lowbit.quantize(proto, data=images(), target=TARGET, rules=rules, optimize="size", measure_seconds=0)
    kinds = {site.op_type: site.execution for site in result.plan.sites if site.weights is not None}
    assert kinds["Conv"] == "weight-only"


def test_recurrent_weights_are_looked_up_too(parse: Callable) -> None:
    proto = parse(
        "g (float[6,1,16] x, float[1,128,16] w, float[1,128,32] wr) => (float[a,b,c,d] y) "
        "{ y = LSTM<hidden_size=32>(x, w, wr) }"
    )
    data = [{"x": np.random.default_rng(index).standard_normal((6, 1, 16)).astype(np.float32)} for index in range(8)]
    for weights in ("nf4:per-channel", "codebook16:block=16"):
        result = quantized(proto, data, weights, optimize="size")
        assert [site.execution for site in result.plan.sites] == ["weight-only"]
        assert result.verification.outputs[0].sqnr_real_db > 15


@pytest.mark.parametrize("make", [language, vision])
@pytest.mark.parametrize("weights", ["nf4:block=32", "apot4:per-channel", "codebook16", "nf2:per-channel"])
def test_codes_of_levels_are_rounded_so_that_errors_cancel(make: Callable[..., lowbit.Result], weights: str) -> None:
    """Noise at the output falls, plans give the same bytes, and random data round to nearest."""
    nearest, better = (make(weights, rounding=kind) for kind in ("nearest", "gptq"))
    gained = [note for note in notes(better) if "by gptq rounding" in note]
    assert gained
    assert better.verification.outputs[0].sqnr_real_db > nearest.verification.outputs[0].sqnr_real_db
    assert any(site.rounding for site in better.plan.sites)
    text = (TEXT, SHAPES) if make is language else (CONVOLUTIONS, CONV_SHAPES)
    again = apply_plan(clean(load_model(model_of(*text))).model, better.plan)
    assert serialize(again.model) == serialize(better.model)


def test_learned_levels_need_no_blocks() -> None:
    bare = language("codebook16", rounding="nearest")
    stored = [site.weights for site in bare.plan.sites if site.execution == "weight-only"]
    assert set(stored) == {"codebook16:per-channel"}
    assert {site.weights for site in language("nf4").plan.sites if site.weights} == {"nf4:block=32"}
