"""A finished file is never half-written, and the same model always gives the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.exceptions import ModelError, OutputError
from lowbit.graph import digest, load_model, model_size, save_model, serialize


def model(start: float = 0.0) -> ir.Model:
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 40] x) => (float[n, 40] y) { h = MatMul(x, a) y = MatMul(h, b) }"""
    proto = onnx.parser.parse_model(text)
    for name in "ab":
        array = start + np.arange(1600, dtype=np.float32).reshape(40, 40)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return load_model(proto)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("external", [None, False, True])
def test_round_trip(tmp_path: Path, external: bool | None) -> None:
    written = save_model(model(), tmp_path / "m.onnx", external_data=external)
    expected = ["m.onnx", "m.onnx.data"] if external else ["m.onnx"]
    assert [path.name for path in written] == expected
    assert names(tmp_path) == set(expected)
    assert digest(load_model(tmp_path / "m.onnx")) == digest(model())
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert model_size(tmp_path / "m.onnx") == sum(path.stat().st_size for path in written)


def test_onnxruntime_reads_external_data(tmp_path: Path) -> None:
    import onnxruntime

    save_model(model(), tmp_path / "m.onnx", external_data=True)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = np.eye(40, dtype=np.float32)
    weight = np.arange(1600, dtype=np.float32).reshape(40, 40)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], weight @ weight, rtol=1e-5)


def test_saving_is_deterministic_and_leaves_the_model_alone(tmp_path: Path) -> None:
    first = model()
    before = digest(first)
    for name in ("1", "2"):
        folder = tmp_path / name
        folder.mkdir()
        save_model(first if name == "1" else model(), folder / "m.onnx", external_data=True)
    for name in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert digest(first) == before
    assert not isinstance(first.graph.initializers["a"].const_value, ir.ExternalTensor)
    assert serialize(model()) == serialize(model())


def test_external_tensors_are_embedded_when_asked(tmp_path: Path) -> None:
    save_model(model(), tmp_path / "a.onnx", external_data=True)
    loaded = load_model(tmp_path / "a.onnx")
    save_model(loaded, tmp_path / "b.onnx", external_data=False)
    (tmp_path / "a.onnx.data").unlink()
    assert digest(load_model(tmp_path / "b.onnx")) == digest(model())


def test_saving_over_its_own_data_file(tmp_path: Path) -> None:
    """The bytes are right, and the graph that still refers to the replaced file refuses to read from it."""
    path = tmp_path / "m.onnx"
    save_model(model(), path, external_data=True)
    loaded = load_model(path)
    loaded.graph.initializers["a"].const_value = ir.tensor(np.ones((40, 40), dtype=np.float32), name="a")
    save_model(loaded, path, external_data=True)
    again = load_model(path).graph.initializers
    assert again["a"].const_value is not None
    assert again["b"].const_value is not None
    np.testing.assert_array_equal(again["a"].const_value.numpy(), np.ones((40, 40)))
    np.testing.assert_array_equal(again["b"].const_value.numpy().reshape(-1), np.arange(1600))
    stale = loaded.graph.initializers["b"].const_value
    assert stale is not None
    with pytest.raises(ValueError, match="invalidated"):
        stale.numpy()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("function", ["fsync", "replace", "write"])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_a_failure_at_any_step_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool, function: str, call: int
) -> None:
    path = tmp_path / "m.onnx"
    save_model(model(), path, external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    calls = 0

    def failing(original):  # type: ignore[no-untyped-def]
        def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args, **kwargs)

        return wrapped

    if function == "fsync":
        monkeypatch.setattr(os, "fsync", failing(os.fsync))
    elif function == "replace":
        monkeypatch.setattr(Path, "replace", failing(Path.replace))
    else:
        monkeypatch.setattr(Path, "open", failing(Path.open))
    failure: OutputError | None = None
    try:
        save_model(model(start=7), path, external_data=external)
    except OutputError as error:
        failure = error
    monkeypatch.undo()
    if failure is not None:
        assert "No space left on device. Free some space" in str(failure)
        assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    else:
        # The step is never reached, or it is the sync of the folder, when the files are complete already.
        assert calls < call or (function == "fsync" and call == (3 if external else 2))
        assert digest(load_model(path)) == digest(model(start=7))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_really_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode: original(Path("/dev/full"), "wb") if mode == "xb" else original(self, mode)
    )
    with pytest.raises(OutputError, match="No space left"):
        save_model(model(), tmp_path / "m.onnx")
    assert names(tmp_path) == set()


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(model(), tmp_path / "m.onnx", external_data=True)
    assert names(tmp_path) == set()


