"""The loop: it learns, with labels or a teacher; continues to the same bits; and says what stops it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

import lowbit
from lowbit.exceptions import DataError, ModelError, RecipeError, TrainingError
from lowbit.graph import serialize
from lowbit.training.batches import Batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FEW = {"weights": "int4", "activations": "uint4"}
QUICK: dict[str, Any] = {"batch": 16, "lr": 5e-2, "ema": 0.9, "measure_seconds": 0, "progress": False}


@pytest.fixture
def learned(net: onnx.ModelProto, data: dict[str, Any]) -> onnx.ModelProto:
    """Return the network after it was trained in float."""
    trained = lowbit.qat(net, data, quantized=False, epochs=15, **QUICK, validation=data)
    assert trained.history[-1].metric > 0.95
    return onnx.load_model_from_string(serialize(trained.result.model))


def accuracy(module: torch.nn.Module, data: dict[str, Any]) -> float:
    module.eval()
    with torch.no_grad():
        return float((module(torch.from_numpy(data["x"])).argmax(1).numpy() == data["y"]).mean())


def state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: one.detach().numpy().copy() for name, one in module.state_dict().items()}


def test_labels_and_validation(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    trained = lowbit.qat(net, data, epochs=20, validation=data, **FEW, **QUICK)
    assert len(trained.history) == 20
    assert trained.history[-1].loss < trained.history[0].loss - 0.3
    assert trained.result.verification.metric.artifact_value > 0.9
    assert trained.result.verification.metric.artifact_value == pytest.approx(accuracy(trained.module, data), abs=0.03)


def test_a_teacher_needs_no_labels(learned: onnx.ModelProto, data: dict[str, Any]) -> None:
    few = {"weights": "int2", "activations": "uint2", "edges": False}
    start = lowbit.trainable(learned, data={"x": data["x"]}, **few)
    before = accuracy(start, data)
    trained = lowbit.distill(learned, {"x": data["x"]}, epochs=15, **few, **QUICK)
    assert before < 0.9
    assert accuracy(trained.module, data) > before + 0.05
    again = lowbit.qat(learned, {"x": data["x"]}, epochs=15, **few, **QUICK)
    assert trained.history[-1].loss == pytest.approx(again.history[-1].loss)


@pytest.mark.parametrize("extra", [{"features": "blocks"}, {"attention": True}, {"features": ("r", "t")}])
def test_inner_tensors_of_the_teacher(learned: onnx.ModelProto, data: dict[str, Any], extra: dict[str, Any]) -> None:
    plain = lowbit.distill(learned, {"x": data["x"]}, epochs=1, finalized=False, **FEW, **QUICK)
    inner = lowbit.distill(learned, {"x": data["x"]}, epochs=3, finalized=False, **extra, **FEW, **QUICK)
    assert inner.history[0].loss > plain.history[0].loss
    assert inner.history[-1].loss < inner.history[0].loss


def test_other_teachers(learned: onnx.ModelProto, data: dict[str, Any], tmp_path: Path) -> None:
    onnx.save(learned, tmp_path / "teacher.onnx")
    few = {"weights": "int2", "activations": "uint2", "edges": False}
    before = accuracy(lowbit.trainable(learned, data={"x": data["x"]}, **few), data)

    class Teacher(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            corners = [x[:, k % 3, 6 * (k // 2) :, 6 * (k % 2) :][:, :6, :6].mean((1, 2)) for k in range(4)]
            return 8.0 * torch.stack(corners, dim=1)

    for teacher in (tmp_path / "teacher.onnx", Teacher()):
        trained = lowbit.distill(learned, {"x": data["x"]}, teacher=teacher, epochs=15, finalized=False, **few, **QUICK)
        assert accuracy(trained.module, data) > before + 0.05
    with pytest.raises(ModelError, match="the teacher's output is"):
        lowbit.distill(learned, {"x": data["x"]}, teacher=torch.nn.Flatten(), epochs=1, **few, **QUICK)
    with pytest.raises(ModelError, match="is no teacher"):
        lowbit.distill(learned, {"x": data["x"]}, teacher=3, epochs=1, **few, **QUICK)


@pytest.mark.parametrize("every", [0, 4])
def test_a_training_continues_to_the_same_bits(
    net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path, every: int
) -> None:
    options = {**FEW, **QUICK, "epochs": 3, "finalized": False, "checkpoint_every": every}
    whole = lowbit.qat(net, data, **options)
    path = tmp_path / "training.pt"

    calls = 0

    def interrupted(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return torch.nn.functional.nll_loss(torch.log(output + 1e-3), target)

    stop = -1
    whole = lowbit.qat(net, data, loss=interrupted, **options)
    calls, stop = 0, 11  # in the second of three epochs of six steps
    with pytest.raises(KeyboardInterrupt):
        lowbit.qat(net, data, loss=interrupted, checkpoint=path, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["training.pt"]
    stop = -1
    second = lowbit.qat(net, data, loss=interrupted, checkpoint=path, **options)
    assert calls < 11 + 18
    assert not path.exists()
    for name, one in state(whole.module).items():
        np.testing.assert_array_equal(one, state(second.module)[name], err_msg=name)
    assert whole.history == second.history


def test_a_checkpoint_of_another_training_is_refused(
    net: onnx.ModelProto, data: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"

    def stopping(_output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    options = {**QUICK, "finalized": False, "checkpoint": path, "epochs": 2}
    seen = []

    def once(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(1)
        if len(seen) > 6:
            raise KeyboardInterrupt
        return torch.nn.functional.nll_loss(torch.log(output + 1e-3), target)

    with pytest.raises(KeyboardInterrupt):
        lowbit.qat(net, data, loss=once, **options)
    with pytest.raises(RecipeError, match="belongs to another training"):
        lowbit.qat(net, data, loss=stopping, **options)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RecipeError, match="cannot be read"):
        lowbit.qat(net, data, loss=stopping, **options)


def test_the_same_seed_gives_the_same_bytes(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = [lowbit.qat(net, data, epochs=2, seed=seed, **FEW, **QUICK) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    files = [serialize(run.result.model) for run in runs]
    assert files[0] == files[1] != files[2]


def test_a_loss_that_is_no_number(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    options = {**QUICK, "epochs": 3, "finalized": False}
    calls = 0

    def failing(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = torch.nn.functional.nll_loss(torch.log(output + 1e-3), target)
        return loss * float("nan") if calls == bad else loss

    bad = 9
    trained = lowbit.qat(net, data, loss=failing, **options)
    assert "NaN in step 9 (epoch 2)" in trained.stopped
    assert "that of step 6" in trained.stopped
    assert all(np.isfinite(one).all() for one in state(trained.module).values())
    calls, bad = 0, 2
    with pytest.raises(TrainingError, match="NaN in step 2"):
        lowbit.qat(net, data, loss=failing, **options)


def test_data_that_do_not_fit(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    turned = [(np.transpose(data["x"][:8], (0, 2, 3, 1)), data["y"][:8])]
    with pytest.raises(DataError, match=r"shape \[8, 12, 12, 3\].*channels last"):
        lowbit.qat(net, turned, **QUICK)
    with pytest.raises(DataError, match="only once"):
        lowbit.qat(net, ((data["x"][:8], data["y"][:8]) for _ in range(2)), **QUICK)
    with pytest.raises(DataError, match="int64"):
        lowbit.qat(net, [(data["x"][:8].astype(np.int64), data["y"][:8])], **QUICK)
    with pytest.raises(DataError, match="have no targets"):
        lowbit.qat(net, [data["x"][:8]], distillation=False, **QUICK)
    with pytest.raises(DataError, match="targets are float32"):
        lowbit.qat(net, [(data["x"][:8], data["y"][:8].astype(np.float32))], distillation=False, **QUICK)
    with pytest.raises(DataError, match="is empty"):
        lowbit.qat(net, [], **QUICK)


def test_the_operator_that_cuts_the_gradient(parse: Callable, data: dict[str, Any]) -> None:
    proto = parse(
        "g (float[n,3,12,12] x, float[4,3,3,3] w1, float[4] b1) => (float[n,4,1,1] y) "
        "{ c = Conv(x, w1, b1)  p = GlobalAveragePool(c)  s = Sign(p)  y = Neg(s) }"
    )
    proto.graph.node[2].name = "the_sign"

    def loss(output: torch.Tensor, _target: torch.Tensor) -> torch.Tensor:
        return output.square().mean()

    with pytest.raises(TrainingError, match=r"'the_sign' \(Sign\) cuts"):
        lowbit.qat(proto, data, loss=loss, quantized=False, **QUICK)


def test_bfloat16_is_for_what_is_not_rounded(learned: onnx.ModelProto, data: dict[str, Any]) -> None:
    kinds: set[torch.dtype] = set()

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = lowbit.interpreter.to_torch(learned)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (found,) = self.graph(x)
            kinds.add(found.dtype)
            return found

    def trained(*, bfloat16: bool, **options: Any) -> dict[str, np.ndarray]:
        return state(lowbit.qat(learned, data, epochs=1, finalized=False, bfloat16=bfloat16, **options, **QUICK).module)

    def differences(**options: Any) -> list[float]:
        one, other = (trained(bfloat16=given, **options) for given in (False, True))
        assert all(value.dtype == other[name].dtype for name, value in one.items())
        return [float(np.abs(value.astype(float) - other[name]).max()) for name, value in one.items()]

    assert 0 < max(differences(quantized=False)) < 0.1
    assert max(differences(**FEW)) == 0
    assert max(differences(**FEW, distillation=lowbit.Distillation(teacher=Teacher()))) > 0
    assert kinds == {torch.float32, torch.bfloat16}


def test_patience_ends_a_training(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    trained = lowbit.qat(
        net, data, epochs=20, patience=2, validation=data, metric=lambda *_: 0.5, finalized=False, **QUICK
    )
    assert len(trained.history) == 3
    assert "not risen" in trained.stopped


def test_only_hurt_layers_learn(learned: onnx.ModelProto, data: dict[str, Any]) -> None:
    rules = [{"pattern": "w4", "weights": "int2"}]
    trained = lowbit.qat(learned, data, layers="hurt", epochs=3, rules=rules, edges=False, **QUICK)
    assert trained.layers
    hurt = trained.layers[0]
    fresh = lowbit.trainable(learned, data=[{"x": data["x"][:16]}], rules=rules, edges=False)
    assert hurt == next(path for path in fresh.layers() if fresh.weight_of(path).shape == (8, 8, 3, 3))
    moved = {
        path: not torch.equal(trained.module.weight_of(path).weight.detach(), fresh.weight_of(path).weight.detach())
        for path in fresh.layers()
    }
    assert {path for path, one in moved.items() if one} == set(trained.layers) != set(moved)


def test_masks_grow_on_the_way(learned: onnx.ModelProto, data: dict[str, Any]) -> None:
    pruned = lowbit.GradualPruning(amount=0.5, end=0.6, every=3)
    trained = lowbit.qat(learned, data, epochs=20, masks=pruned, validation=data, **QUICK)
    assert trained.module.sparsity() == pytest.approx(0.5, abs=0.02)
    for weight in trained.module.weights.values():
        assert (weight.decoded()[weight.mask == 0] == 0).all()
    assert accuracy(trained.module, data) > 0.8


def test_progress_and_tensorboard(net: onnx.ModelProto, data: dict[str, Any], capsys: Any, tmp_path: Path) -> None:
    lowbit.qat(net, data, epochs=2, validation=data, finalized=False, **{**QUICK, "progress": True})
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown
    assert "metric" in shown
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(RecipeError, match=r"pip install lowbit\[tensorboard\]"):
            lowbit.qat(net, data, epochs=1, finalized=False, log_dir=tmp_path, **QUICK)
    else:
        lowbit.qat(net, data, epochs=1, finalized=False, log_dir=tmp_path, **QUICK)
        assert list(tmp_path.iterdir())


def test_batches_take_what_loaders_give(net: onnx.ModelProto, data: dict[str, Any]) -> None:
    from lowbit.data import input_specs
    from lowbit.graph import load_model

    specs = input_specs(load_model(net))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    dataset = torch.utils.data.TensorDataset(x, y)
    for loader in (
        torch.utils.data.DataLoader(dataset, batch_size=8),
        dataset,
        {"x": data["x"], "labels": data["y"]},
        [(x[:8], y[:8])],
        [{"x": x[:8], "y": y[:8]}],
        [((x[:8],), y[:8])],
    ):
        inputs, target = Batches(loader, specs, batch=8).first()
        assert torch.equal(inputs["x"], x[:8])
        assert torch.equal(target, y[:8])
    assert Batches([x[:8]], specs).first()[1] is None


def test_outputs_that_are_no_classes(parse: Callable, data: dict[str, Any]) -> None:
    proto = parse("""g (float[n,3,12,12] x, float[8,3,3,3] w1, float[8] b1, float[2,8,3,3] w2, float[2] b2)
        => (float[n,2,8,8] y) { c = Conv(x, w1, b1)  r = Relu(c)  y = Conv(r, w2, b2) }""")
    few = {"weights": "int2", "activations": "uint2", "edges": False, "finalized": False, "gradual": 0.0}
    taught = lowbit.distill(proto, {"x": data["x"]}, epochs=8, **few, **QUICK)
    assert taught.history[-1].loss < 0.7 * taught.history[0].loss
    wanted = data["x"][:, :2, 2:10, 2:10]
    trained = lowbit.qat(
        proto, {"x": data["x"], "y": wanted}, epochs=8, validation={"x": data["x"], "y": wanted}, **few, **QUICK
    )
    assert trained.history[-1].loss < 0.9 * trained.history[0].loss
    assert trained.history[-1].metric < 0
    assert trained.history[-1].metric > trained.history[0].metric
