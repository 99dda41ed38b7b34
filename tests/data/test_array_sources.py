"""Arrays from files and memory: how they are matched to inputs, cut into samples, converted and refused."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest

from lowbit.data import InputSpec, input_specs, open_data
from lowbit.exceptions import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

F4 = np.dtype("float32")
I8 = np.dtype("int64")
IMAGE = (InputSpec("x", F4, ("b", 3, 4, 5)),)
VAD = (
    InputSpec("input", F4, (None, None)),
    InputSpec("state", F4, (2, None, 8)),
    InputSpec("sr", I8, ()),
)


def pictures(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 4, 5)).astype("float32")


def joined(dataset, name: str = "x", axis: int = 0) -> np.ndarray:
    return np.concatenate([feed[name] for feed in dataset], axis=axis)


def test_input_specs_name_what_has_to_be_fed():
    model = onnx_ir.from_proto(
        onnx.parser.parse_model("""
        <ir_version: 3, opset_import: ["": 17]>
        agraph (float[b, 3, 4] x, int64 n, float[1, 3, 4] w, float16[?, 2] h) => (float[b, 3, 4] y)
        <float[1, 3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> { y = Add(x, w) }
        """)
    )
    specs = input_specs(model)
    assert [(spec.name, str(spec.dtype), spec.shape) for spec in specs] == [
        ("x", "float32", ("b", 3, 4)),
        ("n", "int64", ()),
        ("h", "float16", (None, 2)),
    ]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_cut_into_samples_with_labels(tmp_path: Path, save, order):
    x, y = pictures(), np.arange(6)
    save(tmp_path / "d.npz", x=np.asarray(x, order=order), y=y)
    data = open_data(tmp_path / "d.npz", IMAGE)
    assert data.samples == 6
    assert data.warnings == ()
    assert [feed["x"].shape for feed in data] == [(1, 3, 4, 5)] * 6
    np.testing.assert_array_equal(joined(data), x)
    np.testing.assert_array_equal(joined(data), x)
    np.testing.assert_array_equal(data.labels, y)
    np.testing.assert_array_equal(joined(data.select([4, 1])), x[[1, 4]])
    np.testing.assert_array_equal(data.select([4, 1]).labels, [1, 4])


def test_npz_is_read_in_slices(tmp_path: Path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=pictures(50))
    reads = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: reads.append(n) or read(self, n))
    data = open_data(tmp_path / "d.npz", IMAGE)
    assert sum(1 for _ in data) == 50
    assert max(reads) <= 2 * 3 * 4 * 5 * 4  # no read is larger than a sample or two, and none is unbounded
    assert min(reads) >= 0


def test_a_single_array_under_another_name_is_accepted_with_a_note(tmp_path: Path):
    np.savez(tmp_path / "d.npz", image=pictures(), label=np.zeros((6, 1), "int32"))
    data = open_data(tmp_path / "d.npz", IMAGE)
    assert "'image' feeds the model's only input 'x'" in data.warnings[0]
    assert data.labels.shape == (6,)


def test_an_array_of_one_rank_more_is_indexed():
    x = pictures(6)[:, None]
    data = open_data({"x": x}, IMAGE)
    assert data.samples == 6
    np.testing.assert_array_equal(joined(data), x[:, 0])


def test_a_single_sample_without_batch_axis_gets_one():
    data = open_data([pictures()[0], pictures()[1]], IMAGE)
    np.testing.assert_array_equal(joined(data), pictures()[:2])


def test_npy_and_folders_of_files(tmp_path: Path):
    x = pictures()
    np.save(tmp_path / "b.npy", x[2:5])
    np.save(tmp_path / "a.npy", x[:2])
    (tmp_path / "sub").mkdir()
    np.savez(tmp_path / "sub" / "c.npz", x=x[5:])
    np.testing.assert_array_equal(joined(open_data(tmp_path / "b.npy", IMAGE)), x[2:5])
    folder = open_data(str(tmp_path), IMAGE, batch_size=4)
    assert folder.samples == 6
    np.testing.assert_array_equal(joined(folder), x)
    np.testing.assert_array_equal(joined(folder.select([0, 3, 5])), x[[0, 3, 5]])


def test_labels_from_a_file_apart(tmp_path: Path):
    np.save(tmp_path / "x.npy", pictures())
    np.save(tmp_path / "l.npy", np.arange(6))
    (tmp_path / "l.txt").write_text("0\n1\n2\n3\n4\n5\n")
    for file in ("l.npy", "l.txt"):
        data = open_data(tmp_path / "x.npy", IMAGE, labels=tmp_path / file)
        np.testing.assert_array_equal(data.labels, np.arange(6))
    (tmp_path / "l.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match="not a list of whole numbers"):
        open_data(tmp_path / "x.npy", IMAGE, labels=tmp_path / "l.txt")
    with pytest.raises(RecipeError, match="labels"):
        open_data(iter([pictures()]), IMAGE, labels=tmp_path / "l.npy")


def test_recurrent_state_and_scalars_go_with_every_sample(tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((5, 16)).astype("float32")
    np.savez(tmp_path / "d.npz", input=x, state=np.ones((2, 1, 8), "float32"), sr=np.array(16000))
    data = open_data(tmp_path / "d.npz", VAD)
    assert data.samples == 5
    assert any("'state' is fed as it is to every sample" in note for note in data.warnings)
    for feed in data:
        assert {name: array.shape for name, array in feed.items()} == {"input": (1, 16), "state": (2, 1, 8), "sr": ()}
        assert feed["sr"].dtype == I8
        assert feed["sr"] == 16000
    pair = next(iter(data.batched(2)))
    assert {name: array.shape for name, array in pair.items()} == {"input": (2, 16), "state": (2, 2, 8), "sr": ()}


def test_state_and_scalar_per_sample():
    x, state = np.zeros((3, 16), "float32"), np.arange(48, dtype="float32").reshape(3, 2, 1, 8)
    feeds = list(open_data({"input": x, "state": state, "sr": np.array([8, 8, 16])}, VAD))
    assert [int(feed["sr"]) for feed in feeds] == [8, 8, 16]
    np.testing.assert_array_equal(np.stack([feed["state"] for feed in feeds]), state)
    moved = {"input": x, "state": state[:, :, 0].swapaxes(0, 1), "sr": np.array([8, 8, 16])}
    np.testing.assert_array_equal(np.stack([feed["state"] for feed in open_data(moved, VAD)]), state)
    with pytest.raises(DataError, match=r"no batch axis.*batch size 1"):
        list(open_data(moved, VAD, batch_size=3))


@pytest.mark.parametrize("batched", [False, True])
def test_a_fixed_batch_is_filled_and_the_rest_left_out_with_a_warning(batched):
    spec = (InputSpec("x", F4, (4, 3)),)
    x, y = np.arange(30, dtype="float32").reshape(10, 3), np.arange(10)
    values = [(x[i : i + 1], y[i : i + 1]) for i in range(10)]
    if batched:  # one axis more: each entry is a whole batch, and the sample is that batch
        data = open_data({"x": x[:8].reshape(2, 4, 3), "y": y[:8].reshape(2, 4)}, spec)
        assert data.samples == 2
    else:
        data = open_data(iter(values), spec, batch_size=7)
        assert data.count() == 8
        np.testing.assert_array_equal(data.labels, y[:8])
        assert sorted(len(part.labels) for part in data.split(0.3)) == [4, 4]
        assert any("2 of 10 samples do not fill" in note for note in data.warnings)
        assert any("fixes its batch at 4" in note for note in data.warnings)
    assert [feed["x"].shape for feed in data] == [(4, 3)] * 2
    np.testing.assert_array_equal(joined(data), x[:8])
    with pytest.raises(DataError, match="3 samples, but the model's batch is fixed at 4"):
        list(open_data(x[:3], spec))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("float64", "float32"), ("uint8", "float32"), ("int32", "int64"), ("bool", "float32"), (">f4", "float32"),
        ("float32", "float16"), ("float32", "int64"), ("float16", "bfloat16"),
    ],
)  # fmt: skip
def test_conversions_that_keep_the_values_are_made(given, wanted):
    dtype = np.dtype(ml_dtypes.bfloat16) if wanted == "bfloat16" else np.dtype(wanted)
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(given)
    feeds = list(open_data(array, (InputSpec("x", dtype, (None, 3)),)))
    assert all(feed["x"].dtype == dtype for feed in feeds)
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]).astype("float64"), array)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([[0.5]]), "int64"), (np.array([[300]]), "uint8"), (np.array([[1e6]]), "float16"),
        (np.array([[2**24 + 1]]), "float32"), (np.array([[-1]]), "uint8"), (np.array([["a"]]), "float32"),
        (np.array([[1j]]), "float32"),
    ],
)  # fmt: skip
def test_conversions_that_change_values_are_refused(array, wanted):
    with pytest.raises(DataError, match=rf"sample 0 .* is .* wants {wanted}.*would change its values"):
        list(open_data(array, (InputSpec("x", np.dtype(wanted), (None, 1)),)))


def test_integers_fed_as_floats_are_noted():
    assert (
        "int8 values of 'x' are fed as float32 without scaling"
        in open_data({"x": np.zeros((2, 3, 4, 5), "int8")}, IMAGE).warnings[0]
    )


def test_bfloat16_survives_npy(tmp_path: Path):
    spec = (InputSpec("x", np.dtype(ml_dtypes.bfloat16), ("n", 3)),)
    array = np.array([[1, 2, 3], [4, 5, 0.1]], ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", array)
    for data in (open_data(tmp_path / "x.npy", spec), open_data(iter([array]), spec)):
        for _ in range(2):
            result = joined(data)
            assert result.dtype == array.dtype
            np.testing.assert_array_equal(result, array)


def test_feeds_are_copies_that_may_be_changed():
    x = pictures()
    data = open_data(x, IMAGE)
    for feed in data:
        feed["x"] += 1
    np.testing.assert_array_equal(joined(data), pictures())


@pytest.mark.parametrize(
    ("shape", "wanted", "remedy"),
    [
        ((6, 4, 5, 3), ("b", 3, 4, 5), r"layout=NCHW, or array.transpose\(0, 3, 1, 2\)"),
        ((6, 3, 4, 5), ("b", 4, 5, 3), r"layout=NHWC, or array.transpose\(0, 2, 3, 1\)"),
        ((6, 49, 10), ("b", 49, 10, 1), r"array\[..., None\]"),
        ((6, 28, 28), ("b", 1, 28, 28), r"array\[:, None\]"),
        ((4, 5, 3), ("b", 3, 4, 5), r"array.transpose\(2, 0, 1\)"),
        ((3, 4, 5), ("b", 4, 5, 3), r"array.transpose\(1, 2, 0\)"),
        ((6, 3, 9, 9), ("b", 3, 4, 5), "axis 2 is 9, not 4, axis 3 is 9, not 5"),
        ((6,), ("b", 3, 4, 5), "rank 4 with the batch axis, or 5"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_remedy(shape, wanted, remedy):
    with pytest.raises(DataError, match=remedy) as caught:
        open_data({"image": np.zeros(shape, "float32")}, (InputSpec("x", F4, wanted),))
    assert f"the array 'image' {list(shape)} float32, but the model's input 'x' wants {list(wanted)}" in str(
        caught.value
    )


def test_names_that_do_not_match_are_refused(tmp_path: Path):
    np.savez(tmp_path / "d.npz", input=np.zeros((2, 3)), junk=np.zeros(2))
    with pytest.raises(DataError, match=r"inputs are \['input', 'state', 'sr'\].*misses \['state', 'sr'\].*\['junk'\]"):
        open_data(tmp_path / "d.npz", VAD)
    with pytest.raises(DataError, match="one array, but the model has the 3 inputs"):
        open_data(np.zeros((2, 3)), VAD)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_name_the_sample(value, word):
    x = pictures()
    x[4, 0, 0, 0] = value
    with pytest.raises(
        DataError, match=rf"sample 1 of element 1 of the data \(number 4 of all\) holds {word} for the input 'x'"
    ):
        list(open_data([x[:3], x[3:]], IMAGE))


def test_disagreeing_or_missing_samples_and_labels_are_refused():
    with pytest.raises(DataError, match="disagree about the number of samples"):
        open_data({"input": np.zeros((4, 2)), "state": np.zeros((3, 2, 1, 8)), "sr": np.zeros(4, int)}, VAD)
    with pytest.raises(DataError, match="holds no samples"):
        open_data(pictures(0), IMAGE)
    with pytest.raises(DataError, match="holds no samples"):
        open_data([], IMAGE)
    with pytest.raises(DataError, match=r"labels of shape \[5\] for 6 samples"):
        open_data({"x": pictures(), "y": np.arange(5)}, IMAGE)
    with pytest.raises(DataError, match="only 1 of 2 parts"):
        open_data([pictures(), (pictures(), np.arange(6))], IMAGE)


def test_objects_are_never_unpickled(tmp_path: Path):
    ragged = np.array([[1], [1, 2]], dtype=object)
    np.savez(tmp_path / "d.npz", x=ragged)
    np.save(tmp_path / "d.npy", ragged, allow_pickle=True)
    for source in (tmp_path / "d.npz", tmp_path / "d.npy", ragged):
        with pytest.raises(DataError, match="Python objects"):
            open_data(source, IMAGE)
    with pytest.raises(DataError, match="not an array"):
        open_data([[[1], [1, 2]]], IMAGE)


def test_damaged_files_give_one_error_that_names_them(tmp_path: Path):
    np.savez(tmp_path / "good.npz", x=pictures())
    np.save(tmp_path / "good.npy", pictures())
    for kind in ("npz", "npy"):
        content = (tmp_path / f"good.{kind}").read_bytes()
        for name, damaged in (("short", content[:-600]), ("empty", b""), ("text", b"hello")):
            path = tmp_path / f"{name}.{kind}"
            path.write_bytes(damaged)
            with pytest.raises(DataError, match=f"{name}.{kind}.*cannot be read"):
                open_data(path, IMAGE)
    flipped = bytearray((tmp_path / "good.npz").read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (tmp_path / "flipped.npz").write_bytes(flipped)
    with pytest.raises(DataError, match=r"flipped.npz.*CRC"):
        list(open_data(tmp_path / "flipped.npz", IMAGE))
    with zipfile.ZipFile(tmp_path / "lying.npz", "w") as archive:
        header = (tmp_path / "good.npy").read_bytes()[:128]
        archive.writestr("x.npy", header)
    with pytest.raises(DataError, match=r"lying.npz.*holds 0 bytes, not 1440"):
        open_data(tmp_path / "lying.npz", IMAGE)


def test_sources_that_are_none_are_refused(tmp_path: Path):
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "stranger.npz", "w") as archive:
        archive.writestr("a.txt", "a")
    for source, message in (
        (tmp_path / "x.csv", "of no known kind"),
        (tmp_path / "none.npz", "there is no data file or folder"),
        (tmp_path / "empty", "holds no data"),
        (tmp_path / "stranger.npz", "not an .npz file of arrays"),
        (5, "int is not a kind of data"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(source, IMAGE)
    with pytest.raises(ModelError, match="no inputs"):
        open_data(pictures(), ())
    for options in ({"limit": 0}, {"batch_size": 0}):
        with pytest.raises(RecipeError):
            open_data(pictures(), IMAGE, **options)


def test_random_data_only_by_name():
    specs = (*IMAGE, InputSpec("ids", I8, ("b", "seq")))
    data = open_data("random", specs, seed=3)
    assert data.samples == 16
    assert "random" in data.warnings[0]
    assert "'ids' [1, 32]" in data.warnings[1]
    feeds = list(data)
    assert {name: (array.shape, str(array.dtype)) for name, array in feeds[0].items()} == {
        "x": ((1, 3, 4, 5), "float32"),
        "ids": ((1, 32), "int64"),
    }
    values = joined(data)
    assert abs(values.mean()) < 0.15
    assert abs(values.std() - 1) < 0.15
    assert set(np.unique(joined(data, "ids"))) == {0, 1}
    np.testing.assert_array_equal(values, joined(open_data("random", specs, seed=3)))
    assert not np.array_equal(values, joined(open_data("random", specs, seed=4)))
    assert open_data("random", specs, limit=5).samples == 5
