"""Which kernel runs which operator: told in float models and artifacts, whatever the engine merges, moves or adds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowbit.graph import clean, load_model, serialize
from lowbit.methods.attribution import Marked, Owner, mark, owners_of_kernels
from lowbit.methods.probe import timing_artifact
from lowbit.methods.site_times import time_sites
from lowbit.plan.sites import Site, find_sites
from lowbit.runtime.kernels import INTEGER_KERNELS, Kernel, read_kernels
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

TARGET = find_target("onnxruntime-x86-avx2")

NET = """g (float[1,16,16,16] x, float[32,16,3,3] w1, float[32] b1, float[32,1,3,3] w2, float[32,32,1,1] w3,
    float[32,10] w4, float[10] b4) => (float[1,10] y) <float l = {0.0}, float h = {6.0}> {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    d = Conv<pads=[1,1,1,1], group=32>(r, w2)
    k = Clip(d, l, h)
    e = Conv(k, w3)
    s = Add(e, r)
    t = Sigmoid(s)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)
    p = GlobalAveragePool(m)
    f = Flatten(p)
    q = MatMul(f, w4)
    y = Add(q, b4)
}"""


def owned(model: ir.Model, sites: tuple[Site, ...]) -> list[tuple[Kernel, Owner | None]]:
    marked = mark(model, sites)
    kernels = read_kernels(serialize(marked.model)).kernels
    return list(zip(kernels, owners_of_kernels(kernels, marked), strict=True))


def table(found: list[tuple[Kernel, Owner | None]]) -> list[str]:
    return [f"{kernel.op_type} {owner.kind} {owner.name}" if owner else kernel.op_type for kernel, owner in found]


@pytest.fixture
def network(parse: Callable, noise: Callable, build: Callable) -> Callable:
    def call(text: str = NET, **options: object) -> tuple[ir.Model, ir.Model, tuple[Site, ...]]:
        proto = parse(text)
        built = build(proto, noise(proto), **options)
        return built.model, built.applied.model, find_sites(built.model, TARGET)

    return call


def test_every_kernel_of_a_float_model_has_its_operator(network: Callable) -> None:
    model, _, sites = network()
    assert table(owned(model, sites)) == [
        # A change of the layout belongs to what needs it; activations and the Add have gone into the convolutions.
        "ReorderInput site Conv_0",
        "Conv site Conv_0",
        "Conv site Conv_1",
        "Conv site Conv_2",
        "MaxPool site MaxPool_0",
        "GlobalAveragePool site GlobalAveragePool_0",
        "ReorderOutput site GlobalAveragePool_0",
        "Flatten site Flatten_0",
        "Gemm site MatMul_0",
    ]


def test_every_kernel_of_a_static_artifact_has_its_operator_or_its_conversion(network: Callable) -> None:
    _, artifact, sites = network()
    found = table(owned(artifact, sites))
    assert Counter(found) == Counter(
        [
            "QuantizeLinear quantize x",
            "Transpose quantize x",
            "QLinearConv site Conv_0",
            "QLinearConv site Conv_1",
            "QLinearConv site Conv_2",
            "QLinearAdd site Add_0",
            "Transpose site Sigmoid_0",
            "QLinearSigmoid site Sigmoid_0",
            "MaxPool site MaxPool_0",
            "QLinearGlobalAveragePool site GlobalAveragePool_0",
            "Flatten site Flatten_0",
            "QGemm site MatMul_0",
        ]
    )


def test_what_a_dynamic_operator_needs_at_run_time_is_its_own(network: Callable) -> None:
    _, artifact, sites = network(method="dynamic")
    found = owned(artifact, sites)
    assert all(owner is not None and owner.kind == "site" for _, owner in found)
    for path, activation in (("Conv_0", "Relu"), ("Conv_1", "Clip")):
        own = [kernel.op_type for kernel, owner in found if owner.name == path]
        assert {"DynamicQuantizeLinear", "ConvInteger", "Cast", "Mul", activation} <= set(own)
        assert own.count("ConvInteger") == 1
    assert [kernel.op_type for kernel, owner in found if owner.name == "MatMul_0"] == ["DynamicQuantizeMatMul"]


def test_decoding_a_stored_weight_belongs_to_who_reads_it(network: Callable) -> None:
    _, artifact, sites = network(weights="uint4")
    found = owned(artifact, sites)
    decoding = Counter(
        owner.name for kernel, owner in found if kernel.op_type == "DequantizeLinear" and owner.kind == "site"
    )
    assert set(decoding) == {"Conv_0", "Conv_1", "Conv_2", "MatMul_0"}
    # The activations in front of what does not fuse are conversions, and keep the names of the float model.
    tensors = {owner.name for _, owner in found if owner.kind == "dequantize"}
    assert tensors == {"x", "r", "k", "f"}


def test_an_lstm_owns_its_kernel_in_float_and_in_integers(network: Callable) -> None:
    text = """g (float[5,1,8] x, float[1,64,8] w, float[1,64,16] wr, float[1,128] b, float[16,4] wo)
        => (float[5,1,1,4] y) { l = LSTM<hidden_size=16>(x, w, wr, b)\n y = MatMul(l, wo) }"""
    model, artifact, sites = network(text, method="dynamic")
    for source, operator in ((model, "LSTM"), (artifact, "DynamicQuantizeLSTM")):
        found = owned(source, sites)
        assert all(owner is not None for _, owner in found)
        assert [owner.name for kernel, owner in found if kernel.op_type == operator] == ["LSTM_0"]


def test_operators_in_subgraphs_have_kernels_under_their_path(parse: Callable) -> None:
    text = """g (float[2,3] x, bool c) => (float[2,3] y) {
        n = Neg(x)
        v = If (c) < then_branch = t () => (float[2,3] a) { a = Sigmoid(n) },
            else_branch = e () => (float[2,3] u) { u = Tanh(n) } >
        y = Abs(v)
    }"""
    model = clean(load_model(parse(text))).model
    sites = find_sites(model, TARGET)
    found = {kernel.op_type: owner.name for kernel, owner in owned(model, sites)}
    assert found["Sigmoid"].startswith(found["If"] + "/then_branch/")
    assert found["Tanh"].startswith(found["If"] + "/else_branch/")
    assert set(found.values()) == {site.path for site in sites}


def test_a_marked_copy_computes_the_same_and_the_model_is_left_alone(network: Callable) -> None:
    model, artifact, sites = network()
    feed = {"x": np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)}
    for source in (model, artifact):
        before = serialize(source)
        marked = mark(source, sites)
        assert serialize(source) == before
        names = [node.name for node in marked.model.graph]
        assert names == [f"#{index}#" for index in range(len(names))]
        assert len(marked.owners) == len(names)
        plain, copy = (open_session(data, threads=1).run(feed) for data in (before, serialize(marked.model)))
        np.testing.assert_array_equal(copy[0], plain[0])


def test_operators_that_look_alike_are_told_apart(network: Callable) -> None:
    weights = ", ".join(f"float[8,8,3,3] w{index}" for index in range(5))
    body = "\n".join(f"t{index + 1} = Conv<pads=[1,1,1,1]>(t{index}, w{index})" for index in range(5))
    model, artifact, sites = network(f"g (float[1,8,9,9] t0, {weights}) => (float[1,8,9,9] t5) {{ {body} }}")
    order = [site.path for site in sites]
    for source, operator in ((model, "Conv"), (artifact, "QLinearConv")):
        # Kernels come in the order in which the engine runs them, which a chain leaves no choice about.
        found = owned(source, sites)
        assert [owner.name for kernel, owner in found if kernel.op_type == operator] == order


@pytest.mark.parametrize("function", ["Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Relu"])
def test_a_convolution_that_computes_its_activation_keeps_its_kernel(parse: Callable, function: str) -> None:
    # Sixteen channels fill a block of the float kernels on every x86 processor; only those compute other functions.
    text = f"""g (float[1,16,7,7] x, float[16,16,3,3] w1, float[16,16,1,1] w2) => (float[1,16,7,7] y) {{
        a = Conv<pads=[1,1,1,1]>(x, w1)
        b = {function}(a)
        y = Conv(b, w2)
    }}"""
    model = clean(load_model(parse(text))).model
    found = owned(model, find_sites(model, TARGET))
    assert [owner.name for kernel, owner in found if kernel.op_type == "Conv"] == ["Conv_0", "Conv_1"]
    assert {owner.name for _, owner in found} == {"Conv_0", "Conv_1"}


def test_who_cannot_be_told_is_nobody() -> None:
    kernels = (
        Kernel(op_type="Conv", name="#0#", inputs=("x",), outputs=("c",)),
        Kernel(op_type="Mystery", name="m", inputs=("z",), outputs=("v",)),
    )
    owner = Owner(kind="site", name="conv")
    marked = Marked(model=None, owners=(owner,), tensors={}, weights={})  # type: ignore[arg-type]
    assert owners_of_kernels(kernels, marked) == (owner, None)


STEPS = ("pointwise", "dense", "depthwise", "sigmoid", "relu", "add", "mul", "pool", "neg")


@st.composite
def networks(draw: st.DrawFn) -> str:
    """A random graph over feature maps of one shape: chains, diamonds and residual blocks."""
    names, lines, weights = ["x"], [], []
    for index in range(draw(st.integers(2, 7))):
        source = names[-1 - draw(st.integers(0, min(2, len(names) - 1)))]
        other = draw(st.sampled_from(names))
        name, weight = f"t{index}", f"w{index}"
        kind = draw(st.sampled_from(STEPS))
        shape = {"pointwise": "8,8,1,1", "dense": "8,8,3,3", "depthwise": "8,1,3,3"}.get(kind)
        if shape is not None:
            group = 8 if kind == "depthwise" else 1
            pads = "0,0,0,0" if kind == "pointwise" else "1,1,1,1"
            weights.append(f"float[{shape}] {weight}")
            lines.append(f"{name} = Conv<pads=[{pads}], group={group}>({source}, {weight})")
        elif kind in {"add", "mul"}:
            lines.append(f"{name} = {kind.capitalize()}({source}, {other})")
        elif kind == "pool":
            lines.append(f"{name} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({source})")
        else:
            lines.append(f"{name} = {kind.capitalize()}({source})")
        names.append(name)
    body = "\n ".join(lines)
    return f"g ({', '.join(['float[1,8,7,7] x', *weights])}) => (float[1,8,7,7] {names[-1]}) {{ {body} }}"


def test_whatever_is_integer_every_kernel_has_an_owner(parse: Callable) -> None:
    mixed = 0

    @settings(max_examples=80)
    @given(networks(), st.integers(0, 2**32))
    def law(text: str, seed: int) -> None:
        nonlocal mixed
        model = clean(load_model(parse(text))).model
        sites = find_sites(model, TARGET)
        generator = np.random.default_rng(seed)
        executions = {site.path: "static" for site in sites if site.allows("static") and generator.random() < 0.6}
        found = owned(timing_artifact(model, sites, executions, TARGET), sites)
        assert all(owner is not None for _, owner in found), table(found)
        for site in sites:
            if site.weight_index is None:
                continue
            own = [kernel.op_type for kernel, owner in found if owner == Owner(kind="site", name=site.path)]
            computing = [name for name in own if name.endswith("Conv")]
            # One kernel computes it; what is static does so in integers.
            assert len(computing) == 1, (site.path, own)
            assert computing[0] in INTEGER_KERNELS or site.path not in executions
        # Conversions keep the names of the float model's tensors, also where the engine has moved them.
        tensors = {value.name for site in sites for value in (*site.node.inputs, site.output) if value is not None}
        assert {owner.name for _, owner in found if owner.kind != "site"} <= tensors
        mixed += len(executions) not in {0, len(sites)}

    law()
    assert mixed > 10


def test_times_of_owners_add_up_to_the_model(network: Callable) -> None:
    model, artifact, sites = network()
    feed = {"x": np.random.default_rng(0).standard_normal((1, 16, 16, 16)).astype(np.float32)}
    for found in time_sites([(model, feed), (artifact, feed)], sites, seconds=0.1):
        assert sum(found.times.values()) + found.unowned_ns == pytest.approx(found.profile.whole_ns, rel=1e-6)
        assert found.unowned_ns == 0
        assert all(found.site(path) > 0 for path in ("Conv_0", "Conv_1", "Conv_2", "MatMul_0"))
        assert sum(len(kernels) for kernels in found.kernels.values()) == len(found.profile.kernels)
    # The convolution's kernel adds in float.
    plain, integer = time_sites([(model, feed), (artifact, feed)], sites, seconds=0.1)
    assert plain.site("Add_0") == 0
    assert integer.site("Add_0") > 0
    assert integer.times[Owner(kind="quantize", name="x")] > 0
