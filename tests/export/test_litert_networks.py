"""Whole networks, the file, and what is refused."""

from __future__ import annotations

import shutil
import struct
import subprocess
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import lowbit
from lowbit.cli.application import application
from lowbit.exceptions import EngineError, ModelError, OutputError, RecipeError
from lowbit.exporters import FORMATS, find_format
from lowbit.runtime.litert_micro import run_micro
from lowbit.runtime.litert_session import litert_session

from .conftest import network, quantized, samples

if TYPE_CHECKING:
    from pathlib import Path

RESIDUAL = network(
    """net (float[N, 3, 24, 24] x) => (float[N, 7] y) {
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, stem, stem_bias)
        b = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (b, one, one_bias)
        d = Relu (c)
        e = Conv <pads = [1, 1, 1, 1]> (d, two, two_bias)
        f = Add (b, e)
        g = Relu (f)
        h = Conv (g, expand, expand_bias)
        i = Relu (h)
        j = Conv <pads = [1, 1, 1, 1], group = 32> (i, depthwise, depthwise_bias)
        k = Relu (j)
        l = Conv (k, project, project_bias)
        m = Add (g, l)
        p = GlobalAveragePool (m)
        q = Flatten (p)
        y = Gemm <transB = 1> (q, head, head_bias)
    }""",
    {
        "stem": (16, 3, 3, 3),
        "stem_bias": (16,),
        "one": (16, 16, 3, 3),
        "one_bias": (16,),
        "two": (16, 16, 3, 3),
        "two_bias": (16,),
        "expand": (32, 16, 1, 1),
        "expand_bias": (32,),
        "depthwise": (32, 1, 3, 3),
        "depthwise_bias": (32,),
        "project": (16, 32, 1, 1),
        "project_bias": (16,),
        "head": (7, 16),
        "head_bias": (7,),
    },
)
ENCODER = """net (float[1, 6, 16] x) => (float[1, 6, 16] y) {
    q = MatMul (x, wq) qb = Add (q, bq)
    k = MatMul (x, wk) kb = Add (k, bk)
    v = MatMul (x, wv) vb = Add (v, bv)
    q4 = Reshape (qb, heads) qt = Transpose <perm = [0, 2, 1, 3]> (q4)
    k4 = Reshape (kb, heads) kt = Transpose <perm = [0, 2, 3, 1]> (k4)
    v4 = Reshape (vb, heads) vt = Transpose <perm = [0, 2, 1, 3]> (v4)
    s = MatMul (qt, kt) scaled = Mul (s, half) p = Softmax <axis = -1> (scaled)
    o = MatMul (p, vt) ot = Transpose <perm = [0, 2, 1, 3]> (o) o3 = Reshape (ot, joined)
    a = MatMul (o3, wo) ab = Add (a, bo) r = Add (x, ab)
    f = MatMul (r, w1) fb = Add (f, b1)
    d = Div (fb, root) e = Erf (d) e1 = Add (e, one) g = Mul (fb, e1) gh = Mul (g, half)
    h = MatMul (gh, w2) hb = Add (h, b2) y = Add (r, hb)
}"""


def encoder() -> onnx.ModelProto:
    weights: dict[str, tuple[int, ...]] = {f"w{name}": (16, 16) for name in "qkvo"}
    weights |= {f"b{name}": (16,) for name in "qkvo"}
    weights |= {"w1": (16, 32), "b1": (32,), "w2": (32, 16), "b2": (16,)}
    proto = network(ENCODER, weights)
    numbers: dict[str, Any] = {
        "heads": np.array([1, 6, 4, 4], dtype=np.int64),
        "joined": np.array([1, 6, 16], dtype=np.int64),
        "half": np.float32(0.5),
        "one": np.float32(1),
        "root": np.float32(2**0.5),
    }
    for name, value in numbers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


@pytest.fixture(scope="module")
def residual() -> lowbit.Result:
    return quantized(RESIDUAL)


