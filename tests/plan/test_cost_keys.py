"""Names of costs: alike for what takes the same time, different for what does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lowbit.plan.cost_keys import conversion_key, site_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site

CONV = (
    "g (float[1,8,12,12] x, float[16,8,3,3] w) => (float[1,16,12,12] y) "
    "{ y = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w) }"
)


def known(sites: tuple[Site, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes that the graph itself says."""
    values = [value for site in sites for value in (*site.node.inputs, *site.node.outputs, site.output) if value]
    return {value.name: tuple(value.shape.numpy()) for value in values if value.shape is not None}


def keys(sites_of: Callable, text: str) -> list[str | None]:
    sites = sites_of(text)
    return [site_key(site, known(sites)) for site in sites]


def test_a_key_can_be_read(sites_of: Callable) -> None:
    assert keys(sites_of, CONV) == ["Conv pads=1,1,1,1 strides=1,1 (1x8x12x12, 16x8x3x3)"]
    assert keys(
        sites_of,
        "g (float[1,8,12,12] x, float[16,8,1,1] w, float[16] b) => (float[1,16,1,1] y) "
        "{ c = Conv<group=1>(x, w, b)\n r = Relu(c)\n s = Sigmoid(r)\n m = Mul(r, s)\n y = GlobalAveragePool(m) }",
    ) == [
        "Conv group=1 (1x8x12x12, 16x8x1x1, 16)+Relu",
        "Sigmoid (1x16x12x12) = 1x16x12x12 <Relu >Mul",
        "Mul (1x16x12x12, 1x16x12x12) = 1x16x12x12 <Relu,Sigmoid >GlobalAveragePool",
        "GlobalAveragePool (1x16x12x12) = 1x16x1x1 <Mul >output",
    ]


def test_names_and_numbers_of_weights_do_not_matter(sites_of: Callable) -> None:
    twice = (
        "g (float[1,8,12,12] x, float[8,8,3,3] w1, float[8,8,3,3] w2) => (float[1,8,12,12] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, w1)\n y = Conv<pads=[1,1,1,1], kernel_shape=[3,3]>(c, w2) }"
    )
    first, second = keys(sites_of, twice)
    assert first == second


@pytest.mark.parametrize(
    ("read", "weight", "body"),
    [
        ("2,8,12,12", "16,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w)"),
        ("1,8,13,12", "16,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w)"),
        ("1,8,12,12", "24,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w)"),
        ("1,8,12,12", "16,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)"),
        ("1,8,12,12", "16,8,3,3", "y = Conv<pads=[0,0,0,0], strides=[1,1]>(x, w)"),
        ("1,8,12,12", "16,8,3,3", 'y = Conv<auto_pad="SAME_UPPER", strides=[1,1]>(x, w)'),
        ("1,8,12,12", "16,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1], dilations=[2,2]>(x, w)"),
        ("1,8,12,12", "16,4,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1], group=2>(x, w)"),
        ("1,8,12,12", "16,8,3,3", "y = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w, b)"),
        ("1,8,12,12", "16,8,3,3", "c = Conv<pads=[1,1,1,1], strides=[1,1]>(x, w)\n y = Relu(c)"),
    ],
    ids=["batch", "height", "channels", "stride", "pads", "auto_pad", "dilation", "group", "bias", "activation"],
)
def test_whatever_changes_the_work_changes_the_key(sites_of: Callable, read: str, weight: str, body: str) -> None:
    text = f"g (float[{read}] x, float[{weight}] w, float[16] b) => (float[n,c,h,v] y) {{ {body} }}"
    changed = keys(sites_of, text)[0]
    assert changed is not None
    assert changed != keys(sites_of, CONV)[0]


def test_padding_of_the_same_convolution_is_told_apart(sites_of: Callable) -> None:
    texts = [CONV.replace("pads=[1,1,1,1]", f'auto_pad="{kind}"') for kind in ("VALID", "SAME_UPPER")]
    texts[0] = texts[0].replace("float[1,16,12,12] y", "float[1,16,10,10] y")
    assert len({keys(sites_of, text)[0] for text in texts}) == 2
    plain = CONV.replace("pads=[1,1,1,1], ", "").replace("float[1,16,12,12] y", "float[1,16,10,10] y")
    spelled = plain.replace("strides", 'auto_pad="NOTSET", strides')
    assert keys(sites_of, plain) == keys(sites_of, spelled)