def test_destinations_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Create the folder"):
        save_model(model(), tmp_path / "none" / "m.onnx")
    with pytest.raises(OutputError, match="not a regular file"):
        save_model(model(), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not a folder"):
        save_model(model(), tmp_path / "file" / "m.onnx")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into any folder")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="may write to"):
            save_model(model(), tmp_path / "m.onnx")
    finally:
        tmp_path.chmod(0o755)


def test_file_mode_survives_replacement(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    save_model(model(), path)
    path.chmod(0o640)
    save_model(model(), path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_size_of_bad_files(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not onnx")
    with pytest.raises(ModelError):
        model_size(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="No such file"):
        model_size(tmp_path / "none.onnx")
    save_model(model(), tmp_path / "e.onnx", external_data=True)
    (tmp_path / "e.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"e\.onnx\.data"):
        model_size(tmp_path / "e.onnx")


def test_digest_sees_content_and_nothing_else(tmp_path: Path) -> None:
    base = digest(model())
    assert base == digest(model())
    assert len(base) == 64
    assert base != digest(model(start=1))

    def changed(edit: str) -> str:
        other = model()
        graph = other.graph
        match edit:
            case "node name":
                graph[0].name = "other"
            case "operator":
                graph[0].op_type = "MatMul2"
            case "attribute":
                graph[0].attributes.add(ir.AttrInt64("a", 1))
            case "input name":
                graph.inputs[0].name = "z"
            case "opset":
                other.opset_imports[""] = 18
            case "swapped inputs":
                first = graph[0].inputs
                a, b = first[0], first[1]
                graph[0].replace_input_with(0, b)
                graph[0].replace_input_with(1, a)
            case "documentation":
                other.doc_string, other.producer_name = "text", "me"
                graph.doc_string = "text"
                other.metadata_props["k"] = "v"
            case "inferred shapes":
                graph[0].outputs[0].shape = ir.Shape(["n", 40])
        return digest(other)

    edits = ["node name", "operator", "attribute", "input name", "opset", "swapped inputs"]
    assert len({base, *(changed(edit) for edit in edits)}) == len(edits) + 1
    assert changed("documentation") == base
    assert changed("inferred shapes") == base


def test_digest_of_subgraphs_and_strings() -> None:
    def text(word: str, constant: float) -> ir.Model:
        return load_model(
            onnx.parser.parse_model(
                f"""<ir_version: 8, opset_import: ["": 17]>
                g (bool c, float[1] x) => (float[1] y) {{
                    y = If (c) <
                        then_branch = t () => (float[1] a) {{ a = Add(x, k) k0 = Identity(a) }},
                        else_branch = e () => (float[1] b) {{ b = Mul(x, k) }}
                    >
                    s = Constant <value_strings = ["{word}"]> ()
                }}""".replace(
                    "g (bool c, float[1] x) => (float[1] y) {",
                    f"g (bool c, float[1] x) => (float[1] y) <float[1] k = {{{constant}}}> {{",
                )
            )
        )

    assert digest(text("a", 1)) == digest(text("a", 1))
    assert len({digest(text("a", 1)), digest(text("b", 1)), digest(text("a", 2))}) == 3
