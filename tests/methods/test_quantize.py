"""The main verb, end to end on small networks: what it decides, keeps, refuses and says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import lowbit
from lowbit.exceptions import DataError, LowbitError, ModelError, RecipeError, TargetError
from lowbit.graph import digest, load_model, serialize
from lowbit.methods import measuring
from lowbit.methods.verify import sqnr_db
from lowbit.plan.verification import Latency, Verification
from lowbit.runtime.kernels import read_kernels
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TARGET = "onnxruntime-x86-avx2"
# Large enough that integers are predicted to pay.
NETWORK = """g (float[1,64,20,20] x, float[256,64,1,1] w, float[256] b, float[256,256,1,1] w2, float[256,40] wm)
    => (float[1,40] y) {
    c = Conv(x, w, b)
    r = Relu(c)
    d = Conv(r, w2)
    s = Relu(d)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    y = MatMul(f, wm)
}"""
SEQUENCE = """g (float[8,128] x, float[128,256] w, float[256] b, float[256,64] w2) => (float[8,64] y) {
    m = MatMul(x, w)
    a = Add(m, b)
    t = Tanh(a)
    y = MatMul(t, w2)
}"""


@pytest.fixture(autouse=True)
def _without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes for every call would take longer than all the rest."""
    monkeypatch.setattr("lowbit.methods.verify.peak_memory_mb", lambda *_, **__: 1.0)


def run(model: Any, data: Any, **options: Any) -> lowbit.Result:
    return lowbit.quantize(model, data, **({"target": TARGET, "measure_seconds": 0.0} | options))


def by_operator(result: lowbit.Result, op_type: str) -> set[str]:
    return {site.execution for site in result.plan.sites if site.op_type == op_type}


def compare(proto: onnx.ModelProto, result: lowbit.Result, feeds: list) -> float:
    """Return the SQNR of the first output in decibel, over all feeds."""
    reference, artifact = (
        open_session(data, threads=1) for data in (proto.SerializeToString(), serialize(result.model))
    )
    pairs = [(reference.run(feed)[0], artifact.run(feed)[0]) for feed in feeds]
    signal = sum(np.square(exact, dtype=np.float64).sum() for exact, _ in pairs)
    return sqnr_db(signal, sum(np.square(got - exact, dtype=np.float64).sum() for exact, got in pairs))


def test_by_default_it_decides_by_cost(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=10)
    result = run(proto, feeds)
    assert by_operator(result, "Conv") == {"static"}
    kernels = read_kernels(serialize(result.model)).counts()
    assert kernels["QLinearConv"] == 2
    assert "Conv" not in kernels
    assert result.verification.unfused == ()
    assert result.verification.samples == 2, "a fifth is kept back"
    assert compare(proto, result, feeds) > 30
    (output,) = result.verification.outputs
    assert abs(output.sqnr_real_db - output.sqnr_simulated_db) < 0.5
    assert all(site.reason for site in result.plan.sites)
    assert any("samples calibrated" in warning for warning in result.warnings)