def test_a_residual_network_needs_no_transposition(residual: lowbit.Result) -> None:
    found = lowbit.export(residual.model, data=samples(RESIDUAL, 64, seed=5), samples=64)
    assert found.kernels == {
        "CONV_2D": 5,
        "DEPTHWISE_CONV_2D": 1,
        "PAD": 1,
        "ADD": 2,
        "MEAN": 1,
        "RESHAPE": 1,
        "FULLY_CONNECTED": 1,
    }
    assert found.float_kernels == 0
    fast, reference = found.agreements
    assert fast.largest <= 1
    assert fast.same_top1 is not None
    assert fast.same_top1 >= 0.995
    assert reference.sqnr_db > 30


def test_an_encoder_computes_in_integers() -> None:
    proto = encoder()
    found = lowbit.export(quantized(proto).model, data=samples(proto, 8, seed=5))
    assert found.float_kernels == 0
    assert found.kernels["BATCH_MATMUL"] == 2
    assert found.kernels["FULLY_CONNECTED"] == 6
    assert found.kernels["SOFTMAX"] == 1
    assert min(agreement.sqnr_db for agreement in found.agreements) > 25


def test_an_artifact_of_another_target_becomes_int8() -> None:
    """Codes of uint8 are int8 with another zero point: nothing is computed anew."""
    proto = network(
        "net (float[1, 4, 9, 9] x) => (float[1, 4, 9, 9] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (c) }",
        {"w": (4, 4, 3, 3), "b": (4,)},
    )
    result = lowbit.quantize(proto, data=samples(proto), target="onnxruntime-arm64", method="static", measure_seconds=0)
    assert {tensor.format for tensor in result.plan.activations} == {"uint8"}
    found = lowbit.export(result.model)
    assert found.kernels == {"CONV_2D": 1}
    assert max(agreement.largest for agreement in found.agreements) <= 1


def test_the_same_bytes_every_time(residual: lowbit.Result) -> None:
    assert lowbit.export(residual.model, samples=1).contents == lowbit.export(residual.model, samples=1).contents


def test_weights_are_aligned(residual: lowbit.Result) -> None:
    """The schema asks for 16 bytes; a microcontroller reads int32 biases in place."""
    from ai_edge_litert import schema_py_generated as schema

    data = lowbit.export(residual.model, samples=1).model
    assert data[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(data, 0)
    filled = [model.Buffers(index) for index in range(model.BuffersLength()) if model.Buffers(index).DataLength()]
    assert len(filled) > 10
    for buffer in filled:
        assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


@pytest.mark.parametrize("layout", ["nhwc", "keep"])
@pytest.mark.parametrize("io", ["int8", "float"])
def test_the_interface_is_the_one_asked_for(residual: lowbit.Result, layout: str, io: str) -> None:
    found = lowbit.export(residual.model, layout=layout, io=io)
    session = litert_session(found.model)
    (given,), (taken,) = session.interpreter.get_input_details(), session.interpreter.get_output_details()
    assert tuple(given["shape"]) == ((1, 24, 24, 3) if layout == "nhwc" else (1, 3, 24, 24))
    assert given["dtype"] == taken["dtype"] == (np.int8 if io == "int8" else np.float32)
    assert found.kernels.get("QUANTIZE", 0) == found.kernels.get("DEQUANTIZE", 0) == (io == "float")
    assert found.kernels.get("TRANSPOSE", 0) == (layout == "keep")
    assert found.float_kernels == 0
    assert found.agreements[0].largest <= 1
    assert (given["name"], taken["name"]) == ("x", "y")


def test_what_cannot_be_converted_is_named_before_anything_is_written(tmp_path: Path) -> None:
    proto = network(
        "net (float[1, 4, 8] x) => (float[1, 4, 8] y) "
        "{ a = MatMul (x, w) b = LogSoftmax <axis = -1> (a) c = MatMul (b, v) y = Relu (c) }",
        {"w": (8, 8), "v": (8, 8)},
    )
    result = quantized(proto)
    assert [site.op_type for site in result.plan.sites if site.execution == "float"] == ["LogSoftmax"]
    with pytest.raises(ModelError, match="no integer kernel for LogSoftmax"):
        lowbit.export(result.model, tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []


def test_a_float_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"float.*--target litert"):
        lowbit.export(RESIDUAL)


def test_open_sizes_are_taken_from_data() -> None:
    proto = network(
        "net (float[1, 3, H, W] x) => (float[1, 4, H, W] y) { c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (c) }",
        {"w": (4, 3, 3, 3), "b": (4,)},
    )
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 3, 6, 10)).astype(np.float32)} for i in range(8)]
    result = lowbit.quantize(proto, data=feeds, target="litert", measure_seconds=0)
    with pytest.raises(ModelError, match=r"shape \[1, 3, H, W\]"):
        lowbit.export(result.model)
    assert "int8 [1, 6, 10, 3]" in lowbit.export(result.model, data=feeds).interface[0]


