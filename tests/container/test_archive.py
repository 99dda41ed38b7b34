"""An `.lbz` file gives back every bit, is near or below the entropy of the codes, and tells where it is damaged."""

from __future__ import annotations

import math
import re
import tracemalloc
import zlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lowbit.container import pack, unpack
from lowbit.container.cursor import Cursor
from lowbit.container.dictionary import dictionary
from lowbit.container.mixing import RATES, SQUASH, STRETCH
from lowbit.container.numbers import CODES, TABLES
from lowbit.exceptions import ModelError


def net(*tensors: TensorProto) -> bytes:
    """Return a model that holds tensors and computes nothing."""
    graph = helper.make_graph([], "g", [], [], list(tensors))
    return helper.make_model(graph).SerializeToString()


def no_files(location: str) -> bytes:
    raise AssertionError(location)


def packed(model: bytes, **options: bool) -> bytes:
    content, _ = pack(model, no_files, **options)
    assert unpack(content).model == model
    return content


def entropy_bytes(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(counts * np.log2(counts)).sum() * codes.size / 8)


def laplacian(shape: tuple[int, ...], scale: float, kept: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    codes = np.clip(np.round(rng.laplace(0, scale, shape)), -127, 127)
    return (codes * (rng.random(shape) < kept)).astype(np.int8)


def small() -> bytes:
    rng = np.random.default_rng(1)
    return net(
        numpy_helper.from_array(laplacian((8, 3, 3, 3), 20), "first"),
        numpy_helper.from_array(rng.normal(size=40).astype(np.float32), "second"),
        numpy_helper.from_array(laplacian((16, 20), 3, 0.3), "third"),
    )


@pytest.mark.parametrize("dtype", sorted(set(TensorProto.DataType.values()) - {0, TensorProto.STRING}))
@pytest.mark.parametrize("shape", [(), (7,), (33,), (5, 13), (4, 3, 3, 3)])
def test_every_type_and_shape(dtype: int, shape: tuple[int, ...]) -> None:
    tensor = TensorProto(name="w", dims=shape, data_type=dtype)
    bits = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}.get(dtype, helper.tensor_dtype_to_np_dtype(dtype).itemsize * 8)
    tensor.raw_data = np.random.default_rng(0).bytes(-(-math.prod(shape) * bits // 8))
    packed(net(tensor))


@settings(max_examples=40)
@given(
    st.binary(max_size=300), st.sampled_from([1, 3, 6, 7, 10, 22, 26, 99]), st.lists(st.integers(0, 2**62), max_size=4)
)
def test_any_bytes_under_any_type_and_shape(content: bytes, dtype: int, dims: list[int]) -> None:
    """What is stored need not fit what is claimed."""
    packed(net(TensorProto(name="w", dims=dims, data_type=dtype, raw_data=content)))


def test_numbers_in_typed_fields_and_in_attributes() -> None:
    typed = [
        helper.make_tensor("f", TensorProto.FLOAT, [20], np.linspace(0, 1, 20).tolist()),
        helper.make_tensor("i", TensorProto.INT64, [40], list(range(40))),
        helper.make_tensor("d", TensorProto.DOUBLE, [20], np.linspace(0, 1, 20).tolist()),
        helper.make_tensor("b", TensorProto.INT8, [40], list(range(-20, 20))),
    ]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones((9, 9), np.float32)))
    branch = helper.make_graph([constant], "then", [], [helper.make_tensor_value_info("c", 1, [9, 9])])
    node = helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node, constant], "g", [], [], typed)).SerializeToString()
    content, parts = pack(model, no_files)
    assert unpack(content).model == model
    assert [part.name for part in parts].count("c") == 3
    assert {"f", "i", "d", "b"} <= {part.name for part in parts}


def test_an_empty_model_and_unknown_fields() -> None:
    packed(b"")
    packed(onnx.ModelProto().SerializeToString() + bytes([0xFA, 0x3F, 3]) + b"abc")


def test_the_same_model_gives_the_same_bytes() -> None:
    assert packed(small()) == packed(small())


@pytest.mark.parametrize(("scale", "kept"), [(30, 1.0), (8, 1.0), (4, 0.3), (2, 0.05)])
@pytest.mark.parametrize("smallest", [False, True])
def test_codes_without_context_are_within_three_percent_of_their_entropy(
    scale: float, kept: float, smallest: bool
) -> None:
    codes = laplacian((400, 250 if smallest else 2500), scale, kept)
    content, (part,) = pack(net(numpy_helper.from_array(codes, "w")), no_files, smallest=smallest)
    assert part.packed < 1.03 * entropy_bytes(codes)
    assert len(content) < part.packed + 150