def fake_speeds(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> list[str]:
    """Let every plan run at the speed of its method; return the methods in the order they were tried."""
    real = measuring.verify
    tried: list[str] = []

    def latency(speedup: float) -> Latency:
        return Latency(
            float_ms=1.0,
            artifact_ms=1 / speedup,
            speedup=speedup,
            speedup_low=speedup,
            speedup_high=speedup,
            pairs=15,
            threads=1,
        )

    def verify(**arguments: Any) -> Verification:
        method = arguments["plan"].method
        tried.append(method)
        return dataclasses.replace(real(**{**arguments, "seconds": 0.0}), latency=latency(speeds[method]))

    monkeypatch.setattr(measuring, "verify", verify)
    monkeypatch.setattr(measuring, "compare_latency", lambda *_, **__: latency(0.5))
    return tried


def test_a_slower_artifact_becomes_weights_only(
    monkeypatch: pytest.MonkeyPatch, parse: Callable, noise: Callable
) -> None:
    proto = parse(NETWORK)
    tried = fake_speeds(monkeypatch, {"static": 0.6, "mixed": 0.6, "dynamic": 0.6, "weight-only": 1.0})
    result = run(proto, noise(proto, count=5), measure_seconds=0.1)
    assert tried[-1] == result.plan.method == "weight-only"
    assert len(tried) > 1
    assert not any(site.execution in {"static", "dynamic"} for site in result.plan.sites)
    assert any("dropped because it ran at 0.50×" in warning for warning in result.warnings)
    assert "DequantizeLinear" not in read_kernels(serialize(result.model)).counts()


def test_what_is_always_slower_stays_float(monkeypatch: pytest.MonkeyPatch, parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    tried = fake_speeds(monkeypatch, {"static": 0.6, "mixed": 0.6, "dynamic": 0.6, "weight-only": 0.7, "float": 1.0})
    feeds = noise(proto, count=5)
    result = run(proto, feeds, measure_seconds=0.1)
    assert tried[-1] == result.plan.method == "float"
    assert {site.execution for site in result.plan.sites} == {"float"}
    assert any("nothing was quantized" in warning for warning in result.warnings)
    assert compare(proto, result, feeds) > 100


def test_noise_that_is_louder_than_the_signal_is_no_result(
    monkeypatch: pytest.MonkeyPatch, parse: Callable, noise: Callable
) -> None:
    proto = parse(NETWORK)
    real = measuring.verify
    tried: list[str] = []

    def verify(**arguments: Any) -> Verification:
        found = real(**arguments)
        tried.append(arguments["plan"].method)
        integers = any(site.execution in {"static", "dynamic"} for site in arguments["plan"].sites)
        loud = tuple(dataclasses.replace(output, sqnr_real_db=-29.5) for output in found.outputs)
        return dataclasses.replace(found, outputs=loud) if integers else found

    monkeypatch.setattr(measuring, "verify", verify)
    result = run(proto, noise(proto, count=5))
    assert len(tried) > 1
    assert not any(site.execution in {"static", "dynamic"} for site in result.plan.sites)
    assert any("its noise was louder than the signal: -29.5 dB" in warning for warning in result.warnings)
    tried.clear()
    assert run(proto, noise(proto, count=5), method="static").plan.method == "static"  # what is asked for is done
    assert tried == ["static"]


def test_an_explicit_method_is_done_however_slow(
    monkeypatch: pytest.MonkeyPatch, parse: Callable, noise: Callable
) -> None:
    proto = parse(NETWORK)
    tried = fake_speeds(monkeypatch, {"static": 0.6})
    result = run(proto, noise(proto, count=5), method="static", measure_seconds=0.1)
    assert tried == ["static"]
    assert any("slower than float: 0.60×" in warning for warning in result.warnings)


def test_static_quantizes_all_that_is_legal(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    result = run(proto, noise(proto, count=5), method="static")
    assert result.plan.method == "static"
    for op_type in ("Conv", "GlobalAveragePool", "Flatten", "MatMul"):
        assert by_operator(result, op_type) == {"static"}


def test_dynamic_needs_no_data(parse: Callable, noise: Callable) -> None:
    proto = parse(SEQUENCE)
    result = run(proto, None, method="dynamic")
    assert result.plan.method == "dynamic"
    assert by_operator(result, "MatMul") == {"dynamic"}
    assert by_operator(result, "Tanh") == {"float"}
    assert read_kernels(serialize(result.model)).integer_count() == 2
    assert compare(proto, result, noise(proto)) > 30


@pytest.mark.parametrize(
    ("weights", "ratio", "decibel"),
    [
        ("int8:per-channel", 4, 36),
        ("int4:block=32", 6, 14),
        ("uint4:block=32", 5.5, 14),
        ("int2:block=16", 8, 1),
        ("float16", 2, 60),
        ("bfloat16", 2, 45),
        ("float8_e4m3", 4, 25),
    ],
)
def test_weights_only(weights: str, ratio: float, decibel: float, parse: Callable, noise: Callable) -> None:
    proto = parse(SEQUENCE)
    result = run(proto, None, weights=weights, method="weight-only")
    assert result.plan.method in {"weight-only", "float16", "bfloat16"}
    assert result.plan.activations == ()
    assert compare(proto, result, noise(proto)) > decibel
    size = len(serialize(result.model))
    # Beside the weights the file holds the graph itself, about 2 kB.
    assert size < proto.ByteSize() / ratio + 3000


def test_weight_formats_alone_choose_the_method(parse: Callable, noise: Callable) -> None:
    proto = parse(SEQUENCE)
    for weights in ("int4:block=32", "float16"):
        result = run(proto, noise(proto), weights=weights)
        assert by_operator(result, "MatMul") == {"weight-only"}


def test_rules_and_exclusions(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=5)
    result = run(proto, feeds, method="static", exclude=["op:MatMul", "w2"])
    executions = [site.execution for site in result.plan.sites if site.op_type == "Conv"]
    assert executions == ["static", "float"]
    assert by_operator(result, "MatMul") == {"float"}
    (site,) = (site for site in result.plan.sites if site.op_type == "MatMul")
    assert "excluded by 'op:MatMul'" in site.reason
    assert {"w2", "wm"} <= set(result.model.graph.initializers)
    rules = [{"pattern": "op:Conv", "weights": "int8"}, {"pattern": "op:MatMul", "method": "weight-only"}]
    result = run(proto, feeds, method="static", rules=rules)
    assert {site.weights for site in result.plan.sites if site.op_type == "Conv"} == {"int8:per-channel"}
    assert by_operator(result, "MatMul") == {"weight-only"}
    with pytest.raises(RecipeError, match="'ghost\\*' matches no operator"):
        run(proto, feeds, exclude=["ghost*"])


def test_an_integer_interface(parse: Callable, noise: Callable) -> None:
    proto = parse("g (float[1,64,20,20] x, float[128,64,1,1] w) => (float[1,128,20,20] y) { y = Conv(x, w) }")
    result = run(proto, noise(proto, count=5), target="host", method="static", io="int8", measure_seconds=0.1)
    plain = run(proto, noise(proto, count=5), target="host", method="static")
    (value,) = result.model.graph.inputs
    (output,) = result.model.graph.outputs
    assert (value.name, value.dtype) == ("x", ir.DataType.UINT8)
    assert (output.name, output.dtype) == ("y", ir.DataType.UINT8)
    # Measured in the units of the float model, and of the same quality.
    assert result.verification.outputs == plain.verification.outputs
    assert result.verification.latency is not None


def test_every_kind_of_data(parse: Callable, noise: Callable, tmp_path: Path) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=6)
    stacked = np.concatenate([feed["x"] for feed in feeds])
    np.savez(tmp_path / "data.npz", x=stacked)

    def generator() -> Iterator[dict[str, np.ndarray]]:
        yield from feeds

    sources: list[Any] = [feeds, generator(), generator, {"x": stacked}, stacked, tmp_path / "data.npz"]
    results = [run(proto, source, method="static") for source in sources]
    # The same samples in the same order are cut alike, so that every kind gives the same artifact.
    assert {result.verification.samples for result in results} == {1}
    assert len({serialize(result.model) for result in results}) == 1
    assert run(proto, "random", method="static").plan.method == "static"


def test_test_data_are_what_is_verified_on(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    tests = noise(proto, count=3, seed=9)
    seen = []

    def metric(outputs: list, labels: np.ndarray | None) -> float:
        seen.append((len(outputs), labels))
        return 1.0

    result = run(proto, noise(proto, count=4), test_data=tests, metric=metric, method="static")
    assert result.verification.samples == 3
    assert [count for count, _ in seen] == [3, 3]
    assert result.plan.activations[0].reason.endswith("over 4 samples")


@pytest.mark.parametrize("method", ["static", "auto", "dynamic", "weight-only"])
def test_two_runs_give_the_same_bytes(method: str, parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    first, second = (run(proto, noise(proto, count=10), method=method) for _ in range(2))
    assert serialize(first.model) == serialize(second.model)
    assert first.plan == second.plan


def test_a_saved_plan_gives_the_same_bytes(parse: Callable, noise: Callable, tmp_path: Path) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=10)
    result = run(proto, feeds)
    result.save(tmp_path / "first.onnx")
    result.save_plan(tmp_path / "plan.yaml")
    run(proto, feeds, plan=tmp_path / "plan.yaml").save(tmp_path / "second.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    # Without calibration data too: the plan holds all that the artifact is made of.
    run(proto, None, plan=tmp_path / "plan.yaml", test_data=feeds[:1]).save(tmp_path / "third.onnx")
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "third.onnx").read_bytes()


def test_the_seed_cuts_the_data(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    scales = {
        tuple(
            tensor.scale for tensor in run(proto, noise(proto, count=20), method="static", seed=seed).plan.activations
        )
        for seed in range(3)
    }
    assert len(scales) == 3


def test_every_kind_of_model_and_none_is_changed(parse: Callable, noise: Callable, tmp_path: Path) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=5)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    graph = load_model(proto)
    before = proto.SerializeToString(deterministic=True), path.read_bytes(), digest(graph), serialize(graph)
    artifacts = {serialize(run(model, feeds, method="static").model) for model in (proto, path, str(path), graph)}
    assert len(artifacts) == 1
    after = proto.SerializeToString(deterministic=True), path.read_bytes(), digest(graph), serialize(graph)
    assert after == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["model.onnx"]


def test_a_partly_quantized_model_keeps_what_it_has(parse: Callable, noise: Callable, build: Callable) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto, count=5)
    first = build(proto, feeds, rules=[{"pattern": "op:MatMul", "method": "float"}])
    arrived = onnx.load_from_string(first.artifact_bytes)
    result = run(arrived, feeds, method="weight-only")
    counts = read_kernels(serialize(result.model)).counts()
    assert counts["QLinearConv"] == 2
    assert by_operator(result, "MatMul") == {"weight-only"}
    assert len(serialize(result.model)) < len(first.artifact_bytes)
    assert compare(arrived, result, feeds) > 35
    for method in ("auto", "static"):
        again = run(arrived, feeds, method=method)
        assert compare(proto, again, feeds) > 25
        assert read_kernels(serialize(again.model)).counts()["QLinearConv"] == 2


def test_subgraphs_are_kept_and_their_weights_stored_small(parse: Callable, noise: Callable) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,128] x, bool c) => (float[1,64] y) <float[128,64] w, float[128,64] v> {
            y = If (c) <
                then_branch = t () => (float[1,64] a) { a = MatMul(x, w) },
                else_branch = e () => (float[1,64] b) { n = MatMul(x, v)
                    b = Tanh(n) }
            >
        }""")
    generator = np.random.default_rng(0)
    del proto.graph.initializer[:]
    for name in ("w", "v"):
        array = generator.standard_normal((128, 64)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    feeds = [
        {"x": generator.standard_normal((1, 128)).astype(np.float32), "c": np.array(index % 2 == 0)}
        for index in range(6)
    ]
    for method in ("auto", "static", "dynamic", "weight-only"):
        result = run(proto, feeds, method=method)
        assert compare(proto, result, feeds) > 30
        inner = [site for site in result.plan.sites if "/" in site.node and site.op_type == "MatMul"]
        assert len(inner) == 2
        assert {site.execution for site in inner} <= {"weight-only", "dynamic", "float"}
    # The last of them was weights only.
    assert len(serialize(result.model)) < proto.ByteSize() / 2


def test_what_cannot_be_done_is_said(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK)
    feeds = noise(proto)
    with pytest.raises(DataError, match="no data were given"):
        run(proto, None)
    with pytest.raises(DataError, match="calibration data"):
        run(proto, None, test_data=feeds, method="static")
    with pytest.raises(TargetError, match="abacus"):
        run(proto, feeds, target="abacus")
    with pytest.raises(RecipeError, match="bits"):
        run(proto, feeds, bits=4)
    with pytest.raises(RecipeError, match="int9"):
        run(proto, feeds, weights="int9")
    with pytest.raises(ModelError):
        run("no-such-file.onnx", feeds)
    with pytest.raises(DataError):
        run(proto, [{"x": np.zeros((1, 3, 20, 20), np.float32)}] * 4)
    with pytest.raises(DataError):
        run(proto, [{"x": np.full((1, 64, 20, 20), np.nan, np.float32)}] * 4)
    constant = parse("g () => (float y) { y = Constant<value_float = 1.0>() }")
    with pytest.raises(ModelError, match="no inputs"):
        run(constant, None, method="weight-only")


def test_the_result_prints_and_reports(parse: Callable, noise: Callable, tmp_path: Path) -> None:
    proto = parse(NETWORK)
    result = run(proto, noise(proto, count=5), measure_seconds=0.1)
    text = str(result)
    assert "int8" in text
    result.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert result.provenance["seed"] == "0"
    names = {histogram.tensor for histogram in result.histograms}
    assert {"w", "w2", "x"} <= names


def test_computing_in_float16(parse: Callable, noise: Callable) -> None:
    proto = parse(NETWORK.replace("y = MatMul(f, wm)", "m = MatMul(f, wm)\n y = Softmax(m)"))
    feeds = noise(proto, count=5)
    result = run(proto, feeds, weights="float16", activations="float16")
    assert by_operator(result, "Conv") == by_operator(result, "MatMul") == {"half"}
    assert by_operator(result, "Softmax") == {"float"}
    assert compare(proto, result, feeds) > 50
    assert {value.dtype for value in (*result.model.graph.inputs, *result.model.graph.outputs)} == {ir.DataType.FLOAT}
    assert len(serialize(result.model)) < proto.ByteSize() / 1.9
    assert result.verification.samples == 1


def test_an_engine_without_the_kernels_refuses_by_name(parse: Callable, noise: Callable) -> None:
    """ONNX Runtime's CPU provider computes no convolution in bfloat16: that ends in an error, never in a file."""
    proto = parse(NETWORK)
    with pytest.raises(LowbitError, match="bfloat16"):
        run(proto, noise(proto, count=5), weights="bfloat16", activations="bfloat16")


