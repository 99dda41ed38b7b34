"""Profiles: every kernel of the graph that really runs, with times that add up to the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.exceptions import EngineError
from lowbit.runtime.kernels import Kernel, read_kernels
from lowbit.runtime.profile import Profile, _profile, profile_side_by_side

if TYPE_CHECKING:
    from pathlib import Path

BLOCK = """g (float[1,16,32,32] x, float[32,16,3,3] w1, float[16,32,1,1] w2, float[16] b2) => (float[1,16] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1)
    r = Relu(c)
    d = Conv(r, w2, b2)
    s = Add(d, x)
    t = Sigmoid(s)
    p = GlobalAveragePool(t)
    y = Flatten(p)
}"""
CODES = """g (float[8,64] x, uint8 z, float s, float[64,64] w) => (float[8,64] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    m = MatMul(d, w)
    y = Softmax(m)
}"""


def model(text: str, *, named: bool = True) -> bytes:
    """Serialize a graph text; inputs called `w…`, `b…`, `s` and `z` become constants."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    generator = np.random.default_rng(0)
    for value in [value for value in proto.graph.input if value.name[0] in "wbsz"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32)
        array = {"s": np.float32(0.05), "z": np.uint8(128)}.get(value.name[0], array)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
        proto.graph.input.remove(value)
    if named:
        for index, node in enumerate(proto.graph.node):
            node.name = f"node{index}"
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}


