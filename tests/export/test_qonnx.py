"""QONNX files in the executor of the `qonnx` package, whose own quantizer is the oracle of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import lowbit
from lowbit.cli.application import application
from lowbit.exceptions import ModelError
from lowbit.exporters.qonnx.quantizer import fitted, spanning

from .conftest import quantized, samples

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("qonnx", reason="the package qonnx is not installed")

DOMAIN = "qonnx.custom_op.general"


def parsed(body: str, *, opset: int = 21, **constants: Any) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {body}')
    for name, value in constants.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return proto


def exported(model: Any, **options: Any) -> tuple[lowbit.Exported, onnx.ModelProto]:
    found = lowbit.export(model, format="qonnx", **options)
    return found, onnx.ModelProto.FromString(found.contents)


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def widths(proto: onnx.ModelProto) -> list[float]:
    held = constants(proto)
    return [float(held[node.input[3]]) for node in proto.graph.node if node.op_type == "Quant"]


@given(
    bits=st.integers(2, 16),
    seed=st.integers(0, 2**31),
    signed=st.booleans(),
    channels=st.sampled_from([1, 5]),
)
def test_a_fitted_quantizer_gives_every_code_back(bits: int, seed: int, signed: bool, channels: int) -> None:
    from qonnx.custom_op.general.quant import quant

    generator = np.random.default_rng(seed)
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = generator.integers(lowest, highest, size=(5, 7), endpoint=True)
    scale = generator.uniform(1e-3, 1, size=(channels, 1)).astype(np.float32)
    zero_point = generator.integers(lowest, highest, size=(channels, 1), endpoint=True)
    real = (codes - zero_point).astype(np.float32) * scale
    found = fitted(codes, scale, zero_point, signed=signed)
    assert found.bits <= bits
    np.testing.assert_array_equal(found(real), real)
    width = np.float32(found.bits)
    theirs = quant(real, scale, found.zero_point, width, found.signed, found.narrow, "ROUND")
    np.testing.assert_array_equal(theirs, real)


@given(lowest=st.integers(-128, 120), count=st.integers(2, 256), zero=st.integers(-10, 10))
def test_a_range_of_codes_is_said_exactly_or_not_at_all(lowest: int, count: int, zero: int) -> None:
    highest, scale = lowest + count - 1, np.ones((), np.float32)
    found = spanning(lowest, highest, scale, np.asarray(lowest + zero))
    if count & (count - 1) and (count + 1) & count:
        assert found is None
        return
    assert found is not None
    low, high = found.limits()
    assert high - low + 1 == count
    # Nothing beyond the ends comes out, and both ends do.
    ends = np.float32([-1e4, 1e4])
    np.testing.assert_array_equal(found(ends), np.float32([-zero, count - 1 - zero]))


@pytest.mark.parametrize(
    ("weights", "activations"),
    [("int8", "int8"), ("int4", "int8"), ("int4", "int4"), ("int3", "int4"), ("int2", "int8")],
)
def test_symmetric_networks_of_any_width_are_the_same(small: onnx.ModelProto, weights: str, activations: str) -> None:
    result = quantized(
        small,
        "onnxruntime-arm64",
        method="static",
        weights=f"{weights}:per-channel",
        activations=f"{activations}:symmetric",
    )
    found, proto = exported(result.model, data=samples(small, 8, seed=5))
    (agreement,) = found.agreements
    assert agreement.largest == 0
    assert not any("zero point" in note for note in found.notes)
    assert {node.op_type for node in proto.graph.node} <= {
        "Quant", "BipolarQuant", "Conv", "Relu", "Add", "GlobalAveragePool", "Flatten", "Reshape", "Gemm",
    }  # fmt: skip
    assert set(widths(proto)) <= {float(weights[3:]), float(activations[3:])}
    held = constants(proto)
    assert {array.dtype for name, array in held.items() if "shape" not in name} == {np.dtype(np.float32)}


@pytest.mark.parametrize("activations", ["uint8", "uint4"])
def test_zero_points_are_kept_and_told_of(small: onnx.ModelProto, activations: str) -> None:
    result = quantized(
        small, "onnxruntime-x86-avx2", method="static", weights="int4:per-channel", activations=activations
    )
    found, proto = exported(result.model, data=samples(small, 8, seed=5))
    (agreement,) = found.agreements
    # QONNX adds the zero point before it rounds, ONNX afterwards: ties go to the other neighbour.
    assert agreement.sqnr_db > 30
    assert max(widths(proto)) == float(activations[4:])
    assert any("zero point that is not 0" in note for note in found.notes)


def test_codes_may_be_moved_before_they_are_decoded() -> None:
    body = """net (float[1, 4, 6] x) => (float[1, 8, 3] y) {
        q = QuantizeLinear (x, s, z)
        t = Transpose <perm = [0, 2, 1]> (q)
        p = Pad (t, pads)
        c = Slice (p, starts, ends, axes)
        j = Concat <axis = 2> (c, more)
        d = DequantizeLinear (j, s, z)
        y = Relu (d)
    }"""
    proto = parsed(
        body,
        s=np.float32(0.1),
        z=np.uint8(100),
        pads=np.int64([0, 1, 0, 0, 1, 0]),
        starts=np.int64([2]),
        ends=np.int64([4]),
        axes=np.int64([2]),
        more=np.full((1, 8, 1), 200, dtype=np.uint8),
    )
    found, converted = exported(proto)
    assert found.agreements[0].largest <= 1
    assert [node.op_type for node in converted.graph.node] == ["Quant", "Transpose", "Pad", "Slice", "Concat", "Relu"]


def test_weights_that_are_only_stored_have_a_quantizer_too() -> None:
    """`(Cast(codes) - zero_point) · scale`, in blocks of 8."""
    generator = np.random.default_rng(0)
    body = """net (float[1, 16] x) => (float[1, 6] y) {
        f = Cast <to = 1> (codes) h = Sub (f, zero) w = Mul (h, scale) r = Reshape (w, shape) y = MatMul (x, r)
    }"""
    proto = parsed(
        body,
        codes=generator.integers(0, 15, size=(2, 8, 6), endpoint=True).astype(np.uint8),
        zero=generator.integers(0, 15, size=(2, 1, 6)).astype(np.float32),
        scale=generator.uniform(0.1, 0.2, size=(2, 1, 6)).astype(np.float32),
        shape=np.int64([16, 6]),
    )
    found, converted = exported(proto)
    assert found.agreements[0].largest == 0
    assert [node.op_type for node in converted.graph.node] == ["Quant", "MatMul"]
    assert widths(converted) == [4]


def test_weights_of_two_values_are_bipolar() -> None:
    codes = np.random.default_rng(0).choice([-1, 1], size=(16, 6)).astype(np.int8)
    proto = parsed(
        "net (float[1, 16] x) => (float[1, 6] y) { w = DequantizeLinear (codes, scale) y = MatMul (x, w) }",
        codes=codes,
        scale=np.linspace(0.1, 0.2, 6, dtype=np.float32),
    )
    found, converted = exported(proto)
    (node, _) = converted.graph.node
    assert (node.op_type, node.domain) == ("BipolarQuant", DOMAIN)
    assert found.agreements[0].largest == 0


def test_what_computes_with_codes_is_named_before_anything_is_written(tmp_path: Path) -> None:
    proto = parsed(
        """net (float[1, 4] x) => (float[1, 4] y) {
            q, s, z = DynamicQuantizeLinear (x) i = MatMulInteger (q, w, z) f = Cast <to = 1> (i) y = Mul (f, s)
        }""",
        w=np.eye(4, dtype=np.int8),
    )
    with pytest.raises(ModelError, match=r"MatMulInteger\) computes with codes.*--method static"):
        lowbit.export(proto, tmp_path / "net.qonnx.onnx")
    added = parsed(
        "net (float[1, 4] x) => (float[1, 4] y) { q = QuantizeLinear (x, s, z) m = Mul (q, q) "
        "y = DequantizeLinear (m, s, z) }",
        s=np.float32(0.1),
        z=np.uint8(0),
    )
    with pytest.raises(ModelError, match=r"\(Mul\) computes with codes"):
        lowbit.export(added, tmp_path / "net.qonnx.onnx")
    clipped = parsed(
        "net (float[1, 4] x) => (float[1, 4] y) { q = QuantizeLinear (x, s, z) c = Clip (q, low, high) "
        "y = DequantizeLinear (c, s, z) }",
        s=np.float32(0.1),
        z=np.uint8(0),
        low=np.uint8(3),
        high=np.uint8(12),
    )
    with pytest.raises(ModelError, match="from 3 to 12"):
        lowbit.export(clipped, tmp_path / "net.qonnx.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_same_bytes_every_time_from_the_command_too(small: onnx.ModelProto, tmp_path: Path) -> None:
    result = quantized(small, "onnxruntime-arm64", method="static", activations="int8:symmetric")
    result.save(tmp_path / "net.onnx")
    arguments = ["export", str(tmp_path / "net.onnx"), "-o", str(tmp_path / "net.qonnx.onnx"), "--samples", "1"]
    outcome = CliRunner().invoke(application, arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "quantizers:" in outcome.output
    assert (tmp_path / "net.qonnx.onnx").read_bytes() == exported(result.model, samples=1)[0].contents
