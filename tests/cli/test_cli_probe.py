"""`lowbit probe`: what it prints, keeps, saves for another computer, and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from lowbit.plan.cost_table import CostTable, read_table, write_table
from lowbit.plan.files import read_plan
from lowbit.runtime.machine import this_machine

if TYPE_CHECKING:
    from collections.abc import Callable

FAST = ("--time", "0.1")
# A target that no test runs on.
ELSEWHERE = "onnxruntime-arm64"


@pytest.fixture
def cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWBIT_CACHE", str(folder / "cache"))
    return folder / "cache"


@pytest.fixture(scope="module")
def known() -> dict[str, bytes]:
    return {}


@pytest.fixture
def saved(cache, lowbit, known):
    """The costs of `net.onnx` in `costs.json`, measured once for all tests."""
    if not known:
        lowbit("probe", "net.onnx", *FAST, "--save", "costs.json", "--quiet")
        known["costs.json"] = Path("costs.json").read_bytes()
    Path("costs.json").write_bytes(known["costs.json"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(path: str, change: Callable[[dict], None]) -> None:
    data = json.loads(Path(path).read_text())
    change(data)
    Path(path).write_text(json.dumps(data))


def test_a_model_is_measured_and_remembered_until_it_is_measured_afresh(cache, lowbit):
    done = lowbit("probe", "net.onnx", *FAST)
    assert done.status == 0, done.err
    machine = this_machine()
    assert machine.engine in done.out
    assert "7 of 7 operators measured" in done.out
    for name in ("Conv_0", "Conv_1", "Conv_2", "Gemm_0", "GlobalAveragePool_0", "float", "static", "dynamic"):
        assert name in done.out
    assert {path.parent.name for path in cache.rglob("*.json")} == {"costs", "probes"}
    before = files(cache)
    again = lowbit("probe", "net.onnx", *FAST)
    assert again.status == 0, again.err
    assert "all 7 operators known from the cache" in again.out
    assert files(cache) == before
    fresh = lowbit("probe", "net.onnx", *FAST, "--fresh")
    assert "7 of 7 operators measured" in fresh.out


def test_another_batch_is_another_measurement(cache, lowbit):
    lowbit("probe", "net.onnx", *FAST, "--save", "one.json")
    done = lowbit("probe", "net.onnx", *FAST, "--batch", "2", "--save", "two.json")
    assert "7 of 7 operators measured" in done.out
    one, two = read_table("one.json"), read_table("two.json")
    assert not set(one.operators) & set(two.operators)
    assert any("2x32x16x16" in key for key in two.operators)
    assert one.machine == two.machine == this_machine()


def test_what_is_saved_is_what_this_model_costs(cache, lowbit):
    Path("costs.json").write_text("older")
    done = lowbit("probe", "net.onnx", *FAST, "--save", "costs.json")
    assert done.status == 0, done.err
    assert "wrote costs.json" in done.out
    table = read_table("costs.json")
    assert table.machine == this_machine()
    assert len(table.operators) == 7
    assert all({"float", "static"} <= set(entry) for entry in table.operators.values())
    # Of another model that is in the same cache nothing is saved.
    model = onnx.load("net.onnx")
    del model.graph.node[1:]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("a0", 1, ["N", 32, 16, 16]))
    onnx.save(model, "small.onnx")
    lowbit("probe", "small.onnx", *FAST, "--save", "small.json")
    assert len(read_table("small.json").operators) == 1


def test_saving_from_the_cache_gives_the_same_file(cache, lowbit):
    lowbit("probe", "net.onnx", *FAST, "--save", "measured.json")
    done = lowbit("probe", "net.onnx", *FAST, "--save", "known.json")
    assert "known from the cache" in done.out
    assert Path("known.json").read_bytes() == Path("measured.json").read_bytes()
    quiet = lowbit("probe", "net.onnx", *FAST, "--save", "quiet.json", "--quiet")
    assert (quiet.status, quiet.out) == (0, "")
    assert Path("quiet.json").read_bytes() == Path("measured.json").read_bytes()


def test_without_a_model_usual_operators_are_measured(cache, lowbit, monkeypatch):
    # The usual ones are large; how they are measured is the same for small ones.
    monkeypatch.setattr("lowbit.methods.probe_machine._CONVOLUTIONS", (("Conv 1×1, 8→8", 8, 8, 1, 8, 1, 1),))
    monkeypatch.setattr("lowbit.methods.probe_machine._MATRICES", (("MatMul 4 rows", 4, 16, 16),))
    done = lowbit("probe", *FAST, "--save", "machine.json")
    assert done.status == 0, done.err
    assert "Conv 1×1, 8→8" in done.out
    assert "MatMul 4 rows" in done.out
    assert "2 of 2 operators measured" in done.out
    assert ("saturate in pairs" in done.out) != ("exact (measured)" in done.out)
    assert len(read_table("machine.json").operators) == 2


def test_open_shapes_are_closed_by_a_sample(cache, lowbit):
    model = onnx.load("net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, "open.onnx")
    done = lowbit("probe", "open.onnx", *FAST, "--data", "data.npz", "--save", "costs.json")
    assert done.status == 0, done.err
    assert any("1x32x16x16" in key for key in read_table("costs.json").operators)


def test_a_damaged_cache_is_measured_again(cache, lowbit):
    lowbit("probe", "net.onnx", *FAST)
    (costs,), (probe,) = (cache / "costs").iterdir(), (cache / "probes").iterdir()
    costs.write_text('{"version": 99}')
    probe.write_text("{")
    done = lowbit("probe", "net.onnx", *FAST)
    assert done.status == 0, done.err
    assert "7 of 7 operators measured" in done.out


def test_a_cache_that_cannot_be_written_does_no_harm(folder, lowbit, monkeypatch):
    Path("in-the-way").write_text("")
    monkeypatch.setenv("LOWBIT_CACHE", str(folder / "in-the-way" / "cache"))
    done = lowbit("probe", "net.onnx", *FAST, "--save", "costs.json")
    assert done.status == 0, done.err
    assert "remembered" not in done.out
    assert read_table("costs.json").operators


QUANTIZE = ("quantize", "net.onnx", "--data", "data.npz", "--time", "0", "--quiet", "-o", "out.onnx")


def priced(static: float, dynamic: float = 1e6) -> None:
    """Write costs of this model in which integers take a factor of float, and conversions next to nothing."""
    table = read_table("costs.json")
    operators = {key: {"float": 1e5, "static": 1e5 * static, "dynamic": 1e5 * dynamic} for key in table.operators}
    conversions = {key: {"quantize": 1.0, "dequantize": 1.0} for key in table.conversions}
    write_table(CostTable(machine=table.machine, operators=operators, conversions=conversions), "costs.json")


def test_a_saved_table_decides_what_is_quantized(saved, lowbit):
    executions = {}
    for name, factor in (("fast", 0.1), ("slow", 10.0)):
        priced(factor)
        done = lowbit(*QUANTIZE, "--costs", "costs.json", "--save-plan", "plan.yaml")
        assert done.status == 0, done.err
        executions[name] = {site.node: site.execution for site in read_plan("plan.yaml").sites}
    assert executions["fast"]["Conv_1"] == executions["fast"]["Gemm_0"] == "static"
    assert set(executions["slow"].values()) <= {"float", "weight-only"}


def test_a_table_of_another_model_is_said_to_lack_costs(cache, lowbit):
    write_table(CostTable(machine=this_machine(), operators={"Conv elsewhere": {"float": 1.0}}), "costs.json")
    done = lowbit(*QUANTIZE, "--costs", "costs.json")
    assert done.status == 0, done.err
    assert "costs.json lacks the costs of 7 of 7 operators" in " ".join(done.err.split())


def test_a_table_of_another_machine_is_refused_and_can_be_forced(saved, lowbit):
    rewrite("costs.json", lambda data: data["machine"].update(engine="onnxruntime 0.9.0", processor="i486"))
    before = files(Path())
    refused = lowbit(*QUANTIZE, "--costs", "costs.json")
    assert refused.status == 2
    assert "costs.json' are not for" in refused.line
    assert "onnxruntime 0.9.0 there" in refused.line
    assert "i486 there" in refused.line
    assert "--force" in refused.line
    assert files(Path()) == before
    forced = lowbit(*QUANTIZE, "--costs", "costs.json", "--force")
    assert forced.status == 0, forced.err
    assert "forced" in forced.err
    assert "i486 there" in " ".join(forced.err.split())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "'bad.json' cannot be read"),
        ("", "are not JSON"),
        ("{}", "no file of costs"),
        ('{"kind": "lowbit costs", "version": 7}', "version 7"),
        ('{"kind": "lowbit costs", "version": 1, "machine": {}}', "malformed"),
    ],
    ids=["missing", "empty", "another file", "another version", "malformed"],
)
def test_a_file_that_holds_no_costs_is_refused(cache, lowbit, content, said):
    if content is not None:
        Path("bad.json").write_text(content)
    before = files(Path())
    done = lowbit(*QUANTIZE, "--costs", "bad.json")
    assert done.status == 2
    assert said in done.line
    assert files(Path()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.onnx",), "missing.onnx does not exist"),
        (("data.npz",), "not an ONNX model"),
        (("net.onnx", "--target", "toaster"), "toaster"),
        (("net.onnx", "--target", ELSEWHERE), "cannot be measured here"),
        (("net.onnx", "--save", "."), "is a folder"),
        (("net.onnx", "--save", "net.onnx"), "is read by this command"),
        (("net.onnx", "--save", "missing/costs.json"), "Create the folder missing"),
        (("net.onnx", "--time", "0"), "--time"),
        (("net.onnx", "--threads", "0"), "--threads"),
        (("net.onnx", "--batch", "0"), "--batch"),
        (("net.onnx", "--data", "missing.npz"), "missing.npz"),
        (("net.onnx", "--data", "wrong.npz"), "'x'"),
        (("net.onnx", "more.onnx"), "more.onnx"),
        (("fixed.onnx", "--batch", "3"), "takes 1 at once"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_leaves_nothing(cache, lowbit, arguments, said):
    np.savez("wrong.npz", x=np.zeros((2, 3, 16, 16), np.float32))
    model = onnx.load("net.onnx")
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, "fixed.onnx")
    before = files(Path())
    done = lowbit("probe", *arguments)
    assert done.status == 2, done.out
    assert said in done.line
    assert done.line.startswith("error: ")
    assert done.out == ""
    assert files(Path()) == before


def test_the_command_is_documented(lowbit):
    done = lowbit("probe", "--help")
    assert done.status == 0
    for option in ("--target", "--data", "--threads", "--batch", "--time", "--save", "--fresh", "--details", "--quiet"):
        assert option in done.out
