"""What `load_model` accepts, and that everything else is one clear line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from lowbit.exceptions import ModelError
from lowbit.graph import clean, digest, load_model, model_size, save_model, serialize

TEXT = """
<ir_version: 8, opset_import: ["": 17]>
g (float[n, 4] x) => (float[n, 300] y) <float[4, 300] w = {WEIGHT}> { y = MatMul(x, w) }
"""


def proto(scale: float = 1.0) -> onnx.ModelProto:
    weight = ", ".join(str(scale * i) for i in range(1200))
    return onnx.parser.parse_model(TEXT.replace("WEIGHT", weight))


def external(folder: Path, location: str = "w.bin", **entries: str) -> Path:
    """A model whose weight lies in `location`, with the data file at `w.bin`."""
    model = proto()
    tensor = model.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor)
    (folder / "w.bin").write_bytes(array.tobytes())
    for field in ("float_data", "raw_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def message(source: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(source)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_path_protobuf_and_graph_give_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto().SerializeToString())
    models = [load_model(path), load_model(str(path)), load_model(proto()), load_model(ir.from_proto(proto()))]
    assert len({digest(model) for model in models}) == 1


def test_a_graph_argument_is_cloned(tmp_path: Path) -> None:
    model = ir.from_proto(proto())
    copy = load_model(model)
    copy.graph.inputs[0].name = "renamed"
    copy.graph.remove(copy.graph[0])
    assert model.graph.inputs[0].name == "x"
    assert len(model.graph) == 1
    assert copy.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04 this is a zip file", "not an ONNX model"),
        (b"\x08\x07", "no graph"),
        (b"<!DOCTYPE html><html></html>", "not an ONNX model"),
    ],
)
def test_files_that_are_not_onnx(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert words in message(path)


def test_no_prefix_of_a_model_passes_for_a_model(tmp_path: Path) -> None:
    data = proto().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        assert str(path) in message(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "none.onnx")
    assert "is a folder" in message(tmp_path)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"x")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "Permission denied" in message(path)


def test_model_without_operator_set() -> None:
    model = proto()
    del model.opset_import[:]
    assert "no operator set" in message(model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("g (float[2] x) => (float[2] y) { y = Relu(zzz) }", "zzz"),
        ("g (float[2] x) => (float[2] y) { y = Reluu(x) }", "Reluu"),
        ("g (float[2] x) => (float[2] y) { y = Relu(x, x) }", "Relu"),
        ("g (float[2] x) => (float[2] y) { t = Relu(y) y = Relu(t) }", "cycle"),
    ],
)
def test_structurally_invalid_graphs(text: str, words: str) -> None:
    assert words in message(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}'))


def test_nodes_in_another_order_are_sorted() -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[2] x) => (float[2] y) { y = Relu(t) t = Neg(x) }'
    assert [node.op_type for node in load_model(onnx.parser.parse_model(text)).graph] == ["Neg", "Relu"]


def test_operators_of_other_domains_are_accepted() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
        "g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"
    )
    assert load_model(model).graph[0].domain == "com.microsoft"


def test_tensor_with_too_few_bytes() -> None:
    model = proto()
    tensor = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(tensor).tobytes()
    tensor.ClearField("float_data")
    tensor.raw_data = data[:-4]
    assert "4,796 bytes" in message(model)


def test_sparse_initializer_becomes_dense() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, s) }'
    )
    values = onnx.numpy_helper.from_array(np.array([5.0, 7.0], dtype=np.float32), "s")
    indices = onnx.numpy_helper.from_array(np.array([1, 5], dtype=np.int64), "i")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [2, 3]))
    loaded = load_model(model)
    tensor = loaded.graph.initializers["s"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), [[0, 5, 0], [0, 0, 7]])
    assert len(model.graph.sparse_initializer) == 1


def test_external_data_are_mapped_not_read(tmp_path: Path) -> None:
    model = load_model(external(tmp_path))
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    np.testing.assert_array_equal(tensor.numpy().reshape(-1), np.arange(1200, dtype=np.float32))


@pytest.mark.parametrize(
    "location", ["/etc/hostname", "../w.bin", "sub/../../w.bin", "C:\\w.bin", "..\\w.bin", "\\\\host\\share\\w.bin", ""]
)
def test_external_data_must_be_named_inside_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4800))
    line = message(external(folder, location))
    assert "stay inside" in line
    assert repr(location) in line


def test_external_data_must_not_escape_by_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (folder / "w.bin").replace(tmp_path / "secret.bin")
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    assert "symbolic link" in message(path)
    (folder / "w.bin").unlink()
    os.link(tmp_path / "secret.bin", folder / "w.bin")
    assert "hard link" in message(path)


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").replace(tmp_path / "data.bin")
    (tmp_path / "w.bin").symlink_to(tmp_path / "data.bin")
    assert digest(load_model(path)) == digest(load_model(proto()))


def test_external_data_missing_short_or_contradictory(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(4799))
    assert "4,799 bytes" in message(path)
    (tmp_path / "w.bin").unlink()
    assert "No such file" in message(path)
    (tmp_path / "w.bin").mkdir()
    assert "not a regular file" in message(path)
    (tmp_path / "w.bin").rmdir()
    assert "do not fit" in message(external(tmp_path, length="17"))
    assert "ends at 4,801" in message(external(tmp_path, offset="1"))


def test_a_protobuf_with_external_data_needs_its_folder(tmp_path: Path) -> None:
    model = onnx.load(external(tmp_path), load_external_data=False)
    assert "Pass the path" in message(model)


@pytest.mark.slow
def test_model_larger_than_a_protobuf(tmp_path: Path) -> None:
    """2.2 GB of weights that are holes in a sparse file: loaded, cleaned, saved and digested."""
    rows = 270_000
    (tmp_path / "w.bin").touch()
    os.truncate(tmp_path / "w.bin", rows * 2000 * 4)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 12]>'
        "g (int64[n] i, float[n, 2000] x) => (float[n, 2000] y) { e = Gather(w, i) y = Add(e, x) }"
    )
    tensor = model.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[rows, 2000])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "w.bin"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())

    loaded = load_model(path)
    cleaned = clean(loaded)
    assert "opset 12 raised to 13" in cleaned.notes
    assert cleaned.model.graph.node(0).outputs[0].shape is not None
    written = save_model(cleaned.model, tmp_path / "out.onnx")
    assert [file.name for file in written] == ["out.onnx", "out.onnx.data"]
    assert model_size(tmp_path / "out.onnx") > 2_160_000_000
    assert digest(load_model(tmp_path / "out.onnx")) == digest(cleaned.model)


def test_loading_does_not_depend_on_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(serialize(load_model("model.onnx"))) > 4800