def test_context_beats_the_entropy_of_single_codes() -> None:
    """Rows of different scales, and columns that are pruned as a whole."""
    rng = np.random.default_rng(0)
    codes = rng.laplace(0, 1, (200, 300)) * rng.choice([1.0, 30.0], (200, 1)) * (rng.random(300) < 0.3)
    codes = np.clip(np.round(codes), -127, 127).astype(np.int8)
    _, (part,) = pack(net(numpy_helper.from_array(codes, "w")), no_files)
    assert part.mode.model == CODES
    assert part.packed < 0.8 * entropy_bytes(codes)


def test_floats_of_few_values_are_coded_as_codes() -> None:
    rng = np.random.default_rng(0)
    levels = np.sort(rng.normal(size=16)).astype(np.float32)
    weight = levels[rng.integers(0, 16, (500, 600))] * (rng.random((500, 600)) < 0.2).astype(np.float32)
    _, (part,) = pack(net(numpy_helper.from_array(weight, "w")), no_files)
    assert part.mode.levels
    assert part.packed < 1.03 * entropy_bytes(weight.view(np.uint32))


def test_pruned_floats_take_little_more_than_their_mask_and_what_is_left() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((300, 300)) < 0.1
    weight = (rng.normal(size=mask.shape) * mask).astype(np.float32)
    _, (part,) = pack(net(numpy_helper.from_array(weight, "w")), no_files)
    assert part.packed < 1.12 * (entropy_bytes(mask) + 4 * mask.sum())


def test_noise_is_stored() -> None:
    noise = TensorProto(name="w", data_type=2, dims=[5000], raw_data=np.random.default_rng(0).bytes(5000))
    _, (part,) = pack(net(noise), no_files)
    assert part.packed <= 5000 + 4


def test_large_models_are_coded_by_tables_unless_asked() -> None:
    model = net(numpy_helper.from_array(laplacian((1000, 1000), 30), "w"))
    _, (part,) = pack(model, no_files)
    assert part.mode.model == TABLES


def test_the_structure_of_a_small_model_is_small() -> None:
    """A 16-layer graph of 4 kB: its protobuf says the same again and again."""
    from lowbit.container.wire import split

    nodes = [
        helper.make_node("Relu", [f"layer{i}_out"], [f"layer{i + 1}_out"], name=f"/layer{i}/Relu") for i in range(60)
    ]
    model = helper.make_model(helper.make_graph(nodes, "main_graph", [], [])).SerializeToString()
    assert split(model).structure == model
    assert len(packed(model)) < len(zlib.compress(model, 9)) * 0.75


def test_cuts_are_noticed_and_placed() -> None:
    content = packed(small())
    said = []
    # Each takes as long as learning the dictionary, so that not every one can be tried.
    for length in (*range(8), *range(8, len(content), 9), *range(len(content) - 8, len(content))):
        with pytest.raises(ModelError) as caught:
            unpack(content[:length])
        said.append(re.findall(r"Tensor '(\w+)'|structure|The end|is not an \.lbz", str(caught.value)))
        assert said[-1], caught.value
    names = [found[0] for found in said if found[0]]
    assert list(dict.fromkeys(names)) == ["first", "second", "third"]


