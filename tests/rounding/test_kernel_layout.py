"""The kernel's order of a convolution's weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import FormatError
from lowbit.rounding import conv_to_kn, kn_to_conv


@settings(derandomize=True, deadline=None)
@given(weight=hnp.arrays(np.int8, hnp.array_shapes(min_dims=2, max_dims=5, max_side=4)))
def test_round_trip(weight: np.ndarray) -> None:
    matrix = conv_to_kn(weight)
    assert matrix.shape == (weight.size // weight.shape[0], weight.shape[0])
    assert np.array_equal(kn_to_conv(matrix, weight.shape), weight)


def test_the_input_channel_runs_fastest_then_the_column() -> None:
    # Each weight says where it stands: channel + 10 * column + 100 * row + 1000 * output.
    m, c, row, column = np.ix_(range(2), range(3), range(2), range(2))
    matrix = conv_to_kn(1000 * m + 100 * row + 10 * column + c)
    assert matrix[:, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert matrix[:, 1].tolist() == [1000 + each for each in matrix[:, 0]]


def test_a_grouped_convolution_is_the_product_with_the_inputs_of_its_group() -> None:
    import torch

    generator = np.random.default_rng(0)
    x = generator.standard_normal((1, 6, 4, 4)).astype(np.float32)
    weight = generator.standard_normal((4, 3, 3, 3)).astype(np.float32)
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight), groups=2).numpy()
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), axis=(1, 2))
    for output in range(4):
        group = windows[3 * (output // 2) : 3 * (output // 2) + 3]
        rows = group.transpose(1, 2, 3, 4, 0).reshape(4, -1)
        np.testing.assert_allclose(rows @ conv_to_kn(weight)[:, output], expected[0, output].ravel(), rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(FormatError):
        conv_to_kn(np.zeros(3))
    with pytest.raises(FormatError):
        kn_to_conv(np.zeros((4, 3)), (3, 5, 1, 1))