def test_what_overflows_in_float16_stays_float(parse: Callable) -> None:
    proto = parse(
        "g (float[1,64] x, float[64,64] w) => (float[1,64] y) <float k = {0.0001}> { m = MatMul(x, w)\n y = Mul(m, k) }"
    )
    generator = np.random.default_rng(0)
    feeds = [{"x": generator.standard_normal((1, 64)).astype(np.float32) * np.float32(1e5)} for _ in range(6)]
    result = run(proto, feeds, weights="float16", activations="float16")
    assert by_operator(result, "MatMul") == {"float"}
    assert compare(proto, result, feeds) > 50


def test_an_artifact_carries_its_plan(parse: Callable, noise: Callable, tmp_path: Path) -> None:
    from lowbit.plan.embedded import embedded_plan

    proto = parse(NETWORK)
    result = run(proto, noise(proto, count=10))
    result.save(tmp_path / "artifact.onnx")
    plan = embedded_plan(load_model(tmp_path / "artifact.onnx"))
    assert plan is not None
    assert [(site.node, site.execution, site.reason, site.notes) for site in plan.sites] == [
        (site.node, site.execution, site.reason, site.notes) for site in result.plan.sites
    ]
    assert plan.activations == result.plan.activations


def test_weights_of_two_bits_run_through_dequantization_and_the_report_says_so(
    parse: Callable, noise: Callable, tmp_path: Path
) -> None:
    proto = parse(
        "g (float[1,8,9,9] x, float[64,8,3,3] w1, float[64,64,3,3] w2) => (float[1,64,9,9] y) "
        "{ c = Conv<pads=[1,1,1,1]>(x, w1)\n r = Relu(c)\n y = Conv<pads=[1,1,1,1]>(r, w2) }"
    )
    feeds = noise(proto, count=10)
    result = run(proto, feeds, weights="int2:per-channel", activations="none")
    assert result.verification.integer_kernels == 0
    tensors = {value.name: value.const_value for value in result.model.graph.initializers.values()}
    packed = [tensor for tensor in tensors.values() if tensor.dtype.name == "INT2"]
    assert [len(tensor.tobytes()) * 4 for tensor in packed] == [64 * 8 * 9, 64 * 64 * 9]
    assert "dequantization" in str(result)
    path = tmp_path / "small.onnx"
    result.save(path)
    size = path.stat().st_size
    assert size < proto.ByteSize() / 8
    assert f"{proto.ByteSize() / size:.1f}" in str(result)
    # Two bits are four levels: some of the output is left, and the file on disk computes it.
    assert 0 < compare(proto, result, feeds) < 20
    saved, memory = (open_session(model, threads=1).run(feeds[0])[0] for model in (path, serialize(result.model)))
    assert np.array_equal(saved, memory)


