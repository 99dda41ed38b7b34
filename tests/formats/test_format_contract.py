"""The laws that every format obeys; a new element or granularity costs one row."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import FormatError
from lowbit.formats import (
    ELEMENTS,
    Element,
    Format,
    Parameters,
    PerBlock,
    PerChannel,
    PerTensor,
    choose_parameters,
    dequantize,
    fake_quantize,
    from_ir_tensor,
    pack,
    packed_bytes,
    parse_format,
    quantize,
    to_ir_tensor,
    unpack,
)

GRANULARITIES = (PerTensor(), PerChannel(0), PerChannel(-1), PerBlock(1, 3), PerBlock(0, 4))
INTEGERS = [each for each in ELEMENTS.values() if each.kind == "integer"]
FORMATS = [
    *(Format(each, where, symmetric) for each in INTEGERS for where in GRANULARITIES for symmetric in (True, False)),
    *(Format(each, where, True, narrow=True) for each in INTEGERS if each.signed for where in GRANULARITIES),
    *(Format(each, where) for each in ELEMENTS.values() if each.kind != "integer" for where in GRANULARITIES),
]
PLAIN_CASTS = ("float16", "bfloat16")
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: f"{fmt}@{getattr(fmt.granularity, 'axis', '')}")
PER_TENSOR = [fmt for fmt in FORMATS if fmt.granularity == PerTensor()]
every_numeral = pytest.mark.parametrize("fmt", PER_TENSOR, ids=str)  # where granularity is beside the point
every_element = pytest.mark.parametrize("element", ELEMENTS.values(), ids=str)
lawful = settings(derandomize=True, deadline=None, max_examples=40)


def tensor(seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((5, 7)) * spread + 0.5).astype(np.float32)


def fitted(x: np.ndarray, fmt: Format) -> Parameters:
    shape = fmt.granularity.scale_shape(x.shape)
    return choose_parameters(np.full(shape, x.min()), np.full(shape, x.max()), fmt)


def every_code(element: Element) -> np.ndarray:
    """All finite codes of an element, by their bits."""
    count = len(element.levels) or 2**element.bits
    patterns = np.arange(count, dtype=np.uint32).astype("u2" if element.bits == 16 else "u1")
    codes = patterns.view(element.dtype)
    numbers = codes.astype(np.float32)
    return codes[np.isfinite(numbers) & (numbers >= element.minimum) & (numbers <= element.maximum)]


def numbers_of(codes: np.ndarray, element: Element) -> np.ndarray:
    """What codes stand for before zero point and scale."""
    numbers = codes.astype(np.float32)
    return np.array(element.levels, dtype=np.float32)[numbers.astype(int)] if element.levels else numbers


def bits_of(codes: np.ndarray) -> np.ndarray:
    return codes.view(f"u{codes.dtype.itemsize}")


@every_format
def test_text_round_trip(fmt: Format) -> None:
    axis = getattr(fmt.granularity, "axis", 0)
    assert parse_format(str(fmt), channel_axis=axis, block_axis=axis) == fmt


@every_numeral
def test_decoded_codes_encode_to_themselves(fmt: Format) -> None:
    lowest, highest = fmt.code_range()
    codes = every_code(fmt.element)
    numbers = numbers_of(codes, fmt.element)
    codes = codes[(numbers >= lowest) & (numbers <= highest)]
    for low, high in ((-1.0, 1.7), (0.0, 1e-3), (-3e4, 0.0)):
        parameters = choose_parameters(low, high, fmt)
        again = quantize(dequantize(codes, parameters, fmt), parameters, fmt)
        assert np.array_equal(again.astype(np.float32), codes.astype(np.float32))


@every_format
def test_fake_quantize_is_idempotent(fmt: Format) -> None:
    x = tensor()
    parameters = fitted(x, fmt)
    once = fake_quantize(x, parameters, fmt)
    assert not np.array_equal(once, x)
    assert np.array_equal(fake_quantize(once, parameters, fmt), once)


@every_format
def test_shapes_and_types(fmt: Format) -> None:
    x = tensor()
    parameters = fitted(x, fmt)
    codes = quantize(x, parameters, fmt)
    assert parameters.scale.dtype == np.float32
    assert parameters.scale.shape == parameters.zero_point.shape == fmt.granularity.scale_shape(x.shape)
    assert (codes.shape, codes.dtype) == (x.shape, fmt.element.dtype)
    assert parameters.zero_point.dtype == fmt.element.dtype
    decoded = dequantize(codes, parameters, fmt)
    assert (decoded.shape, decoded.dtype) == (x.shape, np.float32)


@every_format
def test_error_is_bounded_by_half_a_step(fmt: Format) -> None:
    x = tensor()
    parameters = fitted(x, fmt)
    error = np.abs(fake_quantize(x, parameters, fmt) - x)
    scale = fmt.granularity.broadcast(parameters.scale, x.shape)
    if fmt.element.kind == "integer":
        # A whole step where the rounding of the zero point moved an end of the range by up to half of one.
        steps = 0.5 if fmt.symmetric else 1.0
        assert (error <= scale * np.float32(steps * 1.0001)).all()
    elif fmt.element.kind == "codebook":
        widest = np.diff(fmt.element.levels).max()
        # Levels that do not mirror still reach both ends.
        assert (error <= scale * np.float32(widest / 2 * 1.0001)).all()
    else:
        import ml_dtypes

        information = ml_dtypes.finfo(fmt.element.dtype)
        half = np.maximum(np.abs(x) * float(information.eps), scale * float(information.smallest_subnormal)) / 2
        assert (error <= half * 1.0001).all()


@every_numeral
def test_codes_are_monotonic_and_in_range(fmt: Format) -> None:
    parameters = choose_parameters(-1.0, 2.0, fmt)
    codes = quantize(np.linspace(-4, 4, 1001, dtype=np.float32), parameters, fmt)
    numbers = numbers_of(codes, fmt.element)
    assert (np.diff(numbers) >= 0).all()
    lowest, highest = fmt.code_range()
    assert numbers.min() >= np.float32(lowest)
    assert numbers.max() <= np.float32(highest)
    if fmt.element.name not in PLAIN_CASTS:
        assert (numbers.min(), numbers.max()) == (np.float32(lowest), np.float32(highest))


@every_numeral
def test_saturation(fmt: Format) -> None:
    parameters = choose_parameters(-1e-3, 2e-3, fmt)
    ends = numbers_of(quantize(np.array([-np.inf, -3e38, 3e38, np.inf]), parameters, fmt), fmt.element)
    lowest, highest = fmt.code_range()
    if fmt.element.name == "float16":
        assert ends.tolist() == [-np.inf, -np.inf, np.inf, np.inf]  # as ONNX Cast
    elif fmt.element.name == "bfloat16":
        assert (ends[0], ends[3]) == (-np.inf, np.inf)
        assert np.isfinite(ends[1:3]).all()
    else:
        assert ends.tolist() == np.array([lowest, lowest, highest, highest], dtype=np.float32).tolist()


@every_format
def test_nan_is_refused_by_integers_and_codebooks_and_kept_by_floats_that_have_it(fmt: Format) -> None:
    x = tensor()
    parameters = fitted(x, fmt)
    x[2, 3] = np.nan
    if fmt.element.kind != "float":
        with pytest.raises(FormatError, match="NaN"):
            quantize(x, parameters, fmt)
    elif fmt.element.bits > 4:
        assert np.isnan(fake_quantize(x, parameters, fmt)[2, 3])


@every_format
def test_zero_is_exact(fmt: Format) -> None:
    zeros = np.zeros((5, 7), dtype=np.float32)
    for low, high in ((0.37, 5.0), (-9.0, -0.1), (-1.0, 3.0), (0.0, 0.0)):
        shape = fmt.granularity.scale_shape(zeros.shape)
        parameters = choose_parameters(np.full(shape, low), np.full(shape, high), fmt)
        assert np.array_equal(fake_quantize(zeros, parameters, fmt), zeros)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.granularity == PerChannel(0)], ids=str)
def test_one_channel_is_quantized_as_if_alone(fmt: Format) -> None:
    x = tensor() * np.array([1, 10, 100, 1e-3, 5], dtype=np.float32)[:, None]
    alone = Format(fmt.element, PerTensor(), fmt.symmetric, fmt.narrow)
    together = fake_quantize(x, choose_parameters(x.min(axis=1), x.max(axis=1), fmt), fmt)
    for row, expected in zip(x, together, strict=True):
        assert np.array_equal(fake_quantize(row, choose_parameters(row.min(), row.max(), alone), alone), expected)


@every_element
@lawful
@given(data=st.data())
def test_packing_round_trip(element: Element, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    bits = data.draw(hnp.arrays(f"u{element.dtype.itemsize}", shape, elements={"max_value": 2**element.bits - 1}))
    codes = bits.view(element.dtype)
    packed = pack(codes, element)
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_bytes(shape, element),)
    assert np.array_equal(bits_of(unpack(packed, element, codes.size)).reshape(shape), bits)


@every_element
@pytest.mark.parametrize("shape", [(), (1,), (5, 7), (2, 3, 4), (0, 3)], ids=str)
def test_initializer_round_trip(element: Element, shape: tuple[int, ...]) -> None:
    codes = np.resize(every_code(element)[1:], shape).astype(element.dtype)
    wrapped = to_ir_tensor(codes, Format(element), "w")
    assert (wrapped.name, wrapped.dtype, tuple(wrapped.shape)) == ("w", element.storage, shape)
    # Through the bytes of a file, read by onnx and by us.
    proto = onnx.TensorProto.FromString(ir.to_proto(wrapped).SerializeToString())
    onnx.checker.check_tensor(proto)
    assert proto.raw_data == pack(codes, element).tobytes()
    assert np.array_equal(bits_of(from_ir_tensor(ir.from_proto(proto))), bits_of(codes))
    assert np.array_equal(onnx.numpy_helper.to_array(proto).astype(np.float32), codes.astype(np.float32))


@every_numeral
@lawful
@given(data=st.data())
def test_any_finite_range_gives_parameters_that_decode_to_finite_numbers(fmt: Format, data: st.DataObject) -> None:
    reach = 2.0**15 if fmt.element.name == "float16" else 2.0**127 * 1.75
    values = st.floats(-reach, reach, width=32)
    low, high = sorted((data.draw(values), data.draw(values)))
    parameters = choose_parameters(low, high, fmt)
    assert np.isfinite(np.float32(1.0) / parameters.scale)
    lowest, highest = fmt.code_range()
    codes = every_code(fmt.element)
    numbers = numbers_of(codes, fmt.element)
    decoded = dequantize(codes[(numbers >= lowest) & (numbers <= highest)], parameters, fmt).astype(np.float64)
    assert np.isfinite(decoded).all()
    if fmt.element.kind == "integer" and high - low > 1e-30:
        # The range is covered to within a step.
        assert decoded.min() <= low + float(parameters.scale) * 1.01
        assert decoded.max() >= high - float(parameters.scale) * 1.01


def test_codes_of_another_type_are_refused() -> None:
    fmt = parse_format("int4")
    parameters = choose_parameters(-1.0, 1.0, fmt)
    codes = np.zeros(3, dtype=np.int8)
    for refused in (
        lambda: dequantize(codes, parameters, fmt),
        lambda: pack(codes, fmt.element),
        lambda: to_ir_tensor(codes, fmt, "w"),
        lambda: quantize(np.zeros(3), choose_parameters(-1.0, 1.0, parse_format("int8")), fmt),
        lambda: unpack(np.zeros(3, dtype=np.uint8), fmt.element, 3),
    ):
        with pytest.raises(FormatError):
            refused()
