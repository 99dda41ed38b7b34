"""`docs/lbz.md` is enough to write a decoder: `decoder.py` was, and gives the same bytes as lowbit."""

from __future__ import annotations

import importlib.util
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lowbit
from lowbit.container import pack, unpack

_spec = importlib.util.spec_from_file_location("lbz_decoder", Path(__file__).with_name("decoder.py"))
assert _spec is not None
assert _spec.loader is not None
decoder = sys.modules["lbz_decoder"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(decoder)

DICTIONARY = (Path(lowbit.__path__[0]) / "container" / "dictionary.bin").read_bytes()


def codes(shape: tuple[int, ...], scale: float, kept: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (np.clip(np.round(rng.laplace(0, scale, shape)), -127, 127) * (rng.random(shape) < kept)).astype(np.int8)


def model(*tensors: TensorProto) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(codes((6, 10), 9), "inner"))
    branch = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("c", 1, [6, 10])])
    node = helper.make_node("If", ["cond"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    made = helper.make_model(helper.make_graph([node], "g", [], [], list(tensors)))
    made.metadata_props.add(key="lowbit.plan", value="eJyrVipLLSrOzM9TslIy1FFQyk0syszLV7JSMjLQUVAqS8wpTQUAIQwMAg==")
    return made


def four_bits(name: str, shape: tuple[int, ...], scale: float) -> TensorProto:
    values = np.clip(codes(shape, scale), -8, 7).reshape(-1, 2).astype(np.uint8) & 15
    packed = (values[:, 0] | values[:, 1] << 4).tobytes()
    return TensorProto(name=name, dims=shape, data_type=TensorProto.INT4, raw_data=packed)


def small() -> list[TensorProto]:
    """Numbers that take every model of small files."""
    rng = np.random.default_rng(1)
    floats = rng.normal(size=(8, 9)).astype(np.float32)
    return [
        numpy_helper.from_array(codes((6, 2, 3, 3), 20), "codes"),
        four_bits("four", (8, 20), 2),
        numpy_helper.from_array(floats, "floats"),
        numpy_helper.from_array(np.repeat(floats[0, :4], 20).reshape(8, 10), "levels"),
        numpy_helper.from_array(rng.integers(-300, 300, 30).astype(np.int32), "integers"),
        TensorProto(name="noise", dims=[64], data_type=TensorProto.UINT8, raw_data=rng.bytes(64)),
        helper.make_tensor("typed", TensorProto.INT64, [40], list(range(40))),
    ]


def large() -> list[TensorProto]:
    """Numbers that take every kind of stream."""
    rng = np.random.default_rng(2)
    floats = rng.normal(size=(40, 100)).astype(np.float32)
    pruned = floats * (rng.random(floats.shape) < 0.3)
    columns = (codes((300, 60), 12) * (np.arange(60) % 7 < 2)).astype(np.int8)
    return [
        *small(),
        numpy_helper.from_array(columns, "columns"),
        four_bits("four and columns", (60, 100), 1),
        numpy_helper.from_array(pruned, "pruned"),
        numpy_helper.from_array(floats.astype(np.float16)[:20], "halves"),
        numpy_helper.from_array(floats.astype(np.float64)[:9], "doubles"),
        numpy_helper.from_array(np.zeros((300, 70), np.float32), "zeros"),
        numpy_helper.from_array(np.repeat(floats[0, :10], 300).reshape(50, 60), "many of few"),
        numpy_helper.from_array((codes((70, 50), 30) & -8).astype(np.int8), "few letters"),
    ]


def heavy() -> list[TensorProto]:
    """Too much for mixing, which the decoder takes seconds to prepare for."""
    return [*small(), numpy_helper.from_array(codes((70, 1000), 5), "heavy")]


def no_files(location: str) -> bytes:
    raise AssertionError(location)


def test_a_small_model() -> None:
    content = model(*small()).SerializeToString()
    packed, parts = pack(content, no_files)
    assert {part.mode.model for part in parts} >= {1, 2, 3}
    assert decoder.decode(packed, DICTIONARY) == (content, {})


def test_a_large_model() -> None:
    content = model(*large()).SerializeToString()
    packed, parts = pack(content, no_files)
    modes = {part.mode for part in parts}
    assert {True} <= {mode.columns for mode in modes} & {mode.rotated for mode in modes} & {
        mode.levels for mode in modes
    }
    assert {mode.bits for mode in modes} >= {4, 6, 8, 16, 32, 64}
    assert decoder.decode(packed, DICTIONARY) == (content, {})


def test_several_blocks() -> None:
    data = codes((3, 70_000), 0.3)
    content = model(numpy_helper.from_array(data, "long")).SerializeToString()
    packed, _ = pack(content, no_files)
    assert decoder.decode(packed, DICTIONARY) == (content, {})


def test_data_files(tmp_path: Path) -> None:
    made = model(*heavy())
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=80)
    files = {"m.bin": (tmp_path / "m.bin").read_bytes() + b"and more"}
    content = (tmp_path / "m.onnx").read_bytes()
    packed, _ = pack(content, files.__getitem__)
    assert decoder.decode(packed, DICTIONARY) == (content, files)
    assert unpack(packed).files == files


def test_the_constants_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lbz.md").read_text(encoding="utf-8")
    for table in (decoder.RATES, decoder.STRETCH, decoder.SQUASH):
        assert f"`{zlib.crc32(np.array(table, '<i4').tobytes()):08X}`" in page
    assert f"{len(DICTIONARY):,} bytes, CRC-32 `{zlib.crc32(DICTIONARY):08X}`" in page


def test_the_decoder_knows_nothing_of_lowbit() -> None:
    source = Path(decoder.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (lowbit|numpy|numba)", source, re.MULTILINE)


@pytest.mark.parametrize("place", [40, -400])
def test_the_decoder_sees_damage(place: int) -> None:
    """So that what it gives for whole files is not by chance."""
    packed = bytearray(pack(model(*heavy()).SerializeToString(), no_files)[0][:-4])
    packed[place] ^= 16
    with pytest.raises((AssertionError, ValueError, IndexError, KeyError)):
        decoder.decode(bytes(packed) + zlib.crc32(packed).to_bytes(4, "little"), DICTIONARY)
