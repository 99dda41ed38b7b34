"""One sample as a batch of many: as the model wants it, and nothing else changed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.data import InputSpec, batched, input_specs
from lowbit.exceptions import DataError
from lowbit.graph import load_model
from lowbit.runtime.session import open_session


def spec(name: str, *shape: int | str | None, dtype: str = "float32") -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def sample(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("size", [2, 7])
def test_an_open_batch_is_filled_with_copies(size: int) -> None:
    array = sample(1, 3, 4)
    found = batched({"x": array}, [spec("x", "N", 3, 4)], size)
    assert found["x"].shape == (size, 3, 4)
    assert all(np.array_equal(found["x"][index], array[0]) for index in range(size))


def test_one_sample_stays_the_sample() -> None:
    feed = {"x": sample(1, 3)}
    found = batched(feed, [spec("x", 4, 3)], 1)
    assert found is not feed
    assert found["x"] is feed["x"]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float16", "bool"])
def test_the_element_type_is_kept_and_the_sample_unchanged(dtype: str) -> None:
    array = sample(1, 5, dtype=dtype)
    before = array.copy()
    found = batched({"ids": array}, [spec("ids", "N", 5, dtype=dtype)], 3)["ids"]
    assert found.dtype == array.dtype
    found[:] = 0
    assert np.array_equal(array, before)


def test_only_inputs_with_a_batch_grow_and_each_along_its_own_axis() -> None:
    specs = [spec("x", "N", 8), spec("state", 2, "N", 16), spec("scale"), spec("table", 10, 4)]
    feed = {"x": sample(1, 8), "state": sample(2, 1, 16), "scale": sample(), "table": sample(10, 4)}
    found = batched(feed, specs, 3)
    assert {name: array.shape for name, array in found.items()} == {
        "x": (3, 8),
        "state": (2, 3, 16),
        "scale": (),
        "table": (10, 4),
    }
    assert all(np.array_equal(found["state"][:, index], feed["state"][:, 0]) for index in range(3))
    assert found["table"] is feed["table"]


def test_of_a_feed_of_several_samples_the_first_is_repeated() -> None:
    array = sample(2, 3)
    assert np.array_equal(batched({"x": array}, [spec("x", "N", 3)], 4)["x"], np.stack([array[0]] * 4))


def test_a_batch_that_the_model_fixes_is_the_only_one() -> None:
    specs = [spec("x", 4, 3)]
    assert batched({"x": sample(4, 3)}, specs, 4)["x"].shape == (4, 3)
    for size in (2, 8):
        with pytest.raises(DataError, match=rf"the batch is {size}.*takes 4 at once.*open batch axis"):
            batched({"x": sample(4, 3)}, specs, size)
    with pytest.raises(DataError, match="takes 1 at once"):
        batched({"x": sample(1, 3)}, [spec("x", 1, 3)], 2)


def test_without_a_batch_axis_there_is_no_batch() -> None:
    with pytest.raises(DataError, match=r"the batch is 2.*no batch axis"):
        batched({"x": sample()}, [spec("x")], 2)


def test_the_engine_computes_every_copy_as_it_computes_the_sample() -> None:
    text = "g (float[N,6] x, float[2,N,3] h) => (float[N,5] y, float[2,N,3] z) { y = MatMul(x, w)\n z = Tanh(h) }"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    weight = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    specs = input_specs(load_model(proto))
    session = open_session(proto.SerializeToString(), threads=1)
    feed = {"x": sample(1, 6), "h": sample(2, 1, 3) / 10}
    one, many = session.run(feed), session.run(batched(feed, specs, 3))
    for index in range(3):
        np.testing.assert_allclose(many[0][index], one[0][0], rtol=1e-6)
        np.testing.assert_allclose(many[1][:, index], one[1][:, 0], rtol=1e-6)
