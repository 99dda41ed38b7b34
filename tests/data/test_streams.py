"""Python iterables: spooled once, replayed for ever."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit.data
from lowbit.data import InputSpec, open_data, split_calibration
from lowbit.exceptions import DataError, RecipeError

SPEC = (InputSpec("x", np.dtype("float32"), ("b", 2)),)
PAIR = (InputSpec("a", np.dtype("float32"), ("b", 2)), InputSpec("m", np.dtype("int64"), ("b",)))


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def rows(dataset) -> list[float]:
    return [float(value) for feed in dataset for value in feed["x"][:, 0]]


def stream(count: int, pulled: list[int] | None = None):
    for i in range(count):
        if pulled is not None:
            pulled.append(i)
        yield np.full((1, 2), i, "float32")


def test_a_generator_is_pulled_once_and_as_far_as_needed(tmp_path: Path):
    pulled: list[int] = []
    data = open_data(stream(6, pulled), SPEC)
    assert data.samples is None
    assert pulled == []
    first = iter(data)
    assert next(first)["x"][0, 0] == 0
    assert pulled == [0]
    second = iter(data)  # passes may overlap
    assert [float(next(second)["x"][0, 0]) for _ in range(3)] == [0, 1, 2]
    assert [float(feed["x"][0, 0]) for feed in first] == [1, 2, 3, 4, 5]
    assert rows(data) == [0, 1, 2, 3, 4, 5]
    assert pulled == list(range(6))
    assert data.count() == 6
    assert len(list(tmp_path.glob("lowbit-data-*/*.npy"))) == 6
    data.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="were closed"):
        list(data)


def test_the_spool_is_deleted_with_the_data(tmp_path: Path):
    with open_data(stream(3), SPEC) as data:
        assert len(rows(data)) == 3
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    data = open_data(stream(3), SPEC)
    list(data)
    del data
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_the_spool_is_deleted_at_exit(tmp_path: Path):
    code = (
        "import numpy as np, tempfile, os\n"
        "from lowbit.data import InputSpec, open_data\n"
        "data = open_data(iter([np.zeros((1, 2))]), (InputSpec('x', np.dtype('float32'), ('b', 2)),))\n"
        "list(data)\n"
        "assert len(os.listdir(tempfile.gettempdir())) == 1\n"
    )
    package = str(Path(lowbit.data.__file__).parents[2])
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": package}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_raised_never_ends_early():
    def broken():
        yield np.zeros((1, 2))
        raise OSError("disk")

    data = open_data(broken(), SPEC)
    with pytest.raises(OSError, match="disk"):
        list(data)
    with pytest.raises(DataError, match="broke off on an earlier pass"):
        list(data)


def test_an_endless_stream_ends_at_the_limit():
    def endless():
        i = 0
        while True:
            yield np.full((3, 2), i), np.full(3, i)
            i += 1

    for source in (endless(), endless):
        data = open_data(source, SPEC, limit=5)
        assert rows(data) == [0, 0, 0, 1, 1]
        assert rows(data) == [0, 0, 0, 1, 1]
        np.testing.assert_array_equal(data.labels, [0, 0, 0, 1, 1])
        assert data.count() == 5


def test_a_function_is_called_for_every_pass(tmp_path: Path):
    calls: list[int] = []

    def make():
        calls.append(1)
        return stream(4)

    data = open_data(make, SPEC)
    assert rows(data) == rows(data) == [0, 1, 2, 3]
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["values", "fewer", "more"])
def test_a_function_that_changes_its_data_is_refused(change):
    calls: list[int] = []

    def make():
        calls.append(1)
        if change == "values":
            return iter([np.full((1, 2), len(calls))])
        return stream(3 + (len(calls) if change == "more" else -len(calls)))

    data = open_data(make, SPEC)
    list(data)
    with pytest.raises(DataError, match="other data than on an earlier pass"):
        list(data)


def test_empty_streams_are_refused():
    exhausted = stream(1)
    list(exhausted)
    for source in (exhausted, list):
        with pytest.raises(DataError, match="holds no samples"):
            list(open_data(source, SPEC))


def test_errors_name_the_element():
    with pytest.raises(DataError, match=r"element 1 of the data has the array 'x' \[1, 3\]"):
        list(open_data(iter([np.zeros((1, 2)), np.zeros((1, 3))]), SPEC))
    with pytest.raises(DataError, match=r"sample 0 of element 1 of the data \(number 1 of all\) holds NaN"):
        list(open_data(iter([np.zeros((1, 2)), np.full((1, 2), np.nan)]), SPEC))


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.ones((3, 2)), "m": np.arange(3)},
        (np.ones((3, 2)), np.arange(3)),
        [np.ones((3, 2)), np.arange(3)],
        ([[1, 1], [1, 1], [1, 1]], [0, 1, 2]),
    ],
    ids=["dict", "tuple", "list", "nested lists"],
)
def test_two_inputs(value):
    for source in ([value], iter([value])):
        feeds = list(open_data(source, PAIR))
        assert [int(feed["m"][0]) for feed in feeds] == [0, 1, 2]
        assert all((feed["a"] == 1).all() for feed in feeds)


@pytest.mark.parametrize(
    "value",
    [
        (np.ones((3, 2)), np.arange(3), np.array([7, 8, 9])),
        ({"a": np.ones((3, 2)), "m": np.arange(3)}, np.array([7, 8, 9])),
        ((np.ones((3, 2)), np.arange(3)), np.array([7, 8, 9])),
        {"a": np.ones((3, 2)), "m": np.arange(3), "labels": np.array([7, 8, 9])},
    ],
    ids=["flat", "dict and labels", "tuple and labels", "labels in the dict"],
)
def test_two_inputs_and_labels(value):
    np.testing.assert_array_equal(open_data(iter([value]), PAIR).labels, [7, 8, 9])


def test_a_wrong_number_of_arrays_is_refused():
    with pytest.raises(DataError, match="a sequence of 4 arrays, but the model has the 2 inputs"):
        list(open_data([(np.ones((3, 2)),) * 4], PAIR))


def test_single_samples_with_integer_labels():
    data = open_data([(np.ones(2), 5), (np.zeros(2), 6)], SPEC)
    assert rows(data) == [1, 0]
    np.testing.assert_array_equal(data.labels, [5, 6])
    assert rows(open_data([[1.0, 2.0], [3.0, 4.0]], SPEC)) == [1, 3]


def test_labels_that_are_no_arrays_are_left_out_with_a_note():
    data = open_data([(np.ones(2), {"boxes": [1]})], SPEC)
    assert data.labels is None
    assert "labels that are not arrays are not used" in data.warnings[0]


def test_torch_tensors_loaders_and_data_sets():
    torch = pytest.importorskip("torch")
    x = torch.arange(20, dtype=torch.float32).reshape(10, 2).requires_grad_()
    y = torch.arange(10)
    tensors = torch.utils.data.TensorDataset(x.detach(), y)
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(tensors, batch_size=4, shuffle=True)
    for source in (tensors, loader, [(x, y)]):
        data = open_data(source, SPEC, batch_size=3)
        first, again = rows(data), rows(data)
        assert first == again  # although the loader shuffles anew on every pass
        assert sorted(first) == [2.0 * i for i in range(10)]
        np.testing.assert_array_equal(data.labels, np.array(first) / 2)
    assert rows(open_data(x, SPEC)) == [2.0 * i for i in range(10)]
    assert rows(open_data([x.to(torch.bfloat16)], SPEC))[:3] == [0, 2, 4]


def test_the_room_imports_no_torch_and_no_engine():
    code = "import sys, lowbit.data; print([m for m in ('torch', 'onnxruntime', 'PIL', 'yaml') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(lowbit.data.__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, timeout=60, capture_output=True, text=True
    )
    assert result.stdout.strip() == "[]"


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    batch=st.integers(1, 7),
    kind=st.sampled_from(["list", "generator", "function", "array"]),
    data=st.data(),
)
def test_laws(sizes, batch, kind, data):
    """Two passes are equal; neither the batches that come in nor the batch size change the samples."""
    total = sum(sizes)
    x = np.arange(2 * total, dtype="float32").reshape(total, 2)
    ends = np.cumsum(sizes)
    parts = [(x[end - size : end], np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    sources = {
        "list": parts,
        "generator": (part for part in parts),
        "function": lambda: iter(parts),
        "array": {"x": x, "y": np.arange(total)},
    }
    with open_data(sources[kind], SPEC, batch_size=batch) as dataset:
        for _ in range(2):
            feeds = [feed["x"] for feed in dataset]
            np.testing.assert_array_equal(np.concatenate(feeds), x)
            assert [len(feed) for feed in feeds[:-1]] == [batch] * (len(feeds) - 1)
        np.testing.assert_array_equal(dataset.labels, np.arange(total))
        assert dataset.count() == total
        start = data.draw(st.integers(0, total - 1))
        stop = data.draw(st.integers(start + 1, total))
        part = dataset.subset(start, stop)
        np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in part]), x[start:stop])
        np.testing.assert_array_equal(part.labels, np.arange(start, stop))
        if total > 1:
            one, two = split_calibration(dataset, calibration=data.draw(st.sampled_from([1, 3, 0.3, 0.9])), seed=1)
            assert not set(rows(one)) & set(rows(two))
            assert sorted(rows(one) + rows(two)) == x[:, 0].tolist()
            np.testing.assert_array_equal(np.array(rows(one)) / 2, one.labels)


def test_splits_are_deterministic_and_say_what_they_lack():
    data = open_data(np.arange(40.0).reshape(20, 2), SPEC)
    one, two = split_calibration(data, calibration=5, seed=2)
    assert (one.samples, two.samples) == (5, 15)
    assert rows(one) == rows(split_calibration(data, calibration=5, seed=2)[0])
    assert rows(one) != rows(split_calibration(data, calibration=5, seed=3)[0])
    assert [part.samples for part in split_calibration(data, calibration=0.25)] == [5, 15]
    most, rest = split_calibration(data, calibration=128)
    assert (most.samples, rest.samples) == (10, 10)
    assert "10 of 20 samples calibrate, not 128" in most.warnings[0]
    single = data.subset(3, 4)
    assert all("one batch of data" in part.warnings[0] for part in split_calibration(single))
    with pytest.raises(DataError, match="cannot be split"):
        single.split(0.5)
    for fraction in (0, 1, -1, 2):
        with pytest.raises(RecipeError):
            data.split(fraction)
    for calibration in (0, -1, 1.5):
        with pytest.raises(RecipeError):
            split_calibration(data, calibration=calibration)
    for positions in ([], [20], [-1]):
        with pytest.raises(DataError, match="asked for"):
            data.select(positions)


def test_limit_takes_a_seeded_random_part_of_known_data():
    data = np.arange(200.0).reshape(100, 2)
    some = rows(open_data(data, SPEC, limit=10))
    assert len(some) == 10
    assert some == sorted(some)
    assert some == rows(open_data(data, SPEC, limit=10))
    assert some != rows(open_data(data, SPEC, limit=10, seed=1))
    assert some != data[:10, 0].tolist()
    assert len(rows(open_data(data, SPEC, limit=1000))) == 100


def test_samples_of_different_shapes_need_batch_size_1():
    spec = (InputSpec("x", np.dtype("float32"), ("b", "t")),)
    values = [np.zeros((1, 3)), np.zeros((1, 4))]
    assert [feed["x"].shape for feed in open_data(values, spec)] == [(1, 3), (1, 4)]
    with pytest.raises(DataError, match=r"different shapes.*batch size 1"):
        list(open_data(values, spec, batch_size=2))