def test_pooling_kernels_are_told_apart(sites_of: Callable) -> None:
    pool = "g (float[1,8,7,7] x) => (float[1,8,3,3] y) { y = MaxPool<kernel_shape=[K,K], strides=[2,2]>(x) }"
    two, three = (keys(sites_of, pool.replace("K", size))[0] for size in ("2", "3"))
    assert two != three


def test_what_constants_decide_is_told_apart(sites_of: Callable) -> None:
    resize = (
        'g (float[1,8,4,4] x) => (float[1,8,S,S] y) <float[4] k = {1,1,F,F}> { y = Resize<mode="nearest">(x, , k) }'
    )
    double, triple = (keys(sites_of, resize.replace("S", s).replace("F", f))[0] for s, f in (("8", "2"), ("12", "3")))
    assert double is not None
    assert double != triple


def test_operators_without_weights_are_named_by_their_neighbours(sites_of: Callable) -> None:
    def add(inner: str, outer: str) -> str | None:
        found = keys(
            sites_of,
            "g (float[1,8,6,6] x, float[8,8,1,1] w) => (float[1,8,6,6] y) "
            f"{{ a = {inner}\n s = Add(a, x)\n y = {outer} }}",
        )
        return found[1]

    assert add("Conv(x, w)", "Sigmoid(s)") != add("Tanh(x)", "Sigmoid(s)")
    assert add("Conv(x, w)", "Sigmoid(s)") != add("Conv(x, w)", "Tanh(s)")


def test_an_input_and_a_constant_are_told_apart(sites_of: Callable) -> None:
    fed = "g (float[4,8] x, float[4,8] z) => (float[4,8] y) { y = Add(x, z) }"
    fixed = "g (float[4,8] x, float[4,8] w) => (float[4,8] y) { y = Add(x, w) }"
    assert keys(sites_of, fed) == ["Add (4x8, 4x8) = 4x8 <input,input >output"]
    assert keys(sites_of, fixed) == ["Add (4x8, 4x8) = 4x8 <input >output"]


def test_a_bias_behind_a_product_belongs_to_it(sites_of: Callable) -> None:
    body = "m = MatMul(x, w)\n a = Add(m, b)\n y = Relu(a)"
    text = f"g (float[4,8] x, float[8,8] w, float[8] b) => (float[4,8] y) {{ {body} }}"
    assert keys(sites_of, text)[0] == "MatMul (4x8, 8x8)+bias+Relu"


def test_absent_inputs_and_scalars_keep_their_place(sites_of: Callable) -> None:
    text = "g (float[4,8] x) => (float[4,8] y) <float top = {6}> { y = Clip(x, , top) }"
    assert keys(sites_of, text) == ["Clip (4x8, -, scalar) = 4x8 <input >output"]


def test_without_a_shape_there_is_no_key(sites_of: Callable) -> None:
    (site,) = sites_of("g (float[n,8] x, float[8,8] w) => (float[n,8] y) { y = MatMul(x, w) }")
    assert site_key(site, {}) is None
    assert site_key(site, {"x": (4, 8)}) == "MatMul (4x8, 8x8)"
    # What was observed comes before what the graph says.
    (fixed,) = sites_of("g (float[4,8] x, float[8,8] w) => (float[4,8] y) { y = MatMul(x, w) }")
    assert site_key(fixed, {}) == "MatMul (4x8, 8x8)"
    assert site_key(fixed, {"x": (64, 8)}) == "MatMul (64x8, 8x8)"


def test_conversions_are_told_apart_by_shape_and_place() -> None:
    found = {
        conversion_key(shape, where=where)
        for shape in ((1, 8, 4, 4), (1, 84, 4), (), (1,))
        for where in ("inside", "input", "output")
    }
    assert len(found) == 12
    assert conversion_key((1, 8, 4, 4), where="inside") == "1x8x4x4 inside"
    assert conversion_key((), where="input") == "scalar input"
