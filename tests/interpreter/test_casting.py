"""Conversions of element types against ml_dtypes, for every value there is or at random."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from lowbit.interpreter.casting import converted
from lowbit.interpreter.dtypes import from_array, to_array

FLOATS = {
    ir.DataType.FLOAT8E4M3FN: 448.0,
    ir.DataType.FLOAT8E4M3FNUZ: 240.0,
    ir.DataType.FLOAT8E5M2: 57344.0,
    ir.DataType.FLOAT8E5M2FNUZ: 57344.0,
    ir.DataType.FLOAT4E2M1: 6.0,
    ir.DataType.BFLOAT16: 3.3895314e38,
}
INTEGERS = [ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.INT8]


def everything() -> np.ndarray:
    """Return all values of float16, and all halves between two of them: every tie of the smaller types is there."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    finite = np.unique(halves[np.isfinite(halves)])
    return np.concatenate([finite, (finite[1:] + finite[:-1]) / 2])


@pytest.mark.parametrize("element", FLOATS)
def test_floats_round_to_nearest_even_and_saturate(element: ir.DataType) -> None:
    limit = FLOATS[element]
    values = everything()
    expected = values.clip(-limit, limit).astype(element.numpy()).astype(np.float32)
    found = converted(torch.from_numpy(values), element)
    np.testing.assert_array_equal(found.to(torch.float32).numpy(), expected)


@pytest.mark.parametrize(
    ("element", "beyond"),
    [
        (ir.DataType.FLOAT8E4M3FN, np.nan),
        (ir.DataType.FLOAT8E4M3FNUZ, np.nan),
        (ir.DataType.FLOAT8E5M2, np.inf),
        (ir.DataType.FLOAT8E5M2FNUZ, np.nan),
    ],
)
def test_floats_overflow_where_they_do_not_saturate(element: ir.DataType, beyond: float) -> None:
    values = np.concatenate([everything(), np.array([1e30, -1e30, np.inf, -np.inf], np.float32)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        expected = values.astype(element.numpy()).astype(np.float32)
    found = converted(torch.from_numpy(values), element, saturate=False).to(torch.float32)
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_equal(found[-2].item(), beyond)


@pytest.mark.parametrize("element", INTEGERS)
def test_integers_discard_higher_bits(element: ir.DataType) -> None:
    values = np.arange(-300, 300)
    found = converted(torch.from_numpy(values), element).numpy()
    np.testing.assert_array_equal(found, values.astype(np.int8).astype(element.numpy()).astype(np.int64))
    np.testing.assert_array_equal(converted(torch.from_numpy(values + 0.75 * (values > 0)), element).numpy(), found)


@pytest.mark.parametrize(
    ("mode", "expected"), [("up", [2, 2, 2, 4]), ("down", [1, 1, 1, 2]), ("nearest", [1, 2, 2, 2])]
)
def test_powers_of_two_round_as_told(mode: str, expected: list[float]) -> None:
    x = torch.tensor([1.25, 1.5, 1.75, 2.5])
    assert converted(x, ir.DataType.FLOAT8E8M0, round_mode=mode).to(torch.float32).tolist() == expected
    exact = torch.tensor([2.0**-127, 0.5, 1.0, 2.0**127])
    assert torch.equal(converted(exact, ir.DataType.FLOAT8E8M0, round_mode=mode).to(torch.float32), exact)


@pytest.mark.parametrize("element", [element for element in FLOATS if element != ir.DataType.BFLOAT16])
def test_gradients_pass_through_floats(element: ir.DataType) -> None:
    x = torch.tensor([0.3, 1.7], requires_grad=True)
    (2 * converted(converted(x, element), ir.DataType.FLOAT)).sum().backward()
    assert x.grad.tolist() == [2, 2]


@pytest.mark.parametrize(
    "dtype",
    [
        *(np.dtype(name) for name in ("f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")),
        *(
            np.dtype(getattr(ml_dtypes, name))
            for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
        ),
        *(np.dtype(getattr(ml_dtypes, name)) for name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")),
    ],
)
def test_arrays_round_trip(dtype: np.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    small = {"int4": 16, "uint4": 16, "int2": 4, "uint2": 4, "float4_e2m1fn": 16, "bool": 2}
    if dtype.name in small:
        array = np.arange(small[dtype.name], dtype=np.uint8).view(dtype)
        if dtype.name.startswith("int"):
            array = np.arange(-small[dtype.name] // 2, small[dtype.name] // 2).astype(dtype)
    else:
        array = codes.view(dtype)
    element = ir.DataType.from_numpy(dtype)
    back = to_array(from_array(array), element)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.view(np.uint8), array.view(np.uint8))
