"""The cost model: grows with what is computed, and orders kernels as they were measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.plan.cost import conversion_cost, dynamic_cost, float_cost, static_cost
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site

COSTS = find_target("onnxruntime-x86-avx2").costs
assert COSTS is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaped:
    """A site and the shapes around it."""

    site: Site
    shapes: dict[str, tuple[int, ...]]

    def ratio(self) -> float:
        """Predicted time in float over that in integers."""
        return float_cost(self.site, self.shapes, COSTS) / static_cost(self.site, self.shapes, COSTS)


def conv(sites_of: Callable, channels: int, outputs: int, kernel: int, size: int, group: int = 1) -> Shaped:
    pad = kernel // 2
    (site,) = sites_of(
        f"g (float[1,{channels},{size},{size}] x, float[{outputs},{channels // group},{kernel},{kernel}] w)"
        f" => (float[1,{outputs},{size},{size}] y) {{ y = Conv<pads=[{pad},{pad},{pad},{pad}], group={group}>(x, w) }}"
    )
    return Shaped(site=site, shapes={"x": (1, channels, size, size), "y": (1, outputs, size, size)})


def matmul(sites_of: Callable, rows: int, depth: int, columns: int) -> Shaped:
    (site,) = sites_of(
        f"g (float[{rows},{depth}] x, float[{depth},{columns}] w) => (float[{rows},{columns}] y) {{ y = MatMul(x, w) }}"
    )
    return Shaped(site=site, shapes={"x": (rows, depth), "y": (rows, columns)})


def test_measured_kernels_are_ordered_as_measured(sites_of: Callable) -> None:
    # Float time over integer time of single kernels with u8 activations and s8 weights, one thread.
    assert conv(sites_of, 256, 256, 1, 28).ratio() > 1.5  # measured 1.94
    assert conv(sites_of, 512, 512, 1, 14).ratio() > 1.5  # 1.93
    assert conv(sites_of, 128, 128, 3, 28).ratio() > 1.2  # 2.00
    assert conv(sites_of, 96, 96, 3, 56, group=96).ratio() < 1  # 0.78
    assert conv(sites_of, 32, 32, 3, 112, group=32).ratio() < 1
    # Small depthwise layers lose less than large ones.
    assert conv(sites_of, 384, 384, 3, 14, group=384).ratio() > conv(sites_of, 32, 32, 3, 112, group=32).ratio()
    assert conv(sites_of, 3, 32, 3, 112).ratio() < 1  # 0.71 with stride 2
    assert matmul(sites_of, 1, 2048, 2048).ratio() > 2  # 3.66
    assert matmul(sites_of, 128, 384, 1536).ratio() > 1.5  # 1.89


SIZES = st.tuples(st.integers(1, 64), st.integers(1, 64)).map(sorted)


@pytest.mark.parametrize("kind", ["dense", "pointwise", "depthwise"])
def test_more_pixels_cost_more(kind: str, sites_of: Callable) -> None:
    shaped = {
        "dense": lambda: conv(sites_of, 16, 16, 3, 8),
        "pointwise": lambda: conv(sites_of, 16, 16, 1, 8),
        "depthwise": lambda: conv(sites_of, 16, 16, 3, 8, group=16),
    }[kind]()

    @given(SIZES)
    def law(sizes: list[int]) -> None:
        few, many = ({"x": (1, 16, size, size), "y": (1, 16, size, size)} for size in sizes)
        for cost in (float_cost, static_cost, dynamic_cost):
            low, high = cost(shaped.site, few, COSTS), cost(shaped.site, many, COSTS)
            assert low is not None
            assert high is not None
            assert COSTS.node <= low <= high
            assert low < high or sizes[0] == sizes[1]

    law()


def test_more_channels_and_larger_kernels_cost_more(sites_of: Callable) -> None:
    for cost in (float_cost, static_cost):
        for wider in (
            [conv(sites_of, channels, 16, 3, 14) for channels in (8, 16, 32, 64)],
            [conv(sites_of, 16, outputs, 3, 14) for outputs in (8, 16, 32, 64)],
            [conv(sites_of, 16, 16, kernel, 14) for kernel in (3, 5, 7)],
            [matmul(sites_of, rows, 64, 64) for rows in (32, 64, 128)],
            [matmul(sites_of, 8, depth, 64) for depth in (32, 64, 128)],
            [matmul(sites_of, 8, 64, columns) for columns in (32, 64, 128)],
        ):
            times = [cost(shaped.site, shaped.shapes, COSTS) for shaped in wider]
            assert times == sorted(times)
            assert len(set(times)) == len(times)


@given(SIZES, st.integers(1, 64))
def test_conversions_grow_and_layout_costs(sizes: list[int], channels: int) -> None:
    for quantize in (True, False):
        few, many = (conversion_cost((1, channels, size, size), COSTS, quantize=quantize) for size in sizes)
        assert COSTS.node < few <= many
        flat = conversion_cost((1, channels * sizes[1] ** 2), COSTS, quantize=quantize)
        # Four axes change their layout on the way, unless there is nothing to move.
        assert (many > flat) == (channels > 1 and sizes[1] > 1)
        assert conversion_cost(None, COSTS, quantize=quantize) == COSTS.node


def test_finding_ranges_at_run_time_costs_more_than_knowing_them(sites_of: Callable) -> None:
    shaped = matmul(sites_of, 8, 256, 256)
    assert dynamic_cost(shaped.site, shaped.shapes, COSTS) > static_cost(shaped.site, shaped.shapes, COSTS)


def test_unknown_shapes_have_no_cost(sites_of: Callable) -> None:
    shaped = matmul(sites_of, 8, 256, 256)
    assert float_cost(shaped.site, {}, COSTS) is None
    assert static_cost(shaped.site, {}, COSTS) is None
    assert dynamic_cost(shaped.site, {"y": (8, 256)}, COSTS) is None