def test_flipped_bits_are_noticed_and_costs_no_memory() -> None:
    content = packed(small())
    names = set()
    tracemalloc.start()
    for place in (*range(8), *range(8, len(content), 11), *range(len(content) - 8, len(content))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ModelError) as caught:
            unpack(bytes(damaged))
        names |= set(re.findall(r"Tensor '(\w+)'", str(caught.value)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {"first", "second", "third"} <= names
    assert peak < 64e6


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_forged_files_are_refused(noise: bytes) -> None:
    """Even if their checks say that they are whole."""
    forged = b"LBZ\x02" + noise
    with pytest.raises(ModelError):
        unpack(forged + zlib.crc32(forged).to_bytes(4, "little"))


@settings(max_examples=20)
@given(st.data())
def test_forged_changes_are_refused(data: st.DataObject) -> None:
    """Changes that the check of the whole covers up are caught by the checks within."""
    content = bytearray(packed(small())[:-4])
    place = data.draw(st.integers(6, len(content) - 8))
    content[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ModelError):
        unpack(bytes(content) + zlib.crc32(content).to_bytes(4, "little"))


def test_a_claim_of_gigabytes_is_refused_before_memory_is_taken() -> None:
    from lowbit.container.wire import split, walk

    model = net(TensorProto(name="w", dims=[1 << 30], data_type=2, raw_data=bytes(100)))
    structure = split(model).structure
    claim = structure.replace(bytes([0x4A, 100]), bytes([0x4A, 0xFF, 0xFF, 0xFF, 0xFF, 0x07]))
    with pytest.raises(ValueError, match="longer than what it is in"):
        walk(claim)


def test_other_files_and_versions() -> None:
    with pytest.raises(ModelError, match=r"is not an \.lbz file"):
        unpack(b"PK\x03\x04")
    content = bytearray(packed(small()))
    content[3] = 9
    with pytest.raises(ModelError, match="version 9"):
        unpack(bytes(content))
    content[3] = 1
    with pytest.raises(ModelError, match="version 1 of the"):
        unpack(bytes(content))
    with pytest.raises(ModelError, match="not valid ONNX"):
        pack(b"\x00\xff\xff", no_files)


def test_the_constants_of_the_format() -> None:
    """Files would become unreadable if one of these changed."""
    assert zlib.crc32(SQUASH.astype("<i4").tobytes()) == SQUASH_CHECK
    assert zlib.crc32(STRETCH.astype("<i4").tobytes()) == STRETCH_CHECK
    assert zlib.crc32(RATES.astype("<i4").tobytes()) == RATES_CHECK
    assert zlib.crc32(dictionary().tobytes()) == DICTIONARY_CHECK


def test_a_file_of_this_version_stays_readable() -> None:
    """Bytes that version 2 wrote: all models of numbers, decoded on every machine alike.

    NOTE: without the file's own check, behind which every file has the same CRC-32.
    """
    assert zlib.crc32(packed(small())[:-4]) == SMALL_FILE_CHECK
    model = small() + net(numpy_helper.from_array(laplacian((600, 600), 30), "fourth"))
    assert zlib.crc32(tables_only(packed(model))) == LARGE_FILE_CHECK


def tables_only(content: bytes) -> bytes:
    """Return the blobs of a file behind its structure, of which the bytes are liblzma's."""
    cursor = Cursor(content[4:-4])
    _, stream = cursor.varint(), cursor.varint()
    cursor.take(stream)
    cursor.take(cursor.varint())
    return bytes(cursor.rest)


def test_zeros_of_any_length_come_back() -> None:
    """They are so few bytes that the limit against forged lengths must leave room for them."""
    assert len(packed(net(numpy_helper.from_array(np.zeros((3000, 3000), np.float32), "w")))) < 1000


def test_pruned_floats_are_near_the_entropy_of_what_is_left() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(300, 1000)).astype(np.float32) * (rng.random((300, 1000)) < 0.1)
    weights[weights == 0] *= np.sign(rng.normal(size=(weights == 0).sum())).astype(np.float32)  # zeros of either sign
    _, (part,) = pack(net(numpy_helper.from_array(weights, "w")), no_files)
    left = weights[weights != 0].view(np.uint8).reshape(-1, 4)
    signs = (weights == 0).sum() / 8
    bound = entropy_bytes(weights != 0) + sum(entropy_bytes(left[:, place]) for place in range(4)) + signs
    assert part.packed < 1.03 * bound


@pytest.mark.parametrize(
    "value", ["eJyrVipLLSrOzM9TslIy1FFQyk0syszLV7JSMjLQUVAqS8wpTQUAIQwMAg==", "eJyr" * 20, "=" * 40, "eJ?r" * 10]
)
def test_a_plan_comes_back_whatever_it_is(value: str) -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key="lowbit.plan", value=value)
    model.metadata_props.add(key="other", value=value)
    packed(model.SerializeToString())


def test_bytes_behind_the_last_tensor_are_refused() -> None:
    content = packed(net(numpy_helper.from_array(laplacian((300, 300), 9), "w")))[:-4] + b"more"
    with pytest.raises(ModelError, match="more follows"):
        unpack(content + zlib.crc32(content).to_bytes(4, "little"))


SQUASH_CHECK = 0xB3708D36
STRETCH_CHECK = 0xE9E7594B
RATES_CHECK = 0xADA0393D
DICTIONARY_CHECK = 0x9A625E7D
SMALL_FILE_CHECK = 0xF04B1289
LARGE_FILE_CHECK = 0x38A46C31