def test_formats_are_found_by_suffix_or_name() -> None:
    for name, format_ in FORMATS.items():
        assert {find_format(f"a{suffix}").name for suffix in format_.suffixes} == {name}
    assert find_format("model.bin", "litert").name == "litert"
    with pytest.raises(RecipeError, match="no format"):
        find_format("model.bin")
    with pytest.raises(RecipeError, match="nothing"):
        find_format("model.tflite", "nothing")
    with pytest.raises(RecipeError, match="layout"):
        lowbit.export(RESIDUAL, layout="chw")


def test_the_command_writes_both_formats(residual: lowbit.Result, tmp_path: Path) -> None:
    source = tmp_path / "net.int8.onnx"
    residual.save(source)
    for name in ("net.tflite", "net.h"):
        done = CliRunner().invoke(application, ["export", str(source), "-o", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert "0 in float" in done.output
    header = (tmp_path / "net.h").read_text()
    data = (tmp_path / "net.tflite").read_bytes()
    assert f"net_len = {len(data)};" in header
    numbers = header[header.index("[] = {") + 6 : header.index("};")].replace(",", " ").split()
    assert bytes(int(number, 16) for number in numbers) == data


@pytest.mark.skipif(find_spec("tflite_micro") is None, reason="tflite-micro is not installed")
def test_the_arena_in_the_header_is_enough_and_no_less_is(residual: lowbit.Result, tmp_path: Path) -> None:
    found = lowbit.export(residual.model, tmp_path / "net.h")
    assert f"#define NET_ARENA_SIZE {found.arena}\n" in (tmp_path / "net.h").read_text()
    assert found.arena is not None
    feed = [[np.zeros((1, 24, 24, 3), dtype=np.int8)]]
    assert run_micro(found.model, feed, arena=found.arena).arena == found.arena
    with pytest.raises(EngineError, match="refuses"):
        run_micro(found.model, feed, arena=found.arena - 64)


@pytest.mark.parametrize(("compiler", "suffix"), [("gcc", "c"), ("g++", "cpp")])
def test_the_header_compiles(residual: lowbit.Result, tmp_path: Path, compiler: str, suffix: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    found = lowbit.export(residual.model, tmp_path / "7 net.h", samples=1)
    main = tmp_path / f"main.{suffix}"
    main.write_text(
        '#include "7 net.h"\n#include <stdint.h>\n#include <stdio.h>\n#include <string.h>\n'
        "int main(void) { uint32_t root; memcpy(&root, model_7_net, 4); "
        'printf("%u %u %u", model_7_net_len, (unsigned)((uintptr_t)model_7_net % 16), root); return 0; }\n'
    )
    subprocess.run([compiler, "-Wall", "-Werror", "-o", tmp_path / "main", main], check=True)
    printed = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True).stdout
    assert printed == f"{len(found.model)} 0 {struct.unpack('<I', found.model[:4])[0]}"


def test_a_path_that_cannot_be_written_is_refused(residual: lowbit.Result, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        lowbit.export(residual.model, tmp_path / "missing" / "net.tflite", samples=1)
