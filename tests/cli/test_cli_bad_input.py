"""Every bad input gets one line (value, cause, remedy), status 2, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

RUN = ("--time", "0", "--quiet")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def refused(folder, lowbit):
    """Run a command that must fail, and return its line; nothing may have changed on the disk."""

    def call(*arguments: object) -> str:
        before = snapshot(folder)
        done = lowbit(*arguments)
        assert done.status == 2, (done.out, done.err)
        assert done.out == ""
        assert snapshot(folder) == before
        assert done.line.startswith("error: ")
        assert done.line.endswith((".", ")"))
        return done.line

    return call


def save_external(location: str) -> None:
    model = onnx.load("net.onnx")
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, "outside.onnx")
    model = onnx.load("outside.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    Path("outside.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("command", ["quantize", "diagnose", "check", "inspect", "compare"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "bad.onnx does not exist. Check the path"),
        (lambda: Path("bad.onnx").mkdir(), "bad.onnx is a folder"),
        (lambda: Path("bad.onnx").write_bytes(b""), "bad.onnx is empty"),
        (lambda: Path("bad.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" * 40), "bad.onnx is not an ONNX model"),
        (
            lambda: Path("bad.onnx").write_bytes(Path("net.onnx").read_bytes()[:50_000]),
            "is not an ONNX model, or is cut off",
        ),
    ],
    ids=["missing", "folder", "empty", "picture", "truncated"],
)
def test_a_file_that_is_no_model(refused, command, make, said):
    make()
    data = ("--data", "data.npz")
    extra = {"quantize": data, "diagnose": data, "compare": ("net.onnx", *data)}.get(command, ())
    assert said in refused(command, "bad.onnx", *extra)


@pytest.mark.parametrize(
    ("location", "said"),
    [("gone.bin", "gone.bin cannot be read"), ("../weights.bin", "stay inside"), ("/etc/passwd", "stay inside")],
)
def test_external_data_missing_or_outside_the_folder(refused, location, said):
    save_external(location)
    line = refused("quantize", "outside.onnx", "--data", "data.npz", *RUN)
    assert said in line
    assert repr(location) in line


def samples(count: int = 6, shape: tuple[int, ...] = (8, 16, 16), dtype: object = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype)


def with_value(value: float) -> np.ndarray:
    array = samples()
    array[3, 2, 1, 0] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": with_value(np.nan)}, ["'x'", "NaN"]),
        ({"x": with_value(np.inf)}, ["'x'", "inf"]),
        ({"x": samples(0)}, ["no samples"]),
        ({"a": samples(), "b": samples()}, ["'x'", "a", "b"]),
        ({"x": samples(), "z": samples()}, ["'z'"]),
        ({"x": samples(shape=(3, 16, 16))}, ["'x'", "8", "3"]),
        ({"x": samples(shape=(8,))}, ["'x'"]),
        ({"x": samples().astype(np.complex64)}, ["'x'", "complex64"]),
        ({"x": np.array([["a"] * 3] * 3)}, ["'x'"]),
    ],
    ids=["nan", "inf", "empty", "name", "surplus", "shape", "rank", "complex", "text"],
)
def test_data_that_do_not_fit(refused, arrays, said):
    np.savez("bad.npz", **arrays)
    line = refused("quantize", "net.onnx", "--data", "bad.npz", *RUN)
    assert all(word in line for word in said), line


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "there is no data file or folder 'bad'"),
        (lambda: Path("bad").mkdir(), "the folder 'bad' holds no data"),
        (lambda: Path("bad").write_text("x", encoding="utf-8"), "of no known kind"),
    ],
    ids=["missing", "empty folder", "text file"],
)
def test_data_that_are_none(refused, make, said):
    make()
    assert said in refused("quantize", "net.onnx", "--data", "bad", *RUN)


def test_no_data_at_all(refused):
    assert "no data were given" in refused("quantize", "net.onnx", *RUN)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "toaster"], ["unknown target 'toaster'", "onnxruntime-arm64"]),
        (["--weights", "int9"], ["'int9'", "Use one of int2, int4, int8"]),
        (["--weights", "int8:per-moon"], ["'int8:per-moon'"]),
        (["--activations", "loud"], ["'loud'"]),
        (["--method", "magic"], ["'magic'", "auto, best, static, dynamic, weight-only"]),
        (["--calibration", "guess"], ["'guess'", "entropy"]),
        (["--percentile", "7"], ["7"]),
        (["--samples", "0"], ["samples is 0"]),
        (["--io", "int3"], ["'int3'"]),
        (["--exclude", "nothing*"], ["'nothing*' matches no operator"]),
        (["--exclude", "re:("], ["'re:('"]),
        (["--metric", "accuracy"], ["Write module:function"]),
        (["--metric", "no_such_module_here:f"], ["'no_such_module_here', which is not found"]),
        (["--metric", "json:no_such_function"], ["no function 'no_such_function'", "loads"]),
        (["--metric", "broken_metric:f"], ["importing 'broken_metric' failed", "ZeroDivisionError"]),
        (["--metric", "json:loads"], ["the metric 'loads' failed", "TypeError"]),
        (["--preprocess", "size"], ["size"]),
        (["--preprocess", "colour=RGB"], ["colour", "color"]),
        (["--preprocess", "gone.yaml"], ["gone.yaml"]),
        (["--preprocess", "size=16"], ["not pictures"]),
        (["--labels", "gone.npy"], ["gone.npy"]),
        (["--recipe", "gone.yaml"], ["gone.yaml", "No such file"]),
        (["--recipe", "key.yaml"], ["unknown recipe key 'wieghts'", "weights"]),
        (["--recipe", "list.yaml"], ["not a mapping"]),
        (["--recipe", "broken.yaml"], ["broken.yaml", "not YAML"]),
        (["--recipe", "kind.yaml"], ["a value of the wrong kind"]),
        (["--plan", "gone.yaml"], ["gone.yaml"]),
        (["--plan", "key.yaml"], ["version"]),
        (["--plan", "list.yaml"], ["version"]),
        (["--plan", "plan.yaml"], ["plan is malformed", "--save-plan"]),
        (["--plan", "other.yaml"], ["does not fit this model"]),
        (["-o", "net.onnx"], ["'net.onnx' is read by this command"]),
        (["-o", "gone/net.onnx"], ["gone/net.onnx", "Create the folder gone"]),
        (["-o", "data.npz/net.onnx"], ["data.npz/net.onnx", "Not a directory"]),
        (["-o", "."], ["is a folder"]),
        (["-o", "/dev/full"], ["not a regular file"]),
        (["-o", "a.onnx", "--report", "a.onnx"], ["'a.onnx' was given for two outputs"]),
        (["--report", "gone/r.html"], ["gone/r.html"]),
    ],
    ids=lambda value: " ".join(value[:2]) if value and value[0].startswith("-") else "",
)
def test_options_that_make_no_sense(refused, arguments, said):
    Path("broken_metric.py").write_text("1 / 0\n", encoding="utf-8")
    Path("key.yaml").write_text("wieghts: int8\n", encoding="utf-8")
    Path("list.yaml").write_text("- int8\n", encoding="utf-8")
    Path("broken.yaml").write_text("a: [1, 2\nb: }\n", encoding="utf-8")
    Path("kind.yaml").write_text("samples: many\n", encoding="utf-8")
    Path("plan.yaml").write_text("version: 1\nsites: [{nodes: a}]\n", encoding="utf-8")
    Path("other.yaml").write_text(
        "{version: 1, target: onnxruntime-x86-avx2, method: float, model_sha256: '0', sites: []}\n", encoding="utf-8"
    )
    line = refused("quantize", "net.onnx", "--data", "data.npz", *RUN, *arguments)
    assert all(word in line for word in said), line


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere, other systems have no modes"
)
def test_a_folder_that_may_not_be_written(refused, folder):
    (folder / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refused("quantize", "net.onnx", "--data", "data.npz", "-o", "locked/a.onnx", *RUN)


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_what_stood_there(refused, monkeypatch):
    Path("net.int8.onnx").write_bytes(b"the artifact of yesterday")
    real = os.fsync

    def fsync(descriptor: int) -> None:
        # Temporary files of the work go through; the artifact is the one in this folder.
        if Path(f"/proc/self/fd/{descriptor}").readlink().parent == Path.cwd():
            no_space()
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell one file from another")
    monkeypatch.setattr(os, "fsync", fsync)
    line = refused("quantize", "net.onnx", "--data", "data.npz", *RUN)
    assert "net.int8.onnx cannot be written. No space left on device. Free some space" in line


def test_a_full_disk_for_temporary_files(refused, monkeypatch):
    monkeypatch.setattr("lowbit.methods.measuring.save_model", no_space)
    line = refused("quantize", "net.onnx", "--data", "data.npz", *RUN)
    assert "No space left on device" in line
    assert "TMPDIR" in line


def test_a_failing_report_says_that_the_artifact_is_there(folder, lowbit, monkeypatch):
    monkeypatch.setattr("lowbit.report.html.render_report", no_space)
    done = lowbit("quantize", "net.onnx", "--data", "data.npz", "--report", "r.html", *RUN)
    assert done.status == 2
    assert "No space left" in done.line
    assert "(net.int8.onnx was written before)" in done.line
    assert not Path("r.html").exists()
    onnx.checker.check_model(onnx.load("net.int8.onnx"))


def change_weight(name: str, change) -> None:
    model = onnx.load("net.onnx")
    tensor = next(item for item in model.graph.initializer if item.name == name)
    array = onnx.numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, "net.onnx")


def zero(array: np.ndarray) -> None:
    array[3] = 0.0


def constant(array: np.ndarray) -> None:
    array[3] = 0.25


def enormous(array: np.ndarray) -> None:
    array *= np.float32(1e30)


@pytest.mark.parametrize("change", [zero, constant, enormous])
@pytest.mark.parametrize("method", ["static", "dynamic", "weight-only"])
def test_odd_weights_work_or_are_refused_in_one_line(folder, lowbit, change, method):
    change_weight("w1", change)
    done = lowbit("quantize", "net.onnx", "--data", "data.npz", "--method", method, *RUN)
    if change is enormous and done.status == 2:
        assert not Path("net.int8.onnx").exists()
        assert "finite" in done.line
        return
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    import onnxruntime

    x = np.load("test.npz")["x"]
    exact, actual = (
        onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("net.onnx", "net.int8.onnx")
    )
    noise = np.square((actual - exact).astype(np.float64)).sum() / np.square(exact.astype(np.float64)).sum()
    assert noise < 0.01  # 20 dB


def test_constant_zero_data_work(folder, lowbit):
    np.savez("zero.npz", x=np.zeros((6, 8, 16, 16), np.float32))
    done = lowbit("quantize", "net.onnx", "--data", "zero.npz", "--method", "static", *RUN)
    assert done.status == 0, done.err


@pytest.mark.parametrize("duration", ["soon", "-1", "5x", "1h30m", ""])
def test_a_duration_that_is_none(lowbit, duration: str) -> None:
    done = lowbit("quantize", "net.onnx", "--data", "data.npz", "--method", "best", "--time", duration)
    assert done.status != 0
    assert "5m" in done.err
