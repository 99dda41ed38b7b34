"""`lowbit pack` and `lowbit unpack`: files in, the same files out, and nothing half-written."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import lowbit as package
from lowbit.exceptions import LowbitError


def test_there_and_back(folder, lowbit):
    before = (folder / "net.onnx").read_bytes()
    done = lowbit("pack", "net.onnx", "-o", "net.lbz")
    assert (done.status, done.err) == (0, "")
    assert "smaller" in done.out
    assert lowbit("unpack", "net.lbz", "-o", "again.onnx").status == 0
    assert (folder / "again.onnx").read_bytes() == before
    assert (folder / "net.lbz").stat().st_size < len(before)


def test_in_python(folder):
    packing = package.pack("net.onnx", "net.lbz")
    assert packing.packed == (folder / "net.lbz").stat().st_size
    assert 0 < packing.structure < packing.packed
    assert {"w0", "w1", "w2", "w3"} <= {part.name for part in packing.parts}
    assert [path.name for path in package.unpack("net.lbz", "again.onnx")] == ["again.onnx"]


def test_data_files(folder, lowbit):
    """Bytes between tensors, and behind the last, come back too."""
    model = onnx.load("net.onnx")
    onnx.save(model, "outside.onnx", save_as_external_data=True, location="outside.bin", size_threshold=64)
    with (folder / "outside.bin").open("ab") as file:
        file.write(b"what else there was")
    before = {name: (folder / name).read_bytes() for name in ("outside.onnx", "outside.bin")}
    assert lowbit("pack", "outside.onnx").status == 0
    (folder / "new").mkdir()
    assert lowbit("unpack", "outside.lbz", "-o", "new/outside.onnx").status == 0
    assert {path.name: path.read_bytes() for path in (folder / "new").iterdir()} == before


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../b", "C:\\x"])
def test_data_files_stay_in_the_folder(folder, lowbit, location, monkeypatch):
    tensor = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    assert lowbit("pack", "m.onnx").status == 2
    # A forged file, made without the check, is refused on the other side as well.
    from lowbit.container import archive

    with monkeypatch.context() as patch:
        patch.setattr(archive, "locations", lambda tensors: [location])
        packed, _ = archive.pack(model.SerializeToString(), lambda _: b"x" * 256)
    (folder / "m.lbz").write_bytes(packed)
    done = lowbit("unpack", "m.lbz", "-o", "out.onnx")
    assert done.status == 2
    assert "stay inside it" in done.line
    assert not (folder / "out.onnx").exists()


def test_a_data_file_does_not_replace_the_model(folder, lowbit):
    onnx.save(onnx.load("net.onnx"), "a.onnx", save_as_external_data=True, location="b.onnx", size_threshold=64)
    assert lowbit("pack", "a.onnx").status == 0
    done = lowbit("unpack", "a.lbz", "-o", "b.onnx")
    assert done.status == 2
    assert "another file" in done.line


def test_a_damaged_file_writes_nothing_and_names_the_tensor(folder, lowbit):
    assert lowbit("pack", "net.onnx", "-o", "net.lbz", "--quiet").out == ""
    content = bytearray((folder / "net.lbz").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "net.lbz").write_bytes(content)
    (folder / "out.onnx").write_bytes(b"before")
    done = lowbit("unpack", "net.lbz", "-o", "out.onnx")
    assert done.status == 2
    assert "Tensor 'w1' of net.lbz is damaged" in done.line
    assert (folder / "out.onnx").read_bytes() == b"before"
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    "arguments", [("pack", "none.onnx"), ("unpack", "none.lbz"), ("unpack", "net.onnx", "-o", "x")]
)
def test_wrong_input_is_one_line(folder, lowbit, arguments):
    done = lowbit(*arguments)
    assert done.status == 2
    assert done.line


def test_a_missing_data_file(folder):
    onnx.save(onnx.load("net.onnx"), "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=64)
    (folder / "a.bin").unlink()
    with pytest.raises(LowbitError, match="missing"):
        package.pack("a.onnx", "a.lbz")
    assert not (folder / "a.lbz").exists()
