"""Where costs come from: files that fit, files that are forced, and a cache that can be damaged but does no harm."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest

from lowbit.exceptions import TargetError
from lowbit.graph import clean, load_model
from lowbit.methods import costs
from lowbit.methods.costs import (
    TunedPlan,
    cached_table,
    forget_plans,
    load_costs,
    measurable,
    plan_identity,
    recall_plan,
    remember,
    remember_plan,
)
from lowbit.plan.cost_table import CostTable, write_table
from lowbit.plan.recipe import Recipe
from lowbit.runtime.machine import Machine, this_machine
from lowbit.targets import find_target, host_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

HERE = this_machine()
DEVICE = Machine(engine="onnxruntime 1.20.0", processor="Cortex-A76", instruction_sets=("asimd", "asimddp"), threads=1)
ARM = find_target("onnxruntime-arm64")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Machine], Path]:
    def call(machine: Machine) -> Path:
        path = tmp_path / "pi5.json"
        write_table(CostTable(machine=machine, operators={"Conv": {"float": 5.0}}), path)
        return path

    return call


def test_costs_of_this_machine_hold_here(saved: Callable) -> None:
    loaded = load_costs(saved(HERE), host_target(), threads=1)
    assert loaded.table == CostTable(machine=HERE, operators={"Conv": {"float": 5.0}})
    assert loaded.source == "pi5.json"
    assert loaded.warnings == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "onnxruntime 0.9.0"}, "engine: onnxruntime 0.9.0 there"),
        ({"processor": "i486"}, "processor: i486 there"),
        ({"instruction_sets": ("sse4_1",)}, "instruction sets: sse4_1 there"),
        ({"threads": 64}, "threads: 64 there, 1 here"),
    ],
    ids=["engine version", "processor", "instruction sets", "threads"],
)
def test_costs_of_another_machine_are_refused_and_can_be_forced(saved: Callable, change: dict, said: str) -> None:
    path = saved(dataclasses.replace(HERE, **change))
    with pytest.raises(TargetError) as caught:
        load_costs(path, host_target(), threads=1)
    error = str(caught.value)
    assert "\n" not in error
    assert str(path) in error
    assert said in error
    assert "lowbit probe" in error
    assert "--force" in error
    forced = load_costs(path, host_target(), threads=1, force=True)
    assert forced.table.operators == {"Conv": {"float": 5.0}}
    (warning,) = forced.warnings
    assert "forced" in warning
    assert said in warning


def test_everything_that_does_not_fit_is_warned_of(saved: Callable) -> None:
    path = saved(dataclasses.replace(HERE, engine="onnxruntime 0.9.0", threads=64))
    assert len(load_costs(path, host_target(), threads=1, force=True).warnings) == 2


def test_threads_are_those_that_are_asked_for(saved: Callable) -> None:
    path = saved(dataclasses.replace(HERE, threads=2))
    assert load_costs(path, host_target(), threads=2).warnings == ()
    with pytest.raises(TargetError, match="threads: 2 there, 4 here"):
        load_costs(path, host_target(), threads=4)


def test_costs_of_a_device_hold_for_its_target(saved: Callable) -> None:
    # Neither its engine's version nor its processor is this machine's, and need not be.
    assert not measurable(ARM)
    assert load_costs(saved(DEVICE), ARM, threads=1).warnings == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "openvino 2025.0"}, "measured with openvino, the target runs onnxruntime"),
        ({"threads": 4}, "threads: 4 there, 1 asked for"),
        ({"processor": "Xeon", "instruction_sets": ("avx2",)}, "they were measured on Xeon"),
    ],
    ids=["engine", "threads", "architecture"],
)
def test_costs_of_another_device_are_refused_and_can_be_forced(saved: Callable, change: dict, said: str) -> None:
    path = saved(dataclasses.replace(DEVICE, **change))
    with pytest.raises(TargetError, match=said) as caught:
        load_costs(path, ARM, threads=1)
    assert "lowbit probe --target onnxruntime-arm64" in str(caught.value)
    (warning,) = load_costs(path, ARM, threads=1, force=True).warnings
    assert said in warning


def test_a_phone_does_not_lend_its_costs_to_a_server(saved: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "host_target", lambda: ARM)
    with pytest.raises(TargetError, match="they were measured on Cortex-A76"):
        load_costs(saved(DEVICE), find_target("onnxruntime-x86-vnni"), threads=1)


def test_what_is_no_file_of_costs_is_refused_even_with_force(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    for force in (False, True):
        with pytest.raises(TargetError, match="no file of costs"):
            load_costs(tmp_path / "plan.json", host_target(), threads=1, force=force)
        with pytest.raises(TargetError, match="cannot be read"):
            load_costs(tmp_path / "missing.json", host_target(), threads=1, force=force)


def test_this_machine_measures_itself_and_its_other_engines_only() -> None:
    host = host_target()
    assert measurable(host)
    assert measurable(dataclasses.replace(host, name=host.name.replace("onnxruntime", "openvino"), engine="openvino"))
    assert not measurable(dataclasses.replace(host, name="onnxruntime-x86-other"))
    assert not measurable(ARM)


def table(machine: Machine = HERE, **operators: dict[str, float]) -> CostTable:
    return CostTable(machine=machine, operators=operators, spread=0.5)


def test_what_is_remembered_is_known_again_and_added_to(cache: Path) -> None:
    assert cached_table(HERE) == CostTable(machine=HERE)
    path = remember(table(Conv={"float": 10.0, "static": 5.0}))
    assert path is not None
    assert path.is_relative_to(cache)
    assert cached_table(HERE) == table(Conv={"float": 10.0, "static": 5.0})
    remember(dataclasses.replace(table(Conv={"float": 11.0}, MatMul={"dynamic": 3.0}), spread=0.1))
    again = cached_table(HERE)
    assert again.operators == {"Conv": {"float": 11.0, "static": 5.0}, "MatMul": {"dynamic": 3.0}}
    # An unsteady run is forgotten with what replaced it.
    assert again.spread == 0.1


def test_every_machine_has_its_own_cache() -> None:
    others = [
        dataclasses.replace(HERE, threads=HERE.threads + 1),
        dataclasses.replace(HERE, engine="onnxruntime 0.9.0"),
        dataclasses.replace(HERE, processor="other"),
        dataclasses.replace(HERE, instruction_sets=()),
    ]
    paths = {remember(table(machine, Conv={"float": float(index)})) for index, machine in enumerate((HERE, *others))}
    assert len(paths) == 5
    for index, machine in enumerate((HERE, *others)):
        assert cached_table(machine).operators == {"Conv": {"float": float(index)}}


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00\xff", b"[]", b'{"kind": "lowbit costs", "version": 0}'])
def test_a_damaged_cache_is_measured_again_and_replaced(damage: bytes) -> None:
    path = remember(table(Conv={"float": 10.0}))
    assert path is not None
    path.write_bytes(damage)
    assert cached_table(HERE) == CostTable(machine=HERE)
    assert remember(table(MatMul={"float": 2.0})) == path
    assert cached_table(HERE).operators == {"MatMul": {"float": 2.0}}


def test_a_cache_of_another_machine_under_this_ones_name_is_not_believed() -> None:
    path = remember(table(Conv={"float": 10.0}))
    assert path is not None
    write_table(table(DEVICE, Conv={"float": 1.0}), path)
    assert cached_table(HERE).operators == {}


def test_where_no_cache_can_be_written_nothing_is_remembered_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path / "file" / "cache"))
    assert remember(table(Conv={"float": 1.0})) is None
    assert cached_table(HERE).operators == {}
    remember_plan("name", TUNED)
    assert recall_plan("name") is None


TUNED = TunedPlan(
    executions={"Conv_0": "static", "loop/body/MatMul_1": "dynamic", "Add": "float"},
    reasons={"Conv_0": "faster"},
    times={"Conv_0": [12.5, 8.25], "Add": [None, None]},
    predicted_ns=1234.5,
    predicted_float_ns=2345.25,
    corrected_ns=1200.125,
    spread=0.01,
)


def test_a_tuned_plan_is_recalled_as_it_was_found() -> None:
    assert recall_plan("model") is None
    remember_plan("model", TUNED)
    assert recall_plan("model") == TUNED
    assert recall_plan("other") is None
    remember_plan("model", dataclasses.replace(TUNED, executions={}))
    assert recall_plan("model") == dataclasses.replace(TUNED, executions={})


@pytest.mark.parametrize(
    "change",
    [
        {"executions": None},
        {"executions": ["static"]},
        {"executions": {"Conv_0": "integer"}},
        {"executions": {"Conv_0": ["static"]}},
        {"predicted_ns": "fast"},
        {"corrected_ns": None},
        {"reasons": {"Conv_0": 1}},
        {"times": {"Conv_0": [1.0]}},
        {"times": {"Conv_0": [1.0, "fast"]}},
        {"spread": {}},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_damaged_plan_is_tuned_again(cache: Path, change: dict[str, object]) -> None:
    remember_plan("model", TUNED)
    (path,) = (cache / "plans").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert recall_plan("model") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"\x00\xff", b"[]", b"null", b"1", b'"text"', b"{}", b"[" * 100_000])
def test_a_plan_that_is_none_is_tuned_again(cache: Path, damage: bytes) -> None:
    remember_plan("model", TUNED)
    (path,) = (cache / "plans").iterdir()
    path.write_bytes(damage)
    assert recall_plan("model") is None


@pytest.fixture
def model(parse: Callable) -> ir.Model:
    return clean(load_model(parse("g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }"))).model


def test_a_plan_belongs_to_model_shapes_machine_and_what_was_asked_for(model: ir.Model, parse: Callable) -> None:
    target, recipe, shapes = host_target(), Recipe(), {"x": (1, 8), "y": (1, 8)}
    own = plan_identity(model, recipe, target, HERE, shapes)
    assert plan_identity(model, recipe, target, HERE, dict(reversed(shapes.items()))) == own
    text = "g (float[N,8] x, float[8,8] w) => (float[N,8] y) { y = MatMul(x, w) }"
    weights = clean(load_model(parse(text, seed=1))).model
    others = {
        plan_identity(weights, recipe, target, HERE, shapes),
        plan_identity(model, Recipe(weights="int8:per-tensor"), target, HERE, shapes),
        plan_identity(model, Recipe(exclude=("MatMul_0",)), target, HERE, shapes),
        plan_identity(model, recipe, ARM, HERE, shapes),
        plan_identity(model, recipe, target, dataclasses.replace(HERE, threads=7), shapes),
        plan_identity(model, recipe, target, HERE, {"x": (2, 8), "y": (2, 8)}),
    }
    assert len(others | {own}) == 7


def test_what_only_changes_scales_keeps_the_tuned_plan(model: ir.Model) -> None:
    target, shapes = host_target(), {"x": (1, 8), "y": (1, 8)}
    recipes = [Recipe(), Recipe(calibration="minmax"), Recipe(seed=3), Recipe(samples=7), Recipe(bias_correction=False)]
    assert len({plan_identity(model, recipe, target, HERE, shapes) for recipe in recipes}) == 1


def test_plans_are_forgotten_when_costs_are_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOWBIT_CACHE", str(tmp_path))
    record = TunedPlan(
        executions={"a": "static"},
        reasons={},
        times={},
        predicted_ns=1.0,
        predicted_float_ns=2.0,
        corrected_ns=1.5,
        spread=0.0,
    )
    remember_plan("identity", record)
    assert recall_plan("identity") == record
    forget_plans()
    assert recall_plan("identity") is None
    forget_plans()  # nothing there is no error
