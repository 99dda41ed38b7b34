"""Saturating pairs: found exactly, and repaired so that no activation can reach them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import FormatError
from lowbit.formats import choose_parameters, parse_format, quantize
from lowbit.rounding import conv_to_kn, hazards, make_safe, pair_matrix, weight_range

lawful = settings(derandomize=True, deadline=None, max_examples=100)
PER_COLUMN = parse_format("int8:per-channel", channel_axis=1)


def kernel(activations: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Emulate `vpmaddubsw`: products of neighbours along K are added in 16 bits with saturation. [M, K] × [K, N]."""
    if activations.shape[1] % 2:
        activations, codes = np.pad(activations, ((0, 0), (0, 1))), np.pad(codes, ((0, 1), (0, 0)))
    a, w = activations.astype(np.int32), codes.astype(np.int32)
    lanes = a[:, 0::2, None] * w[None, 0::2] + a[:, 1::2, None] * w[None, 1::2]
    return np.clip(lanes, -32768, 32767).sum(axis=1)


def exact(activations: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return activations.astype(np.int32) @ codes.astype(np.int32)


def overflows(codes: np.ndarray, low: int, high: int) -> np.ndarray:
    """Brute force over the extremes of both activations of each pair; a linear function has its extremes there."""
    found = np.zeros((-(-len(codes) // 2), codes.shape[1]), dtype=bool)
    for pair in range(len(found)):
        part = codes[2 * pair : 2 * pair + 2]
        for activations in itertools.product((low, high), repeat=len(part)):
            a = np.array([activations], dtype=np.uint8)
            found[pair] |= (kernel(a, part) != exact(a, part))[0]
    return found


def per_column_scale(weight: np.ndarray, method: str = "minmax") -> np.ndarray:
    return choose_parameters(*weight_range(weight, PER_COLUMN, method), PER_COLUMN).scale


matrices = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
activation_ranges = st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted)


@lawful
@given(codes=hnp.arrays(np.int8, matrices), limits=activation_ranges)
def test_hazards_are_exactly_the_pairs_that_overflow(codes: np.ndarray, limits: list[int]) -> None:
    assert np.array_equal(hazards(codes, *limits), overflows(codes, *limits))


@pytest.mark.parametrize("high", [255, 254, 200, 129, 128])
def test_hazards_at_every_pair_of_codes(high: int) -> None:
    every = np.arange(-128, 128)
    codes = np.stack([np.repeat(every, 256), np.tile(every, 256)]).astype(np.int8)
    total = codes.astype(np.int32).sum(axis=0)
    expected = (high * total > 32767) | (high * total < -32768)
    assert np.array_equal(hazards(codes, 0, high)[0], expected)
    assert expected.any() == (high > 128)


def test_known_pairs() -> None:
    codes = np.array([[64, 65, 127, -64, -65, 127], [64, 64, -128, -64, -64, 127]], dtype=np.int8)
    assert hazards(codes).tolist() == [[False, True, False, False, True, True]]
    assert not hazards(codes, 0, 127).any()


def test_the_odd_tail_is_alone_and_safe() -> None:
    codes = np.full((3, 1), 127, dtype=np.int8)
    assert hazards(codes).tolist() == [[True], [False]]
    assert pair_matrix(codes).tolist() == [[[127], [127]], [[127], [0]]]
    # As a convolution of 3 taps with one channel, the same pairs.
    assert np.array_equal(pair_matrix(np.full((1, 1, 3), 127, dtype=np.int8), "conv"), pair_matrix(codes))


@lawful
@given(
    weight=hnp.arrays(np.float32, matrices, elements=st.floats(-8, 8, width=32)),
    limits=activation_ranges,
    narrow=st.booleans(),
    clip=st.sampled_from([1.0, 0.7, 0.2]),
)
def test_no_activation_overflows_repaired_weights(
    weight: np.ndarray, limits: list[int], narrow: bool, clip: float
) -> None:
    # A clipped range leaves real codes beyond 127, which must be repaired as well.
    scale = (per_column_scale(weight) * clip).astype(np.float32)
    codes, safe_scale, report = make_safe(weight, scale, *limits, narrow=narrow)
    assert codes.dtype == np.int8
    assert codes.min(initial=0) >= (-127 if narrow else -128)
    assert not overflows(codes, *limits).any()
    assert (safe_scale >= scale).all()
    assert report.repaired <= report.channels == weight.shape[1]
    assert (report.repaired == 0) == (report.hazards == 0)


def test_gaussian_weights_overflow_and_repaired_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((301, 40)).astype(np.float32)
    activations = generator.choice(np.array([0, 255], dtype=np.uint8), (64, 301))
    scale = per_column_scale(weight)
    before = quantize(weight, choose_parameters(*weight_range(weight, PER_COLUMN), PER_COLUMN), PER_COLUMN)
    assert (kernel(activations, before) != exact(activations, before)).any()
    codes, _, report = make_safe(weight, scale)
    assert np.array_equal(kernel(activations, codes), exact(activations, codes))
    assert report.pairs == 151 * 40
    assert report.hazards == hazards(before).sum() > 0


def test_safe_channels_keep_their_codes_bit_for_bit() -> None:
    weight = np.random.default_rng(1).standard_normal((64, 50)).astype(np.float32)
    parameters = choose_parameters(*weight_range(weight, PER_COLUMN), PER_COLUMN)
    before = quantize(weight, parameters, PER_COLUMN)
    codes, scale, report = make_safe(weight, parameters.scale)
    safe = ~hazards(before).any(axis=0)
    assert 0 < safe.sum() < 50
    assert report.repaired == (~safe).sum()
    assert np.array_equal(codes[:, safe], before[:, safe])
    assert np.array_equal(scale[safe], parameters.scale[safe])


def test_seven_bit_activations_need_no_repair() -> None:
    weight = np.random.default_rng(2).standard_normal((64, 20)).astype(np.float32)
    scale = per_column_scale(weight)
    codes, same, report = make_safe(weight, scale, 0, 127)
    assert report.repaired == 0
    assert report.error_before == report.error_after
    assert np.array_equal(same, scale)
    assert make_safe(weight, scale, 0, 255)[2].repaired > 0
    assert np.abs(codes).max() >= 127


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_repair_costs_less_than_halving_the_range_and_than_either_remedy_alone(method: str) -> None:
    weight = np.random.default_rng(3).standard_t(6, (576, 64)).astype(np.float32)
    scale = per_column_scale(weight, method)
    codes, safe_scale, report = make_safe(weight, scale)

    def error(some_codes: np.ndarray, some_scale: np.ndarray) -> float:
        return float(((some_codes * some_scale.astype(np.float64) - weight) ** 2).sum())

    assert report.error_after == pytest.approx(error(codes, safe_scale), rel=1e-5)
    halved = 2 * per_column_scale(weight)
    assert report.error_after < error(np.clip(np.rint(weight / halved), -64, 64), halved)
    # Only the scale: the smallest of a fine grid that leaves no hazard, channel by channel.
    grown = scale.copy()
    while (unsafe := hazards(np.clip(np.rint(weight / grown), -128, 127).astype(np.int8)).any(axis=0)).any():
        grown[unsafe] *= np.float32(1.002)
    assert report.error_after <= error(np.clip(np.rint(weight / grown), -128, 127), grown) * 1.0001
    # Only clipping: reduce both codes of a hazardous pair alike.
    clipped = np.clip(np.rint(weight / scale), -128, 127)
    while (unsafe := hazards(clipped.astype(np.int8))).any():
        clipped -= np.sign(clipped) * np.repeat(unsafe, 2, axis=0)
    assert report.error_after < error(clipped, scale)
    assert report.error_before < report.error_after


def test_a_single_pair_is_clipped_to_the_nearest_safe_one() -> None:
    generator = np.random.default_rng(4)
    # Many weights on the grid make another scale expensive, so that the one pair must be clipped.
    weight = (np.round(generator.uniform(-60, 60, (2000, 60))) / 127).astype(np.float32)
    pair = generator.uniform(65, 70, (2, 60)) * np.where(np.arange(60) % 2, -1, 1)
    weight[:2] = pair / 127
    scale = np.full(60, 1 / 127, dtype=np.float32)
    codes, safe_scale, report = make_safe(weight, scale)
    assert report.clipped == report.repaired == 60
    assert np.array_equal(safe_scale, scale)
    grid = np.arange(-128, 128)
    first, second = np.meshgrid(grid, grid, indexing="ij")
    legal = (255 * (first + second) <= 32767) & (255 * (first + second) >= -32768)
    for channel in range(60):
        distance = (first - pair[0, channel]) ** 2 + (second - pair[1, channel]) ** 2
        found = ((codes[:2, channel] - pair[:, channel]) ** 2).sum()
        assert found == pytest.approx(distance[legal].min(), abs=1e-3)


def test_one_large_pair_among_few_weights_grows_the_scale() -> None:
    weight = np.array([[1.0, 1.0], [1.0, -1.0]], dtype=np.float32)
    scale = np.full(2, 1 / 127, dtype=np.float32)
    codes, safe_scale, report = make_safe(weight, scale)
    assert (report.hazards, report.scaled, report.repaired) == (1, 1, 1)
    assert safe_scale[0] > 1.9 * scale[0]
    assert np.abs(codes * safe_scale - weight).max() < safe_scale[0] * 0.505


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_the_magnitude_of_the_weights_does_not_matter(magnitude: float) -> None:
    weight = np.random.default_rng(6).standard_normal((64, 20)).astype(np.float32)
    codes, _, report = make_safe(weight, per_column_scale(weight))
    scaled = (weight * np.float32(magnitude)).astype(np.float32)
    again, _, other = make_safe(scaled, per_column_scale(scaled))
    assert np.mean(again != codes) < 0.01  # but for ties decided by the last bit
    assert other.error_after == pytest.approx(report.error_after * magnitude**2, rel=1e-2)


def test_malformed_input_is_refused() -> None:
    weight = np.zeros((4, 3), dtype=np.float32)
    for refused in (
        lambda: hazards(weight),  # not codes
        lambda: hazards(np.zeros((4, 3), dtype=np.int8), 0, 256),
        lambda: hazards(np.zeros((4, 3), dtype=np.int8), 5, 4),
        lambda: make_safe(weight, np.ones(4, dtype=np.float32)),
        lambda: make_safe(weight * np.float32(np.nan), np.ones(3, dtype=np.float32)),
        lambda: make_safe(weight, np.ones(3, dtype=np.float32), -1, 255),
    ):
        with pytest.raises(FormatError):
            refused()


def run(text: str, weights: np.ndarray, x: np.ndarray, **scalars: np.ndarray) -> np.ndarray:
    import onnxruntime

    model = onnx.parser.parse_model(text)
    for name, value in {"w": weights, **scalars}.items():
        model.graph.initializer.append(ir.to_proto(ir.Tensor(np.ascontiguousarray(value), name=name)))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_the_engine_computes_what_is_emulated() -> None:
    """A processor with VNNI is exact; any other must agree with the emulation; repaired weights are exact on both."""
    generator = np.random.default_rng(5)
    weight = generator.standard_normal((65, 32)).astype(np.float32)
    x = generator.choice(np.array([0, 255], dtype=np.uint8), (8, 65))
    text = """
        <ir_version: 8, opset_import: ["": 13]>
        product (uint8[8, 65] x) => (int32[8, 32] y) { y = MatMulInteger(x, w) }
    """
    unsafe = quantize(weight, choose_parameters(*weight_range(weight, PER_COLUMN), PER_COLUMN), PER_COLUMN)
    found = run(text, unsafe, x)
    assert not np.array_equal(kernel(x, unsafe), exact(x, unsafe))
    assert any(np.array_equal(found, expected(x, unsafe)) for expected in (kernel, exact))
    safe = make_safe(weight, per_column_scale(weight))[0]
    assert np.array_equal(run(text, safe, x), exact(x, safe))


@pytest.mark.parametrize("channels", [4, 5])
def test_the_engine_reads_convolutions_in_our_order(channels: int) -> None:
    """With an odd number of channels pairs straddle two taps; only the right order predicts what saturates."""
    generator = np.random.default_rng(channels)
    codes = np.clip(np.rint(generator.standard_normal((32, channels, 3, 3)) * 60), -128, 127).astype(np.int8)
    x = generator.choice(np.array([0, 255], dtype=np.uint8), (1, channels, 6, 6))
    text = f"""
        <ir_version: 8, opset_import: ["": 13]>
        convolution (uint8[1, {channels}, 6, 6] x) => (uint8[1, 32, 4, 4] y)
        {{ y = QLinearConv(x, one, zero, w, one, w_zero, y_scale, y_zero) }}
    """
    found = run(
        text,
        codes,
        x,
        one=np.float32(1),
        zero=np.uint8(0),
        w_zero=np.int8(0),
        y_scale=np.float32(1024),
        y_zero=np.uint8(128),
    )
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), axis=(1, 2))  # [C, 4, 4, 3, 3]
    rows = windows.transpose(1, 2, 3, 4, 0).reshape(16, -1)
    matrix = conv_to_kn(codes)

    def requantized(accumulated: np.ndarray) -> np.ndarray:
        y = np.clip(np.rint(accumulated.astype(np.float32) / 1024) + 128, 0, 255).astype(np.uint8)
        return y.T.reshape(1, 32, 4, 4)

    predictions = [requantized(compute(rows, matrix)) for compute in (kernel, exact)]
    assert not np.array_equal(*predictions)
    assert any(np.array_equal(found, prediction) for prediction in predictions)
