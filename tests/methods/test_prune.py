"""`lowbit.prune` on real graphs, judged in the engine."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

import lowbit
from lowbit.exceptions import DataError, LowbitError, ModelError, RecipeError


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory):
    """A small convolutional network, its file and inputs that are correlated as pictures are."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return onnx.numpy_helper.from_array((scale * generator.normal(size=shape)).astype(np.float32), name)

    nodes = [
        onnx.helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], name="conv1"),
        onnx.helper.make_node("Relu", ["c1"], ["r1"]),
        onnx.helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=4, name="conv2"),
        onnx.helper.make_node("Relu", ["c2"], ["r2"]),
        onnx.helper.make_node("AveragePool", ["r2"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1, name="gemm"),
    ]
    initializers = [
        weight("w1", 16, 3, 3, 3),
        weight("b1", 16),
        weight("w2", 16, 4, 3, 3),
        weight("b2", 16),
        weight("w3", 12, 64),
        weight("b3", 12),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 16, 16])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 12])],
        initializers,
    )
    path = tmp_path_factory.mktemp("prune") / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    coarse = generator.normal(size=(96, 3, 4, 4))
    return path, np.repeat(np.repeat(coarse, 4, axis=2), 4, axis=3).astype(np.float32)


def outputs(model: str, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def loss(result: lowbit.Pruning, network, tmp_path) -> float:
    path, x = network
    result.save(tmp_path / "pruned.onnx")
    wanted = outputs(path, x[64:])
    return float(np.mean((outputs(tmp_path / "pruned.onnx", x[64:]) - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_more_knowledge_of_the_inputs_costs_less(network, tmp_path, scope: str) -> None:
    path, x = network
    data = [{"x": sample[None]} for sample in x[:64]]
    losses = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        result = lowbit.prune(path, 0.5, data, criterion=criterion, scope=scope)
        assert result.sparsity == pytest.approx(0.5, abs=0.02)
        losses[criterion] = loss(result, network, tmp_path)
    assert losses["sparsegpt"] < 0.8 * losses["magnitude"]
    assert losses["sparsegpt"] < losses["wanda"]


def test_the_table_tells_what_reconstruction_gained(network) -> None:
    path, x = network
    result = lowbit.prune(path, 0.5, [{"x": sample[None]} for sample in x[:64]], scope="layer")
    assert [layer.weights for layer in result.layers] == [432, 576, 768]
    for layer in result.layers:
        assert layer.error is not None
        assert layer.error_before is not None
        assert layer.error <= layer.error_before
    assert sum(layer.error < 0.9 * layer.error_before for layer in result.layers) >= 2
    assert "50." in str(result)


def test_two_of_four_holds_in_the_file(network, tmp_path) -> None:
    path, x = network
    result = lowbit.prune(path, data=[{"x": sample[None]} for sample in x[:64]], pattern="2:4")
    result.save(tmp_path / "pruned.onnx")
    weights = {
        array.name: onnx.numpy_helper.to_array(array) for array in onnx.load(tmp_path / "pruned.onnx").graph.initializer
    }
    linear = next(array for array in weights.values() if array.shape == (12, 64))
    assert set((linear.reshape(12, 16, 4) != 0).sum(axis=2).ravel().tolist()) == {2}
    left = {layer.weights: layer.reason for layer in result.layers}
    assert "cannot be cut into 2:4" in left[432]  # 27 inputs
    assert left[768] == ""


def test_without_data_the_smallest_go_and_the_rest_is_untouched(network, tmp_path) -> None:
    path, _ = network
    result = lowbit.prune(path, 0.7, scope="layer", exclude=("op:Gemm", "op:MatMul"))
    result.save(tmp_path / "pruned.onnx")
    before, after = (
        {array.name: onnx.numpy_helper.to_array(array) for array in onnx.load(one).graph.initializer}
        for one in (path, tmp_path / "pruned.onnx")
    )
    for name, array in after.items():
        if array.ndim == 4:
            assert (array == 0).mean() == pytest.approx(0.7, abs=0.01)
            assert np.array_equal(array[array != 0], before[name][array != 0])
            assert np.abs(before[name][array == 0]).max() <= np.abs(array[array != 0]).min()
    assert [layer.reason for layer in result.layers] == ["", "", "excluded"]


def test_the_same_seed_gives_the_same_bytes(network, tmp_path) -> None:
    path, x = network
    for name in ("a", "b"):
        lowbit.prune(path, 0.5, [{"x": sample[None]} for sample in x[:64]], seed=3).save(tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amount": 1.0}, RecipeError, "a layer without weights computes nothing"),
        ({"amount": -0.5}, RecipeError, "from 0 to below 1"),
        ({"criterion": "taste"}, RecipeError, "use one of magnitude, wanda, sparsegpt"),
        ({"criterion": "wanda"}, DataError, "needs data"),
        ({"scope": "world"}, RecipeError, "use one of layer, global"),
        ({"pattern": "4:2"}, RecipeError, "use any"),
        ({"data": "random"}, DataError, "random numbers do not say"),
        ({"exclude": ("*",)}, ModelError, "nothing to prune"),
    ],
)
def test_what_is_impossible_is_one_clear_error(network, options, error: type[LowbitError], message: str) -> None:
    with pytest.raises(error, match=message):
        lowbit.prune(network[0], **options)
