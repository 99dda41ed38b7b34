"""The fusion contract: what is planned in integers runs in integers, and what does not is named with its cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from lowbit.exceptions import EngineError
from lowbit.methods.contract import contract, read_back
from lowbit.plan.sites import find_sites
from lowbit.runtime.kernels import INTEGER_KERNELS
from lowbit.targets import find_target

if TYPE_CHECKING:
    from lowbit.plan.plan import Plan
    from lowbit.plan.sites import Site
    from lowbit.plan.verification import SiteKernel

TARGET = find_target("onnxruntime-x86-avx2")

NET = """g (float[1,8,9,9] x, float[8,8,3,3] w1, float[8,8,1,1] w2, float[8,5] w3, float[5] b3) => (float[1,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(c)
    d = Conv(r, w2)
    s = Add(d, r)
    t = Sigmoid(s)
    m = MaxPool<kernel_shape=[3,3]>(t)
    p = GlobalAveragePool(m)
    f = Flatten(p)
    q = MatMul(f, w3)
    y = Add(q, b3)
}"""
ALL = ["Conv_0", "Conv_1", "Add_0", "Sigmoid_0", "MaxPool_0", "GlobalAveragePool_0", "Flatten_0", "MatMul_0"]

Quantized = Callable[..., tuple[ir.Model, "tuple[Site, ...]", "Plan"]]


@pytest.fixture
def quantized(parse: Callable, noise: Callable, build: Callable) -> Quantized:
    def call(text: str = NET, **options: object) -> tuple[ir.Model, tuple[Site, ...], Plan]:
        proto = parse(text)
        built = build(proto, noise(proto), **options)
        # Breaking an artifact must not reach what others hold.
        return built.applied.model.clone(), find_sites(built.model, TARGET), built.applied.plan

    return call


def rows(found: tuple[ir.Model, tuple[Site, ...], Plan]) -> dict[str, SiteKernel]:
    artifact, sites, plan = found
    result = contract(artifact, sites, plan)
    assert len({row.node for row in result}) == len(result)
    return {row.node: row for row in result}


def named(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def drop_quantizer_behind(model: ir.Model, name: str) -> None:
    """Let everything read an operator's float output, as if nobody had planned codes there."""
    (use,) = named(model, name).outputs[0].uses()
    assert use.node.op_type == "QuantizeLinear"
    for reader in use.node.outputs[0].uses():
        assert reader.node.op_type == "DequantizeLinear"
        reader.node.outputs[0].replace_all_uses_with(use.node.inputs[0])


def feed_in_float(model: ir.Model, name: str, index: int) -> None:
    """Let an operator read the float tensor before its codes, where everything else still reads codes."""
    node = named(model, name)
    decode = node.inputs[index].producer()
    assert decode.op_type == "DequantizeLinear"
    node.replace_input_with(index, decode.inputs[0].producer().inputs[0])


def test_a_sound_artifact_runs_as_planned(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    found = rows((artifact, sites, plan))
    assert list(found) == ALL
    assert all(row.integer and not row.cause and row.execution == "static" for row in found.values())
    assert all(row.op_type == next(site.op_type for site in sites if site.path == path) for path, row in found.items())
    integer = {path for path, row in found.items() if row.kernel in INTEGER_KERNELS}
    # Pools and reshapes read codes in kernels that are not integer by name.
    assert integer == set(ALL) - {"MaxPool_0", "Flatten_0"}


def test_dynamic_operators_run_as_planned(quantized: Quantized) -> None:
    found = rows(quantized(method="dynamic"))
    assert {path: row.kernel for path, row in found.items()} == {
        "Conv_0": "ConvInteger",
        "Conv_1": "ConvInteger",
        "MatMul_0": "DynamicQuantizeMatMul",
    }
    assert all(row.integer and row.execution == "dynamic" for row in found.values())


def test_what_was_not_planned_in_integers_is_not_asked_for(quantized: Quantized) -> None:
    assert rows(quantized(method="weight-only")) == {}
    artifact, sites, plan = quantized(exclude=["op:MaxPool"])
    found = rows((artifact, sites, plan))
    assert list(found) == [entry.node for entry in plan.sites if entry.execution == "static"]
    assert set(found) >= {"Conv_0", "Conv_1", "MatMul_0"}
    assert "MaxPool_0" not in found


def test_without_codes_at_its_output_a_convolution_is_reported(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    drop_quantizer_behind(artifact, "Conv_1")
    found = rows((artifact, sites, plan))
    broken = found["Conv_1"]
    assert not broken.integer
    assert broken.kernel == "Conv"
    assert broken.cause == "the engine runs it as Conv in float behind DequantizeLinear"
    # The Add reads one float now, and cannot be an integer kernel either; nobody else is hurt.
    assert {path for path, row in found.items() if not row.integer} == {"Conv_1", "Add_0"}
    assert "Add in float" in found["Add_0"].cause


def test_an_operand_in_float_is_reported(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    feed_in_float(artifact, "Add_0", 0)
    found = rows((artifact, sites, plan))
    assert not found["Add_0"].integer
    assert "Add in float" in found["Add_0"].cause
    assert found["Sigmoid_0"].integer


@pytest.mark.parametrize("path", ["Sigmoid_0", "GlobalAveragePool_0", "MaxPool_0"])
def test_an_operator_without_weights_in_float_is_reported(quantized: Quantized, path: str) -> None:
    artifact, sites, plan = quantized()
    node = named(artifact, path)
    # A function between decoding and the operator that the engine knows no integer kernel for.
    extra = ir.node("Neg", [node.inputs[0]], name="extra")
    extra.outputs[0].name = "extra"
    artifact.graph.insert_before(node, extra)
    node.replace_input_with(0, extra.outputs[0])
    drop_quantizer_behind(artifact, path)
    found = rows((artifact, sites, plan))
    assert not found[path].integer
    assert "in float behind DequantizeLinear" in found[path].cause
    before = ALL[: ALL.index(path)]
    assert all(found[name].integer for name in before)


def test_weights_without_codes_of_eight_bits_are_reported(quantized: Quantized) -> None:
    # Signed codes of fewer bits would be cast to int8 at load time and fuse; unsigned ones have no kernel.
    found = rows(quantized(weights="uint4"))
    weighted = {"Conv_0", "Conv_1", "MatMul_0"}
    assert {path for path, row in found.items() if not row.integer} == weighted
    for path in weighted:
        assert "in float behind DequantizeLinear" in found[path].cause


def test_something_between_codes_and_convolution_is_reported(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    node = named(artifact, "Conv_0")
    extra = ir.node("Tanh", [node.inputs[0]], name="extra")
    extra.outputs[0].name = "extra"
    artifact.graph.insert_before(node, extra)
    node.replace_input_with(0, extra.outputs[0])
    found = rows((artifact, sites, plan))
    assert not found["Conv_0"].integer
    assert "in float" in found["Conv_0"].cause
    assert all(row.integer for path, row in found.items() if path != "Conv_0")


def test_an_operator_that_is_not_in_the_artifact_is_reported(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    node = named(artifact, "Conv_1")
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    artifact.graph.remove(node, safe=True)
    found = rows((artifact, sites, plan))
    assert not found["Conv_1"].integer
    assert found["Conv_1"].cause == "no kernel of the engine holds its weight"


def test_an_artifact_that_does_not_load_is_a_typed_error(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    named(artifact, "Sigmoid_0").op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match="does not load"):
        contract(artifact, sites, plan)


def test_asking_changes_nothing(quantized: Quantized) -> None:
    artifact, sites, plan = quantized()
    names = [node.name for node in artifact.graph]
    first = contract(artifact, sites, plan)
    assert [node.name for node in artifact.graph] == names
    assert contract(artifact, sites, plan) == first


ISLANDS = {
    "conv": "b = Conv<pads=[1,1,1,1]>(a, w2)",
    "conv-relu": "e = Conv<pads=[1,1,1,1]>(a, w2)\n b = Relu(e)",
    "conv-clip": "e = Conv<pads=[1,1,1,1]>(a, w2)\n b = Clip(e, l, h)",
    "conv-relu-clip": "e = Conv<pads=[1,1,1,1]>(a, w2)\n f = Relu(e)\n b = Clip(f, l, h)",
    "conv-bias": "b = Conv<pads=[1,1,1,1]>(a, w2, b2)",
}


@pytest.mark.parametrize(
    "rule", [{"method": "float"}, {"method": "weight-only", "weights": "int8"}], ids=["float", "weights stored small"]
)
@pytest.mark.parametrize("island", ISLANDS)
def test_a_convolution_between_codes_stays_in_float_where_the_plan_says_so(
    parse: Callable, noise: Callable, build: Callable, rule: dict[str, str], island: str
) -> None:
    bias = ", float[24] b2" if "b2" in ISLANDS[island] else ""
    text = f"""g (float[1,24,9,9] x, float[24,24,3,3] w1, float[24,24,3,3] w2{bias}, float[24,24,3,3] w3)
        => (float[1,24,9,9] y) <float l = {{0.0}}, float h = {{6.0}}> {{
        a = Conv<pads=[1,1,1,1]>(x, w1)\n {ISLANDS[island]}\n y = Conv<pads=[1,1,1,1]>(b, w3)
    }}"""
    proto = parse(text)
    built = build(proto, noise(proto), rules=[{"pattern": "Conv_1", **rule}])
    assert [built.applied.plan.site(f"Conv_{i}").execution for i in range(3)] == ["static", rule["method"], "static"]
    kept, unasked = read_back(built.applied.model, find_sites(built.model, TARGET), built.applied.plan)
    assert [row.node for row in kept if row.integer and row.op_type == "Conv"] == ["Conv_0", "Conv_2"]
    assert unasked == ()
    ((_, real, simulated),) = built.run(noise(proto, count=1))
    # Two convolutions round their outputs; the one in the middle rounds nothing of its own.
    assert np.abs(real - simulated).max() <= built.step() * 1.01


def test_what_the_engine_quantizes_unasked_is_told(quantized: Quantized) -> None:
    text = """g (float[1,24,9,9] x, float[24,24,3,3] w1, float[24,24,3,3] w2, float[24,24,3,3] w3)
        => (float[1,24,9,9] y) {
        a = Conv<pads=[1,1,1,1]>(x, w1)\n b = Conv<pads=[1,1,1,1]>(a, w2)\n y = Conv<pads=[1,1,1,1]>(b, w3)
    }"""
    artifact, sites, plan = quantized(text, rules=[{"pattern": "Conv_1", "method": "float"}])
    keeper = next(node for node in artifact.graph if node.op_type == "LeakyRelu")
    read = keeper.inputs[0]
    assert read is not None
    keeper.outputs[0].replace_all_uses_with(read)
    artifact.graph.remove(keeper, safe=True)
    assert read_back(artifact, sites, plan)[1] == ("Conv_1",)
