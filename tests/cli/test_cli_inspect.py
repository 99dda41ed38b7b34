"""`lowbit inspect`, and the verb behind it, on files of lowbit and of the engine's own tool."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from lowbit.graph import load_model
from lowbit.methods.inspect import inspect
from lowbit.plan.embedded import embed_plan
from lowbit.plan.plan import Plan


def executions(found) -> dict[str, list[tuple[str, str | None, str | None]]]:
    rows: dict[str, list[tuple[str, str | None, str | None]]] = {}
    for operator in found.operators:
        rows.setdefault(operator.op_type, []).append((operator.execution, operator.weights, operator.activations))
    return rows


def quantized(lowbit, *options: str) -> str:
    command = ("quantize", "net.onnx", "--data", "data.npz", "-o", "a.onnx", "--time", "0", "--quiet")
    done = lowbit(*command, *options)
    assert done.status == 0, done.err
    return "a.onnx"


def test_a_float_model(folder, lowbit):
    found = inspect("net.onnx")
    assert found.opsets == {"ai.onnx": 13}
    assert [str(info) for info in found.inputs] == ["x float32 [N, 8, 16, 16]"]
    assert [str(info) for info in found.outputs] == ["scores float32 [N, 10]"]
    assert found.parameters == sum(int(np.prod(shape)) for shape in SHAPES)
    assert found.bytes == (folder / "net.onnx").stat().st_size
    assert found.quantized == ()
    done = lowbit("inspect", "net.onnx")
    assert done.status == 0, done.err
    assert "Nothing is quantized" in done.out
    assert "4 × Conv" not in done.out
    assert "3 × Conv" in done.out


SHAPES = [(32, 8, 3, 3), (32,), (64, 32, 3, 3), (64,), (32, 64, 1, 1), (32,), (10, 32), (10,)]


def test_a_static_artifact(folder, lowbit):
    found = inspect(quantized(lowbit, "--method", "static"))
    assert executions(found)["Conv"] == [("static", "int8:per-channel", "uint8")] * 3
    assert executions(found)["Gemm"][0][0] == "static"
    assert executions(found)["Add"] == [("static", None, "uint8")]
    assert found.integer_kernels >= 4
    assert found.kernels["QLinearConv"] == 3
    assert found.conversions["QuantizeLinear"] >= 1
    done = lowbit("inspect", "a.onnx", "--details")
    assert "QLinearConv" in done.out
    assert "int8:per-channel" in done.out


def test_an_excluded_operator_is_told(folder, lowbit):
    found = inspect(quantized(lowbit, "--method", "static", "--exclude", "op:Gemm"))
    (gemm,) = (operator for operator in found.operators if operator.op_type == "Gemm")
    assert gemm.execution == "float"
    assert gemm.reason == "excluded by 'op:Gemm'"


def test_a_dynamic_artifact(folder, lowbit):
    found = inspect(quantized(lowbit, "--method", "dynamic"))
    rows = executions(found)
    products = rows.get("MatMulInteger", []) + rows.get("DynamicQuantizeMatMul", [])
    assert [row[0] for row in products] == ["dynamic"]
    assert products[0][1].startswith("int8")
    # What belongs to the integer product is not shown as operators of its own.
    assert "Cast" not in rows
    assert "Mul" not in rows


@pytest.mark.parametrize("weights", ["int8:per-channel", "int8:per-tensor", "int4:per-channel", "float16"])
def test_weight_only_artifacts(folder, lowbit, weights):
    found = inspect(quantized(lowbit, "--method", "weight-only", "--weights", weights))
    stored = [row for row in executions(found)["Conv"] if row[0] == "weight-only"]
    assert stored
    assert {row[1] for row in stored} == {weights.removesuffix(":per-tensor")}
    assert weights.split(":")[0] in {row.dtype for row in found.stored}
    assert not {"Cast", "Sub", "Reshape"} & set(executions(found))


@pytest.mark.parametrize("rows", [4, 64])
def test_weights_in_blocks(folder, lowbit, rows):
    """Few rows are decoded in the kernel, many at load time: two ways to store the same format."""
    graph = f"g (float[{rows}, 128] x) => (float[{rows}, 64] y) {{ y = MatMul (x, w) }}"
    text = '<ir_version: 8, opset_import: ["": 13]>' + graph
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, "net.onnx")
    np.savez("data.npz", x=rng.standard_normal((4 * rows, 128)).astype(np.float32))
    found = inspect(quantized(lowbit, "--method", "weight-only", "--weights", "int4:block=32"))
    assert executions(found) == {"MatMul": [("weight-only", "int4:block=32", None)]}


def test_a_file_of_the_engines_own_tool(folder, lowbit):
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic("net.onnx", "theirs.onnx")
    rows = executions(inspect("theirs.onnx"))
    assert [row[0] for row in rows["ConvInteger"]] == ["dynamic"] * 3
    assert lowbit("inspect", "theirs.onnx").status == 0


def test_a_plan_in_the_metadata_gives_the_reasons(folder, lowbit):
    import yaml

    quantized(lowbit, "--method", "static", "--save-plan", "plan.yaml")
    model = load_model("a.onnx")
    plan = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    embed_plan(model, Plan.from_dict(plan))
    found = inspect(model)
    assert found.plan is not None
    assert found.as_plan().target == plan["target"]


def test_a_file_that_the_engine_refuses_is_still_described(folder, lowbit):
    text = (
        '<ir_version: 8, opset_import: ["": 13, "made.up": 1]> g (float[4] x) => (float[4] y) { y = made.up.Magic (x) }'
    )
    onnx.save(onnx.parser.parse_model(text), "magic.onnx")
    done = lowbit("inspect", "magic.onnx")
    assert done.status == 0
    assert "it does not load this file" in done.out
    assert inspect("magic.onnx").kernels is None


def test_packed_types_are_counted_packed(folder):
    model = onnx.load("net.onnx")
    packed = onnx.helper.make_tensor("w4", onnx.TensorProto.INT4, [3, 5], list(range(-7, 8)))
    model.graph.initializer.append(packed)
    model.opset_import[0].version = 21
    model.ir_version = 10
    row = next(row for row in inspect(model, engine=False).stored if row.dtype == "int4")
    assert (row.tensors, row.elements, row.bytes) == (1, 15, 8)
