"""Weight sharing: few values, zeros that stay, values that learn together, and codes for integer kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.graph import serialize
from lowbit.runtime.session import open_session
from lowbit.training.clusters import Clusters

if TYPE_CHECKING:
    from pathlib import Path

QUICK: dict[str, Any] = {"batch": 16, "lr": 2e-2, "ema": 0.9, "measure_seconds": 0, "progress": False}


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def pruned(net: onnx.ModelProto) -> onnx.ModelProto:
    for tensor in net.graph.initializer:
        if tensor.name == "w4":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[np.abs(array) < np.median(np.abs(array))] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w4"))
    return net


@pytest.mark.parametrize("start", ["linear", "density", "k-means++", "exact", "best"])
def test_few_values_and_zeros(net: onnx.ModelProto, start: Any) -> None:
    before = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in pruned(net).graph.initializer}
    shared = lowbit.share(net, 8, start=start)
    after = weights(shared.model)
    for name in ("w1", "w2", "w3", "w4", "w5"):
        assert len(np.unique(after[name])) <= 8
    assert ((after["w4"] == 0) == (before["w4"] == 0)).all()
    assert (after["b1"] == before["b1"]).all()
    assert all(0 < row.error < 0.1 for row in shared.weights)
    fewer = lowbit.share(net, 4, start=start)
    assert all(one.error < other.error for one, other in zip(shared.weights, fewer.weights, strict=True))


def test_groups_and_the_int8_grid(net: onnx.ModelProto) -> None:
    by_tensor, by_channel, by_two = (lowbit.share(net, 4, granularity=each) for each in ("tensor", "channel", 2))
    for one, two, three in zip(by_tensor.weights, by_channel.weights, by_two.weights, strict=True):
        assert two.error <= three.error <= one.error
    assert max(len(np.unique(row)) for row in weights(by_channel.model)["w4"]) <= 4
    array = weights(lowbit.share(net, 16, grid="int8").model)["w4"]
    codes = array / (np.abs(array).max() / 127)
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)


def test_importance_moves_errors_to_where_they_matter_less(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    x = data["x"].copy()
    x[:, 0] *= 10.0
    plain, weighed = lowbit.share(net, 4), lowbit.share(net, 4, data={"x": x})
    exact = onnx.numpy_helper.to_array(net.graph.initializer[0])
    assert net.graph.initializer[0].name == "w1"
    errors = [np.square(weights(each.model)["w1"] - exact).sum(axis=(0, 2, 3)) for each in (plain, weighed)]
    assert errors[1][0] < errors[0][0]
    assert errors[1][1:].sum() > errors[0][1:].sum()


def test_prune_share_quantize(net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path) -> None:
    """Zeros stay zeros and what shares a value goes on sharing it, through training and into int8 codes."""
    shared = lowbit.share(pruned(net), 16, grid="int8")
    shared.save(tmp_path / "shared.onnx")
    before = weights(shared.model)
    options = {"keep_zeros": True, "keep_clusters": True, "edges": False}
    trained = lowbit.qat(tmp_path / "shared.onnx", data, epochs=4, weights="int8:per-tensor", **options, **QUICK)
    assert trained.history[-1].loss < trained.history[0].loss
    assert trained.result.verification.integer_kernels >= 5
    for name in ("w1", "w2", "w3", "w4", "w5"):
        codes = next(
            array
            for key, array in weights(trained.result.model).items()
            if key in {f"{name}_codes", f"{name}_padded_codes"}
        ).astype(np.int8)
        codes = codes[:, : before[name].shape[1]] if codes.ndim == 4 else codes
        assert len(np.unique(codes)) <= 16
        assert (codes[before[name] == 0] == 0).all()
        for value in np.unique(before[name]):
            assert len(np.unique(codes[before[name] == value])) == 1


def test_a_codebook_is_stored_and_learns(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    few = {"weights": "codebook16:per-tensor", "method": "weight-only", "optimize": "size"}
    for soft in (0.0, 1e-3):
        module = lowbit.trainable(net, data={"x": data["x"]}, soft=soft, **few)
        start = {name: one.detach().clone() for name, one in module.named_parameters()}
        trained = lowbit.qat(module, data, epochs=6, **QUICK)
        assert trained.history[-1].loss < trained.history[0].loss
        moved = [name for name, one in trained.module.named_parameters() if not torch.equal(one, start[name])]
        assert any(name.endswith("clusters.entries") for name in moved)
        trained.module.eval()
        with torch.no_grad():
            mine = trained.module(torch.from_numpy(data["x"])).numpy()
        theirs = open_session(serialize(trained.result.model), threads=1).run({"x": data["x"]})[0]
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_the_gradient_of_an_entry_is_the_sum_of_its_weights() -> None:
    weight = torch.tensor([[0.9, -1.1, 0.0], [1.1, 0.1, -0.9]])
    clusters = Clusters(weight, torch.tensor([[-1.0, 0.0, 1.0]]), torch.zeros(1, 1, dtype=torch.int64))
    gradient = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    (clusters() * gradient).sum().backward()
    assert clusters.entries.grad.tolist() == [[34.0, 0.0, 9.0]]  # the entry at 0 stays


def test_soft_assignments_end_at_the_nearest_entry() -> None:
    weight = torch.linspace(-1, 1, 41)[None]
    clusters = Clusters(
        weight, torch.tensor([[-1.0, 0.0, 1.0]]), torch.zeros(1, 1, dtype=torch.int64), soft=1e-4, zero=False
    )
    hard = clusters.eval()()
    away = (weight.abs() - 0.5).abs() > 0.06
    torch.testing.assert_close(clusters.train()()[away], hard[away], rtol=0, atol=1e-3)


def test_errors(net: onnx.ModelProto) -> None:
    for arguments, words in (
        ({"entries": 300}, "entries is 300"),
        ({"granularity": "row"}, "granularity is 'row'"),
        ({"start": "guess"}, "start is 'guess'"),
        ({"grid": "int4"}, "grid is 'int4'"),
        ({"exclude": ["nothing*"]}, "matches no operator"),
    ):
        with pytest.raises(RecipeError, match=words):
            lowbit.share(net, **arguments)
