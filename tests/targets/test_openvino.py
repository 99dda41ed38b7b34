"""OpenVINO as an engine: what it fuses, that it computes what is simulated, and that nothing saturates in it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

import lowbit
from lowbit.exceptions import EngineError
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.contract import contract
from lowbit.methods.decide import decide, make_plan, watch_list
from lowbit.methods.fastest import candidates_here, fastest_here
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.runtime.engines import kernels_in, open_in, version_of
from lowbit.runtime.machine import instruction_sets
from lowbit.runtime.session import open_session
from lowbit.targets import find_target, host_target

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openvino", reason="the extra lowbit[openvino] is not installed")

TARGET = find_target("openvino-x86-avx2")
HERE = "openvino-x86-avx2" if host_target().saturates else "openvino-x86-vnni"
X = "float[1,8,8,8] x"
PATTERNS = {
    "conv": f"g ({X}, float[16,8,3,3] w, float[16] b) => (float[1,16,6,6] y) {{ y = Conv(x, w, b) }}",
    "conv-relu-conv": (
        f"g ({X}, float[16,8,3,3] w, float[8,16,1,1] w2) => (float[1,8,6,6] y) "
        "{ c = Conv(x, w)\n r = Relu(c)\n y = Conv(r, w2) }"
    ),
    "conv-clip-depthwise": (
        f"g ({X}, float[16,8,1,1] w, float[16,1,3,3] w2) => (float[1,16,6,6] y) <float l = {{0.0}}, float h = {{6.0}}> "
        "{ c = Conv(x, w)\n r = Clip(c, l, h)\n y = Conv<group=16>(r, w2) }"
    ),
    "grouped": f"g ({X}, float[16,4,3,3] w) => (float[1,16,6,6] y) {{ y = Conv<group=2>(x, w) }}",
    "residual": (
        f"g ({X}, float[8,8,1,1] w, float[8,8,1,1] w2, float[8,8,1,1] w3) => (float[1,8,8,8] y) "
        "{ a = Conv(x, w)\n c = Conv(a, w2)\n s = Add(a, c)\n y = Conv(s, w3) }"
    ),
    "max-pool": (
        f"g ({X}, float[8,8,1,1] w, float[8,8,1,1] w2) => (float[1,8,4,4] y) "
        "{ a = Conv(x, w)\n p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)\n y = Conv(p, w2) }"
    ),
    "matmul": "g (float[4,64] x, float[64,32] w, float[32] b) => (float[4,32] y) { m = MatMul(x, w)\n y = Add(m, b) }",
    "gemm": "g (float[4,64] x, float[32,64] w, float[32] b) => (float[4,32] y) { y = Gemm<transB=1>(x, w, b) }",
}


def parsed(text: str) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    generator = np.random.default_rng(0)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    return proto


def built(text: str, target=TARGET, feeds=None):
    model = clean(load_model(parsed(text))).model
    sites = find_sites(model, target)
    shape = [int(dim) for dim in model.graph.inputs[0].shape]
    generator = np.random.default_rng(1)
    feeds = feeds or [{"x": generator.standard_normal(shape).astype(np.float32)} for _ in range(4)]
    recipe = Recipe(method="static", target=target.name, bias_correction=False, calibration="minmax")
    shapes = observed_shapes(model, feeds[0])
    decision = decide(sites, recipe, target, shapes)
    plan = make_plan(
        model, sites, recipe, target, decision, calibrate(model, feeds, watch_list(sites, decision, recipe)), shapes
    )
    return model, sites, apply_plan(model, plan, target=target), feeds


@pytest.mark.parametrize("name", PATTERNS)
def test_what_is_planned_in_integers_runs_in_integers(name: str) -> None:
    _, sites, applied, feeds = built(PATTERNS[name])
    rows = contract(applied.model, sites, applied.plan, engine="openvino")
    assert rows
    assert [row for row in rows if not row.integer] == []
    real = open_in("openvino", serialize(applied.model), threads=1)
    simulated = open_session(serialize(applied.model), threads=1, optimized=False)
    for feed in feeds:
        (got,), (wanted,) = real.run(feed), simulated.run(feed)
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        assert error < 0.02, "OpenVINO rounds elsewhere, by a code or two"


WORST = {
    "first layer": "g (float[1,3,9,9] x, float[16,3,3,3] w) => (float[1,16,7,7] y) { y = Conv(x, w) }",
    "odd": "g (float[1,7,9,9] x, float[16,7,3,3] w) => (float[1,16,7,7] y) { y = Conv(x, w) }",
    "dense": "g (float[1,16,9,9] x, float[16,16,3,3] w) => (float[1,16,7,7] y) { y = Conv(x, w) }",
    "pointwise": "g (float[1,33,5,5] x, float[24,33,1,1] w) => (float[1,24,5,5] y) { y = Conv(x, w) }",
    "grouped": "g (float[1,18,9,9] x, float[12,9,3,3] w) => (float[1,12,7,7] y) { y = Conv<group=2>(x, w) }",
    "depthwise": "g (float[1,16,9,9] x, float[16,1,3,3] w) => (float[1,16,7,7] y) { y = Conv<group=16>(x, w) }",
    "matmul": "g (float[4,65] x, float[65,32] w) => (float[4,32] y) { y = MatMul(x, w) }",
}


def worst_gap(text: str, target) -> float:
    """Return the largest difference of real from simulated, relative to the largest output, on the worst inputs."""
    proto = parsed(text)
    generator = np.random.default_rng(3)
    # Weights at both ends of their range, so that many pairs overflow; inputs that are all or nothing.
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    wide = np.where(generator.random(weight.shape) < 0.5, 1.0, -0.99) * (0.9 + 0.1 * generator.random(weight.shape))
    proto.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(wide.astype(np.float32), proto.graph.initializer[0].name)
    )
    model = clean(load_model(proto)).model
    sites = find_sites(model, target)
    shape = [int(dim) for dim in model.graph.inputs[0].shape]
    feeds = [{"x": (generator.random(shape) < share).astype(np.float32)} for share in (0.5, 0.8, 1.0)]
    recipe = Recipe(method="static", target=target.name, bias_correction=False, calibration="minmax")
    shapes = observed_shapes(model, feeds[0])
    decision = decide(sites, recipe, target, shapes)
    plan = make_plan(
        model, sites, recipe, target, decision, calibrate(model, feeds, watch_list(sites, decision, recipe)), shapes
    )
    artifact = serialize(apply_plan(model, plan, target=target).model)
    real, simulated = open_in("openvino", artifact, threads=1), open_session(artifact, threads=1, optimized=False)
    gaps = []
    for feed in feeds:
        (got,), (wanted,) = real.run(feed), simulated.run(feed)
        gaps.append(float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return max(gaps)


@pytest.mark.parametrize("name", WORST)
def test_safe_weights_are_exact_on_the_worst_inputs(name: str) -> None:
    assert worst_gap(WORST[name], TARGET) < 0.01


@pytest.mark.skipif(
    "avx2" not in instruction_sets() or bool({"avx_vnni", "avx512_vnni"} & set(instruction_sets())),
    reason="this processor has no products that saturate",
)
@pytest.mark.parametrize("name", ["first layer", "dense", "pointwise", "matmul"])
def test_unsafe_weights_saturate(name: str) -> None:
    assert worst_gap(WORST[name], dataclasses.replace(TARGET, saturates=False)) > 0.05


def test_the_kernels_tell_their_origins_and_precision() -> None:
    _, _, applied, _ = built(PATTERNS["conv-relu-conv"])
    kernels = kernels_in("openvino", serialize(applied.model)).kernels
    convolutions = [kernel for kernel in kernels if kernel.op_type == "Convolution"]
    assert len(convolutions) == 2
    assert all(kernel.integer and kernel.origins for kernel in convolutions)
    assert version_of("openvino").startswith("openvino 20")


def test_a_model_that_openvino_refuses(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match="does not load"):
        open_in("openvino", path)


def test_an_engine_that_lowbit_cannot_run() -> None:
    with pytest.raises(EngineError, match="lowbit cannot run tensorrt"):
        open_in("tensorrt", b"")


def test_quantize_measures_in_openvino() -> None:
    text = (
        "g (float[N,16,32,32] x, float[32,16,3,3] w, float[32,32,3,3] w2) => (float[N,32,28,28] y) "
        "{ c = Conv(x, w)\n r = Relu(c)\n y = Conv(r, w2) }"
    )
    data = np.random.default_rng(0).standard_normal((24, 16, 32, 32)).astype(np.float32)
    result = lowbit.quantize(parsed(text), data, target=HERE, measure_seconds=0.2)
    measured = result.verification
    assert measured.engine.startswith("openvino")
    assert measured.contract
    assert all(row.integer for row in measured.contract)
    assert measured.outputs[0].sqnr_real_db > measured.outputs[0].sqnr_simulated_db - 0.5
    assert measured.timeline
    assert measured.prediction is not None


def test_the_fastest_engine_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, _ = candidates_here()
    assert {target.engine for target in candidates} == {"onnxruntime", "openvino"}
    latencies = {"onnxruntime": 2.0, "openvino": 1.0}

    def attempt(name: str):
        engine = find_target(name).engine
        data = np.random.default_rng(0).standard_normal((8, 8, 8, 8)).astype(np.float32)
        result = lowbit.quantize(
            parsed(PATTERNS["conv"].replace("[1,8", "[N,8")), data, target=name, measure_seconds=0.05
        )
        latency = dataclasses.replace(result.verification.latency, artifact_ms=latencies[engine])
        return dataclasses.replace(result, verification=dataclasses.replace(result.verification, latency=latency))

    best = fastest_here(attempt)
    assert best.plan.target == HERE
    assert "deploy with openvino" in best.advice[0]
    assert f"{host_target().name} 2 ms" in best.advice[0]
