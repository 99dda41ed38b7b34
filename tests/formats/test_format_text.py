"""Formats as users write them, and which opset can say them."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from lowbit.exceptions import FormatError
from lowbit.formats import (
    ELEMENTS,
    Format,
    PerBlock,
    PerChannel,
    PerTensor,
    element,
    element_of_storage,
    minimum_opset,
    parse_format,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int8", Format(element("int8"), PerTensor(), symmetric=True)),
        ("uint8", Format(element("uint8"), PerTensor(), symmetric=False)),
        ("uint8:per-tensor:asymmetric", Format(element("uint8"), PerTensor(), symmetric=False)),
        ("int8:asymmetric", Format(element("int8"), PerTensor(), symmetric=False)),
        ("int8:per-channel", Format(element("int8"), PerChannel(0), symmetric=True)),
        ("int8:per-channel:narrow", Format(element("int8"), PerChannel(0), symmetric=True, narrow=True)),
        ("uint4:block=32:symmetric", Format(element("uint4"), PerBlock(1, 32), symmetric=True)),
        ("float8_e4m3", Format(element("float8_e4m3"), PerTensor(), symmetric=True)),
    ],
)
def test_parse(text: str, expected: Format) -> None:
    assert parse_format(text) == expected


def test_the_axis_comes_from_the_tensor() -> None:
    assert parse_format("int8:per-channel", channel_axis=1).granularity == PerChannel(1)
    assert parse_format("int8:block=16", channel_axis=1).granularity == PerBlock(0, 16)
    assert parse_format("int8:block=16", block_axis=3).granularity == PerBlock(3, 16)


def test_the_default_symmetry_is_not_written() -> None:
    assert str(parse_format("int8:symmetric")) == "int8"
    assert str(parse_format("uint8:asymmetric")) == "uint8"
    assert str(parse_format("uint8:per-channel:symmetric")) == "uint8:per-channel:symmetric"


@pytest.mark.parametrize(
    "text",
    [
        "int9",
        "",
        "int8:",
        "int8:per-row",
        "int8:block",
        "int8:block=0",
        "int8:block=-4",
        "int8:per-channel:block=4",
        "int8:symmetric:asymmetric",
        "int8:narrow:narrow",
        "int8:asymmetric:narrow",
        "uint8:narrow",
        "float16:asymmetric",
        "float8_e4m3:narrow",
    ],
)
def test_what_is_not_a_format_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_format(text)


def test_an_unknown_element_names_the_known_ones() -> None:
    with pytest.raises(FormatError) as caught:
        element("nf5")
    assert all(name in str(caught.value) for name in ELEMENTS)


def test_elements_are_found_by_their_storage() -> None:
    for each in ELEMENTS.values():
        if each.kind == "codebook":
            continue
        found = element_of_storage(each.storage)
        # The narrower integers are stored in the next wider type.
        assert found is each or (found.storage == each.storage and found.code_count > each.code_count)
    with pytest.raises(FormatError, match="COMPLEX64"):
        element_of_storage(ir.DataType.COMPLEX64)


def test_a_format_is_a_frozen_value() -> None:
    fmt = parse_format("int8:per-channel")
    assert {fmt: 1}[parse_format("int8:per-channel:symmetric")] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.symmetric = False  # type: ignore[misc]


def test_a_tensor_without_the_axis_is_refused() -> None:
    with pytest.raises(FormatError, match="no axis 2"):
        PerChannel(2).scale_shape((3, 4))


@pytest.mark.parametrize(
    ("text", "opset"),
    [
        ("uint8", 10),
        ("int8", 10),
        ("int8:per-channel", 13),
        ("int8:block=32", 21),
        ("int16", 21),
        ("uint4:per-channel", 21),
        ("float8_e4m3", 19),
        ("float8_e5m2:block=8", 21),
        ("float4_e2m1", 23),
        ("int2", 25),
        ("uint2:block=8", 25),
        ("bfloat16", 13),
    ],
)
def test_minimum_opset(text: str, opset: int) -> None:
    assert minimum_opset(parse_format(text)) == opset