@pytest.mark.parametrize(
    ("weights", "stored"), [("int2", "INT2"), ("int3", "INT4"), ("int4", "INT4"), ("int6", "INT8")]
)
def test_weights_of_few_bits_run_in_the_kernels_of_int8(
    weights: str, stored: str, parse: Callable, noise: Callable
) -> None:
    proto = parse(
        "g (float[1,8,9,9] x, float[16,8,3,3] w1, float[16,1,3,3] w2, float[16,4] w3) => (float[1,4] y) "
        "{ c = Conv(x, w1)\n r = Relu(c)\n d = Conv<group=16>(r, w2)\n p = GlobalAveragePool(d)\n"
        "f = Flatten(p)\n y = MatMul(f, w3) }"
    )
    feeds = noise(proto, count=10)
    result = run(proto, feeds, weights=weights, activations="uint8")
    assert by_operator(result, "Conv") == by_operator(result, "MatMul") == {"static"}
    assert result.verification.unfused == ()
    tensors = [value.const_value for value in result.model.graph.initializers.values()]
    assert [tensor.dtype.name for tensor in tensors if len(tensor.shape) > 1] == [stored] * 3
    assert not any("dequantization" in warning for warning in result.warnings)
    # More bits, less noise; and never what no bits at all would be.
    better = run(proto, feeds, weights="int8", activations="uint8")
    assert 0 < compare(proto, result, feeds) < compare(proto, better, feeds)
