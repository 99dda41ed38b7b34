"""Which tensors carry codes, and which share a scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowbit.plan.ranges import coded_tensors, share_scales

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site


def executions(sites: tuple[Site, ...], *floats: str) -> dict[str, str]:
    return {site.path: "static" if site.allows("static") and site.op_type not in floats else "float" for site in sites}


def test_codes_are_where_integer_sites_read_and_write(sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[1,8,6,6] x, float[8,8,1,1] w, float[8,8,1,1] w2) => (float[1,8,6,6] y) "
        "{ c = Conv(x, w)\n r = Relu(c)\n t = Tanh(r)\n y = Conv(t, w2) }"
    )
    tensors = {tensor.name: tensor for tensor in coded_tensors(sites, executions(sites))}
    assert list(tensors) == ["x", "r", "t", "y"]
    assert tensors["x"].producer is None
    assert tensors["r"].producer is sites[0]
    assert tensors["r"].readers == ()
    assert tensors["t"].producer is None
    assert tensors["t"].readers == (sites[2],)
    assert coded_tensors(sites, executions(sites, "Conv")) == ()


def test_a_product_that_nobody_reads_in_codes_writes_float(sites_of: Callable) -> None:
    text = "g (float[4,8] x, float[8,6] w, float[6,5] w2) => (float[4,5] y) { m = MatMul(x, w)\n y = MatMul(m, w2) }"
    sites = sites_of(text)
    assert [tensor.name for tensor in coded_tensors(sites, executions(sites))] == ["x", "m"]
    last_float = {**executions(sites), sites[1].path: "float"}
    assert [tensor.name for tensor in coded_tensors(sites, last_float)] == ["x"]


def test_what_moves_codes_hands_its_scale_on(sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[1,8,6,6] x, float[8,8,1,1] w) => (float[1,72] y) "
        "{ c = Conv(x, w)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)\n f = Flatten(p)\n y = Sigmoid(f) }"
    )
    tensors = coded_tensors(sites, executions(sites))
    ranges = {tensor.name: (-1.0, 1.0) for tensor in tensors}
    assert share_scales(tensors, ranges) == {"x": "x", "c": "c", "p": "c", "f": "c", "y": "y"}


@pytest.mark.parametrize(("width", "shared"), [(1.0, True), (1.9, True), (2.0, True), (2.1, False), (100.0, False)])
def test_like_branches_of_a_concat_share(width: float, shared: bool, sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[1,8,6,6] x, float[8,8,1,1] w, float[8,8,1,1] w2) => (float[1,16,6,6] y) "
        "{ a = Conv(x, w)\n b2 = Conv(x, w2)\n y = Concat<axis=1>(a, b2) }"
    )
    tensors = coded_tensors(sites, executions(sites))
    found = share_scales(tensors, {"x": (-1.0, 1.0), "a": (-0.5, 0.5), "b2": (-width / 2, width / 2), "y": (-1.0, 1.0)})
    assert (found["a"] == found["b2"] == found["y"]) is shared
    assert found["x"] == "x"


def test_a_concat_with_a_constant_shares_nothing(sites_of: Callable) -> None:
    sites = sites_of(
        "g (float[1,8,6,6] x, float[8,8,1,1] w, float[1,8,6,6] b) => (float[1,16,6,6] y) "
        "{ a = Conv(x, w)\n y = Concat<axis=1>(a, b) }"
    )
    tensors = coded_tensors(sites, executions(sites))
    found = share_scales(tensors, {tensor.name: (-1.0, 1.0) for tensor in tensors})
    assert found["a"] != found["y"]