def identities(kernels: tuple[Kernel, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    return sorted((kernel.op_type, kernel.name, kernel.outputs) for kernel in kernels)


def check(profile: Profile) -> None:
    """What holds for every profile."""
    assert sum(timed.ns for timed in profile.kernels) == pytest.approx(profile.whole_ns, rel=1e-6)
    assert all(timed.ns > 0 for timed in profile.kernels)
    assert profile.whole_ns > 0
    assert profile.spread >= 0


def test_every_kernel_of_the_optimized_graph_is_timed_and_nothing_else() -> None:
    source = model(BLOCK)
    (profile,) = profile_side_by_side([(source, feed(1, 16, 32, 32))], seconds=0.1)
    check(profile)
    expected = read_kernels(source).kernels
    # What the engine fused and added is there, and what it fused away is not.
    assert "ReorderOutput" in {kernel.op_type for kernel in expected}
    assert "Relu" not in {kernel.op_type for kernel in expected}
    assert identities(tuple(timed.kernel for timed in profile.kernels)) == identities(expected)
    assert all(timed.kernel.inputs for timed in profile.kernels)


def test_kernels_come_in_the_order_in_which_they_run() -> None:
    (profile,) = profile_side_by_side([(model(CODES), feed(8, 64))], seconds=0.1)
    written: set[str] = {"x", "w", "s", "z"}
    known = {tensor for timed in profile.kernels for tensor in timed.kernel.outputs}
    for timed in profile.kernels:
        assert {tensor for tensor in timed.kernel.inputs if tensor in known} <= written
        written.update(timed.kernel.outputs)
    assert written >= {"y"}


def test_models_side_by_side_keep_their_own_kernels_in_the_order_given() -> None:
    models = [
        (model(BLOCK), feed(1, 16, 32, 32)),
        (model(CODES), feed(8, 64)),
        (model(BLOCK.replace("Sigmoid", "Tanh")), feed(1, 16, 32, 32)),
    ]
    rounds: list[int] = []
    profiles = profile_side_by_side(models, seconds=0.2, most_runs=12, advance=lambda: rounds.append(1))
    assert len(profiles) == 3
    for (source, _), profile in zip(models, profiles, strict=True):
        check(profile)
        assert identities(tuple(timed.kernel for timed in profile.kernels)) == identities(read_kernels(source).kernels)
    # One round runs every model.
    assert {profile.runs for profile in profiles} == {len(rounds)}
    assert 6 <= len(rounds) <= 12


@pytest.mark.parametrize(("seconds", "least", "most", "runs"), [(0.0, 7, 80, 7), (60.0, 2, 9, 9)])
def test_inferences_are_bounded_from_below_and_from_above(seconds: float, least: int, most: int, runs: int) -> None:
    (profile,) = profile_side_by_side([(model(CODES), feed(8, 64))], seconds=seconds, least_runs=least, most_runs=most)
    assert profile.runs == runs


def test_kernels_without_a_name_are_counted_too() -> None:
    source = model(BLOCK, named=False)
    (profile,) = profile_side_by_side([(source, feed(1, 16, 32, 32))], seconds=0.1)
    check(profile)
    assert sorted(timed.kernel.op_type for timed in profile.kernels) == sorted(
        kernel.op_type for kernel in read_kernels(source).kernels
    )


def test_only_the_branch_that_runs_has_a_time_and_its_container_has_none() -> None:
    source = model(
        """g (float[64,64] x, bool c) => (float[64,64] y) {
            n = Neg(x)
            v = If (c) < then_branch = t () => (float[64,64] a) { a = Sigmoid(n) },
                else_branch = e () => (float[64,64] b) { b = Tanh(n) } >
            y = Abs(v)
        }"""
    )
    for condition, branch in ((True, "Sigmoid"), (False, "Tanh")):
        (profile,) = profile_side_by_side([(source, {**feed(64, 64), "c": np.array(condition)})], seconds=0.1)
        check(profile)
        assert {timed.kernel.op_type for timed in profile.kernels} == {"Neg", branch, "Abs"}


def test_kernels_of_a_loop_are_timed_and_their_container_is_not() -> None:
    text = """g (float[64,64] x, int64 n, bool c) => (float[64,64] y) {
        u = Tanh(x)
        y = Loop (n, c, u) < body = b (int64 i, bool k, float[64,64] v) => (bool m, float[64,64] o) {
            m = Identity(k)
            o = Sigmoid(v)
        } >
    }"""
    inputs = {**feed(64, 64), "n": np.array(8, np.int64), "c": np.array(True)}
    (profile,) = profile_side_by_side([(model(text), inputs)], seconds=0.1)
    check(profile)
    assert {timed.kernel.op_type for timed in profile.kernels} == {"Tanh", "Identity", "Sigmoid"}


def events(runs: int, **kernels: list[int]) -> list[dict[str, object]]:
    """Write a trace as the engine does: times in microseconds by kernel, which is named after its operator."""
    found: list[dict[str, object]] = [{"cat": "Session", "name": "model_run", "dur": 1000}] * runs
    found += [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": time, "args": {"op_name": name}}
        for name, times in kernels.items()
        for time in times
    ]
    return [*found, {"cat": "Session", "name": "session_initialization", "dur": 9}, {"cat": "Node", "name": "x_fence"}]


def nanoseconds(profile: Profile) -> dict[str, float]:
    return {timed.kernel.op_type: timed.ns for timed in profile.kernels}


def test_a_kernel_counts_as_often_as_it_runs_in_one_inference() -> None:
    trace = events(4, Neg=[10] * 4, Sigmoid=[5] * 32, Tanh=[20] * 2, Loop=[1000] * 4)
    profile = _profile(trace, (), [60_000.0] * 9)
    assert nanoseconds(profile) == pytest.approx({"Neg": 10_000, "Sigmoid": 40_000, "Tanh": 10_000})


def test_what_the_profiler_adds_is_taken_off_every_kernel_alike() -> None:
    trace = events(5, Conv=[103] * 5, Relu=[13] * 5, Add=[8] * 5)
    profile = _profile(trace, (), [115_000.0] * 9)
    assert nanoseconds(profile) == pytest.approx({"Conv": 100_000, "Relu": 10_000, "Add": 5_000})


def test_kernels_shorter_than_the_profilers_own_time_stay_positive() -> None:
    trace = events(5, Conv=[104] * 5, Relu=[1] * 5, Add=[1] * 5)
    profile = _profile(trace, (), [94_000.0] * 9)
    found = nanoseconds(profile)
    check(profile)
    assert found["Relu"] == found["Add"] < 100
    assert found["Conv"] == pytest.approx(94_000, rel=1e-2)


def test_one_disturbed_inference_moves_neither_kernels_nor_the_whole() -> None:
    calm = _profile(events(9, Conv=[90] * 9, Relu=[10] * 9), (), [100_000.0] * 9)
    shaken = _profile(events(9, Conv=[90] * 8 + [9000], Relu=[10] * 9), (), [100_000.0] * 8 + [9e6])
    assert nanoseconds(shaken) == nanoseconds(calm)
    assert (shaken.whole_ns, shaken.spread) == (calm.whole_ns, 0.0)


def test_the_spread_is_the_distance_of_the_quartiles_over_the_median() -> None:
    profile = _profile(events(1, Conv=[1]), (), [1000.0, 1100.0, 1200.0, 1300.0, 1600.0])
    assert profile.whole_ns == 1200
    assert profile.spread == pytest.approx(200 / 1200)
    assert profile.runs == 5


def test_files_are_profiled_like_bytes_and_nothing_is_left_beside_them(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model(CODES))
    (profile,) = profile_side_by_side([(tmp_path / "model.onnx", feed(8, 64))], seconds=0.1)
    check(profile)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_model_that_the_engine_refuses_is_a_typed_error() -> None:
    with pytest.raises(EngineError, match="does not load"):
        profile_side_by_side([(model(CODES), feed(8, 64)), (b"no model", {})], seconds=0.1)
    with pytest.raises(EngineError, match="failed while running"):
        profile_side_by_side([(model(CODES), feed(8, 32))], seconds=0.1)


def test_no_models_have_no_profiles() -> None:
    assert profile_side_by_side([], seconds=0.0) == ()
