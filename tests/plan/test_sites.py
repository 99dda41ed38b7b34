"""Sites: what belongs to an operator, and the reason for everything that cannot be done with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site

IMAGE = "float[1,8,6,6] x"


def only(sites: tuple[Site, ...], op_type: str) -> Site:
    (site,) = (site for site in sites if site.op_type == op_type)
    return site


@pytest.mark.parametrize("order", ["m, b", "b, m"])
@pytest.mark.parametrize("rank", ["4", "2,4"])
def test_the_bias_behind_a_matmul_belongs_to_it(order: str, rank: str, sites_of: Callable) -> None:
    text = f"g (float[{rank},16] x, float[16,5] w, float[5] b) => (float[{rank},5] y) "
    text += f"{{ m = MatMul(x, w)\n y = Add({order}) }}"
    (site,) = sites_of(text)
    assert site.op_type == "MatMul"
    assert site.bias_node is not None
    assert (site.bias.name, site.bias_node.op_type, site.output.name) == ("b", "Add", "y")
    assert site.weight_index == 1
    assert site.weight_array().shape == (16, 5)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("m = MatMul(x, w)\n y = Add(m, x2)", "the other operand is computed"),
        ("m = MatMul(x, w)\n y = Add(m, b2)", "a bias has one axis"),
        ("m = MatMul(x, w)\n t = Tanh(m)\n a = Add(m, b)\n y = Add(a, t)", "somebody else reads the product"),
    ],
)
def test_other_adds_are_sites_of_their_own(body: str, why: str, sites_of: Callable) -> None:
    text = f"g (float[4,16] x, float[4,5] x2, float[16,5] w, float[5] b, float[4,5] b2) => (float[4,5] y) {{ {body} }}"
    sites = sites_of(text)
    assert only(sites, "MatMul").bias_node is None, why
    assert sum(site.op_type == "Add" for site in sites) == body.count("Add")


def test_activations_behind_an_operator_belong_to_it(sites_of: Callable) -> None:
    constants = "<float l = {0.0}, float h = {6.0}>"
    text = f"g ({IMAGE}, float[8,8,1,1] w) => (float[1,8,6,6] y) {constants} "
    text += "{ c = Conv(x, w)\n r = Relu(c)\n y = Clip(r, l, h) }"
    (site,) = sites_of(text)
    assert [node.op_type for node in site.fused] == ["Relu", "Clip"]
    assert (site.output.name, site.last.op_type) == ("y", "Clip")
    # Who else reads the value in front of it, or returns it, needs it as it is.
    text = f"g ({IMAGE}, float[8,8,1,1] w) => (float[1,8,6,6] y, float[1,8,6,6] c) {{ c = Conv(x, w)\n y = Relu(c) }}"
    assert only(sites_of(text), "Conv").fused == ()
    text = f"g ({IMAGE}, float[8,8,1,1] w) => (float[1,8,6,6] y) {{ c = Conv(x, w)\n r = Relu(c)\n y = Add(c, r) }}"
    assert only(sites_of(text), "Conv").fused == ()
    # Bounds that are computed cannot be compared with a range.
    text = f"g ({IMAGE}, float h, float[8,8,1,1] w) => (float[1,8,6,6] y) {{ c = Conv(x, w)\n y = Clip(c, , h) }}"
    assert only(sites_of(text), "Conv").fused == ()


@pytest.mark.parametrize(
    ("text", "op_type", "execution", "reason"),
    [
        (f"g ({IMAGE}) => (float[1,8,6,6] y) {{ y = Erf(x) }}", "Erf", "static", "no integer kernel for Erf"),
        (f"g ({IMAGE}) => (float[1,8,6,6] y) {{ y = local.Conv(x) }}", "Conv", "static", "no integer kernel"),
        (
            f"g ({IMAGE}, float[8,8,1,1] z) => (float[1,8,6,6] y) {{ y = Conv(x, z) }}",
            "Conv",
            "static",
            "weight is computed",
        ),
        (
            f"g ({IMAGE}, float[8,8,1,1] w, float[8] z) => (float[1,8,6,6] y) {{ y = Conv(x, w, z) }}",
            "Conv",
            "static",
            "bias is computed",
        ),
        (
            "g (float[16,4] x, float[16,5] w) => (float[4,5] y) { y = Gemm<transA=1>(x, w) }",
            "Gemm",
            "static",
            "transA",
        ),
        (
            "g (float[4,16] x, float[16,5] w) => (float[4,5] y) { y = Gemm<alpha=0.5>(x, w) }",
            "Gemm",
            "dynamic",
            "alpha",
        ),
        ("g (float[16,5] x, float[4,16] w) => (float[4,5] y) { y = MatMul(w, x) }", "MatMul", "static", "first input"),
        (
            "g (float[2,4,16] x, float[2,16,5] w) => (float[2,4,5] y) { y = MatMul(x, w) }",
            "MatMul",
            "static",
            "batch of matrices",
        ),
        (
            "g (float[4,16] x, float[16,5] z) => (float[4,5] y) { y = MatMul(x, z) }",
            "MatMul",
            "weight-only",
            "no constant",
        ),
        ("g (int64[4] x, int64[4] z) => (int64[4] y) { y = Add(x, z) }", "Add", "static", "not float32"),
        ("g (float16[4] x, float16[4] z) => (float16[4] y) { y = Add(x, z) }", "Add", "static", "not float32"),
        (
            (
                "g (float[6,1,8] x, float[1,32,8] w, float[1,32,8] wr) => (float[6,1,1,8] y) "
                "{ y = LSTM<hidden_size=8>(x, w, wr) }"
            ),
            "LSTM",
            "static",
            "no integer kernel for LSTM",
        ),
        (
            (
                "g (float[1,6,8] x, float[1,32,8] w, float[1,32,8] wr) => (float[1,6,1,8] y)"
                " { y = LSTM<hidden_size=8, layout=1>(x, w, wr) }"
            ),
            "LSTM",
            "dynamic",
            "layout=1",
        ),
        (
            (
                "g (float[6,1,8] x, float[1,24,8] w, float[1,24,8] wr) => (float[6,1,1,8] y) "
                "{ y = GRU<hidden_size=8>(x, w, wr) }"
            ),
            "GRU",
            "dynamic",
            "no kernel for GRU",
        ),
    ],
)
def test_refusals_say_why(text: str, op_type: str, execution: str, reason: str, sites_of: Callable) -> None:
    site = only(sites_of(text), op_type)
    assert not site.allows(execution)
    assert reason in site.refusals[execution]


def test_what_is_allowed_is_not_refused(sites_of: Callable) -> None:
    (site,) = sites_of(f"g ({IMAGE}, float[8,8,1,1] w) => (float[1,8,6,6] y) {{ y = Conv(x, w) }}")
    assert site.refusals == {}
    (site,) = sites_of(
        "g (float[6,1,8] x, float[1,32,8] w, float[1,32,8] wr) => (float[6,1,1,8] y) "
        "{ y = LSTM<hidden_size=8>(x, w, wr) }"
    )
    assert site.allows("dynamic")


def test_only_constants_are_nothing_to_quantize(sites_of: Callable) -> None:
    text = "g (float[4] x) => (float[4] y) <float[4] a = {1,2,3,4}, float[4] c = {1,1,1,1}> "
    text += "{ s = Add(a, c)\n y = Tanh(x) }"
    assert only(sites_of(text), "Add").refusals["static"] == "it only reads constants"
    text = "g (float[4] x) => (float[2,2] y) <float[4] a = {1,2,3,4}, int64[2] s = {2, 2}> { y = Reshape(a, s) }"
    assert only(sites_of(text), "Reshape").refusals["static"] == "it only moves constants"


def test_subgraphs_are_walked(sites_of: Callable) -> None:
    text = """g (float[4,8] x, bool c, float[8,5] w, float[8,5] w2) => (float[4,5] y) {
        y = If (c) <
            then_branch = t () => (float[4,5] a) { a = MatMul(x, w) },
            else_branch = e () => (float[4,5] d) { m = MatMul(x, w2)
                d = Relu(m) }
        >
    }"""
    sites = sites_of(text)
    assert len(sites) == len({site.path for site in sites}) == 3
    inner = [site for site in sites if site.op_type == "MatMul"]
    assert sorted(site.path.rsplit("/", 1)[0] for site in inner) == ["If_0/else_branch", "If_0/then_branch"]
    for site in inner:
        assert site.subgraph
        assert "subgraph" in site.refusals["static"]
        assert site.allows("weight-only")
        assert site.weight_array().shape == (8, 5)
    assert not only(sites, "If").subgraph


def test_weights_behind_a_dequantize_are_weights(sites_of: Callable) -> None:
    text = """g (float[4,3] x) => (float[4,2] y)
        <int8[3,2] q = {1, -2, 3, -4, 5, -6}, float[2] s = {0.5, 2.0}, int8[2] z = {1, 0}> {
        d = DequantizeLinear<axis=1>(q, s, z)
        y = MatMul(x, d)
    }"""
    site = only(sites_of(text), "MatMul")
    assert site.weight_index == 1
    assert np.array_equal(site.weight_array(), np.array([[0, -4], [1, -8], [2, -12]], np.float32))
    decoder = only(sites_of(text), "DequantizeLinear")
    assert not decoder.allows("static")
    assert "arrived quantized" in decoder.refusals["static"]


def test_every_node_is_in_exactly_one_site(sites_of: Callable) -> None:
    text = f"""g ({IMAGE}, float[8,8,3,3] w, float[288,4] w2, float[4] b) => (float[1,4] y) {{
        c = Conv<pads=[1,1,1,1]>(x, w)\n r = Relu(c)\n a = Add(r, x)\n r2 = Relu(a)\n t = Tanh(r2)
        f = Flatten(t)\n m = MatMul(f, w2)\n n = Add(m, b)\n y = Relu(n)
    }}"""
    sites = sites_of(text)
    nodes = [node for site in sites for node in (site.node, site.bias_node, *site.fused) if node is not None]
    assert len(nodes) == len(set(nodes)) == 9
    assert [site.op_type for site in sites] == ["Conv", "Add", "Tanh", "Flatten", "MatMul"]
