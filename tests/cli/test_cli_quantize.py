"""`lowbit quantize` from end to end."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from PIL import Image

FAST = ("--time", "0.1")


def digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def outputs(path: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


def test_one_command_gives_a_verified_artifact(folder, process):
    done = process("quantize", "net.onnx", "--data", "data.npz", "--method", "static", "--report", "r.html", *FAST)
    assert done.status == 0, done.err
    assert done.err == ""
    assert "net.int8.onnx, r.html" in done.out
    for word in ("Size", "Latency", "SQNR, scores", "Top-1, scores", "smaller"):
        assert word in done.out
    assert max(map(len, done.out.splitlines())) <= 100
    assert "\x1b" not in done.out  # no colour codes in a pipe
    x = np.load("test.npz")["x"]
    exact, actual = (outputs(name, {"x": x})[0] for name in ("net.onnx", "net.int8.onnx"))
    assert 0 < np.abs(actual - exact).max() < 0.1 * np.abs(exact).max()
    assert Path("r.html").read_text(encoding="utf-8").startswith("<!")
    assert sorted(path.name for path in folder.iterdir()) == [
        "data.npz",
        "net.int8.onnx",
        "net.onnx",
        "r.html",
        "test.npz",
    ]


def test_a_real_model_from_a_package(tmp_path, process, monkeypatch):
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package rapidocr-onnxruntime, which carries the PP-OCR models, is not installed")
    model = Path(spec.submodule_search_locations[0]) / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("lines").mkdir()
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (48, 192, 3), dtype=np.uint8)).save(f"lines/{index:02}.png")
    Path("pre.yaml").write_text("mean: 127.5\nstd: 127.5\ncolor: BGR\n", encoding="utf-8")
    done = process("quantize", model, "--data", "lines", "--preprocess", "pre.yaml", "-o", "cls.onnx", *FAST)
    assert done.status == 0, done.err
    assert not model.with_name("cls.onnx").exists()
    onnx.checker.check_model(onnx.load("cls.onnx"))
    x = rng.standard_normal((1, 3, 48, 192)).astype(np.float32)
    name = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    assert outputs("cls.onnx", {name: x})[0].shape == outputs(str(model), {name: x})[0].shape
    seen = process("inspect", "cls.onnx")
    assert seen.status == 0
    assert "int8" in seen.out


def test_a_saved_plan_gives_the_same_bytes_and_the_seed_decides(folder, lowbit):
    command = ("quantize", "net.onnx", "--data", "data.npz", "--method", "static", "--quiet", "--time", "0")
    assert lowbit(*command, "-o", "a.onnx", "--save-plan", "plan.yaml").status == 0
    assert lowbit(*command, "-o", "b.onnx").status == 0
    again = (
        "quantize",
        "net.onnx",
        "--data",
        "test.npz",
        "--plan",
        "plan.yaml",
        "-o",
        "c.onnx",
        "--quiet",
        "--time",
        "0",
    )
    assert lowbit(*again).status == 0
    assert digest("a.onnx") == digest("b.onnx") == digest("c.onnx")
    assert lowbit(*command, "-o", "d.onnx", "--seed", "1").status == 0
    assert digest("d.onnx") != digest("a.onnx")


def test_a_plan_cannot_be_contradicted(folder, lowbit):
    done = lowbit(
        "quantize", "net.onnx", "--data", "data.npz", "--plan", "p.yaml", "--weights", "int4", "--target", "host"
    )
    assert done.status == 2
    assert "--target, --weights cannot change what --plan has decided" in done.line


def test_flags_win_over_the_recipe(folder, lowbit):
    Path("recipe.yaml").write_text("method: static\nexclude: ['op:Gemm']\nweights: int8:per-tensor\n", encoding="utf-8")
    command = ("quantize", "net.onnx", "--data", "data.npz", "--recipe", "recipe.yaml", "--quiet", "--time", "0")
    assert lowbit(*command, "-o", "a.onnx", "--save-plan", "a.yaml").status == 0
    assert lowbit(*command, "-o", "b.onnx", "--save-plan", "b.yaml", "--weights", "int8:per-channel").status == 0
    for name, weights in (("a.yaml", "int8:per-tensor"), ("b.yaml", "int8:per-channel")):
        sites = yaml.safe_load(Path(name).read_text(encoding="utf-8"))["sites"]
        executions = {site["op_type"]: site["execution"] for site in sites}
        assert executions["Gemm"] == "float"
        assert {site["weights"] for site in sites if site["op_type"] == "Conv"} == {weights}


def test_the_default_name_tells_the_weights(folder, lowbit):
    command = ("quantize", "net.onnx", "--data", "random", "--quiet", "--time", "0")
    assert lowbit(*command, "--weights", "int4:block=32").status == 0
    assert Path("net.int4.onnx").exists()
    assert not Path("net.int8.onnx").exists()


def test_random_data_warn_on_both_streams(folder, lowbit):
    quiet = lowbit("quantize", "net.onnx", "--data", "random", "--quiet", "--time", "0")
    assert quiet.status == 0
    assert quiet.out == ""
    assert "warning: the data are random" in quiet.err
    loud = lowbit("quantize", "net.onnx", "--data", "random", "--time", "0")
    assert "the data are random" in loud.out
    assert loud.err == ""


def test_test_data_and_a_metric_of_the_current_folder(folder, lowbit):
    Path("my_metric_of_this_test.py").write_text(
        "def samples(outputs, labels):\n    assert labels is None\n    return sum(len(o[0]) for o in outputs)\n",
        encoding="utf-8",
    )
    command = ("quantize", "net.onnx", "--data", "data.npz", "--test-data", "test.npz", "--time", "0")
    done = lowbit(*command, "--metric", "my_metric_of_this_test:samples")
    assert done.status == 0, done.err
    row = next(line for line in done.out.splitlines() if line.lstrip().startswith("samples"))
    assert row.split()[1:3] == ["20.0", "20.0"]


def test_an_existing_output_is_replaced_in_one_step(folder, lowbit):
    Path("net.int8.onnx").write_bytes(b"old")
    Path("net.int8.onnx").chmod(0o640)
    assert lowbit("quantize", "net.onnx", "--data", "data.npz", "--quiet", "--time", "0").status == 0
    onnx.checker.check_model(onnx.load("net.int8.onnx"))
    assert Path("net.int8.onnx").stat().st_mode & 0o777 == 0o640


def test_details_list_every_operator(folder, lowbit):
    done = lowbit("quantize", "net.onnx", "--data", "data.npz", "--method", "static", "--details", "--time", "0")
    assert "Quality, layer by layer" in done.out
    assert "Kernels in onnxruntime" in done.out


def test_a_model_with_nothing_to_quantize_says_so(folder, lowbit):
    text = '<ir_version: 8, opset_import: ["": 13]> g (float[N, 4] x) => (float[N, 4] y) { y = Sin (x) }'
    onnx.save(onnx.parser.parse_model(text), "sin.onnx")
    np.savez("sin.npz", x=np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    done = lowbit("quantize", "sin.onnx", "--data", "sin.npz", "--time", "0")
    assert done.status == 0
    assert "nothing was quantized" in done.out
    assert "no integer kernel for Sin" in " ".join(done.out.split())
    assert "Nothing in this model would be quantized" in lowbit("check", "sin.onnx").out
