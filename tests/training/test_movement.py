"""Movement pruning: scores are those of the paper, and it keeps what grows where magnitude keeps what is large."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lowbit
from lowbit.exceptions import RecipeError
from lowbit.pruning import movement
from lowbit.training.movement import Movement

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINE = "g (float[n,4] x, float[4,1] w) => (float[n,1] y) { y = MatMul(x, w) }"
# Two weights are large and on their way to zero, one is small and grows; the last input is always zero.
START, WANTED = [1.0, -0.9, 0.2, 5.0], [0.05, 0.0, 1.0, 0.0]


def task(parse: Callable[..., Any], start: list[float] = START) -> tuple[Any, dict[str, np.ndarray]]:
    import onnx

    model = parse(LINE)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(start, np.float32)[:, None], "w"))
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    x[:, 3] = 0.0
    return model, {"x": x, "y": x @ np.array(WANTED, np.float32)[:, None]}


def kept(training: Any) -> list[int]:
    (weight,) = training.module.weights.values()
    return np.flatnonzero(weight.decoded().numpy().ravel()).tolist()


def learn(parse: Callable[..., Any], criterion: Any, **options: Any) -> Any:
    model, data = task(parse)
    masks = lowbit.GradualPruning(amount=0.75, criterion=criterion, begin=0.3, end=0.6, every=1)
    settings: dict[str, Any] = {"epochs": 12, "batch": 16, "optimizer": "sgd", "lr": 1e-3, "ema": 0.0, "warmup": 0.0}
    settings |= {"quantized": False, "finalized": False, "progress": False, "masks": masks, **options}
    return lowbit.qat(model, data, **settings)


def test_what_grows_is_kept(parse: Callable[..., Any]) -> None:
    assert kept(learn(parse, "movement")) == [2]
    assert kept(learn(parse, "magnitude")) == [3]


def test_scores_are_those_of_the_paper(parse: Callable[..., Any]) -> None:
    model, data = task(parse)
    module = lowbit.trainable(model, quantized=False)
    (weight,) = module.weights.values()
    x, y = (torch.from_numpy(data[name]) for name in "xy")
    mask = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    scored = Movement(module)
    expected = np.zeros((4, 1))
    for step in range(3):
        if step == 1:
            weight.set_mask(mask)
        module.zero_grad()
        loss = (module(x) - y).square().mean()
        loss.backward()
        full = weight.unmasked().detach().numpy().astype(np.float64)
        used = full * (mask.numpy() if step >= 1 else 1.0)
        gradient = 2 * data["x"].T.astype(np.float64) @ (data["x"] @ used - data["y"]) / len(x)
        expected += movement(full, gradient)
        with torch.no_grad():
            weight.weight -= 0.1 * weight.weight.grad
    (found,) = scored.scores.values()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    # The masked weight no longer learns, but is still scored; the dead one never is, and goes first.
    assert expected[0, 0] != 0.0
    assert next(iter(scored.ranked().values()))[3, 0] == -torch.inf
    scored.close()
    module(x).sum().backward()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_what_was_pruned_before_stays(parse: Callable[..., Any]) -> None:
    model, data = task(parse, [0.0, -0.9, 0.2, 0.0])
    for criterion in ("magnitude", "movement"):
        masks = lowbit.GradualPruning(amount=0.25, criterion=criterion, every=1, end=0.5)
        options: dict[str, Any] = {"quantized": False, "finalized": False, "progress": False, "keep_zeros": True}
        trained = lowbit.qat(model, data, epochs=3, batch=16, masks=masks, **options)
        assert set(kept(trained)) <= {1, 2}


def test_it_continues_to_the_same_bits(parse: Callable[..., Any], tmp_path: Path) -> None:
    whole = learn(parse, "movement")

    class StoppedError(RuntimeError):
        pass

    calls = 0

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 22:
            raise StoppedError
        return torch.nn.functional.mse_loss(output, target)

    reference = learn(parse, "movement", loss=torch.nn.functional.mse_loss)
    with pytest.raises(StoppedError):
        learn(parse, "movement", loss=loss, checkpoint=tmp_path / "state", checkpoint_every=3)
    calls = 1000
    resumed = learn(parse, "movement", loss=loss, checkpoint=tmp_path / "state", checkpoint_every=3)
    for name, one in reference.module.state_dict().items():
        assert torch.equal(one, resumed.module.state_dict()[name])
    assert kept(resumed) == kept(whole)


def test_movement_needs_scores() -> None:
    with pytest.raises(RecipeError, match="no movement scores"):
        lowbit.GradualPruning(amount=0.5, criterion="movement")(0, 10, {"w": torch.ones(2, 2)})
    with pytest.raises(RecipeError, match="movement"):
        lowbit.GradualPruning(amount=0.5, criterion="movement", initial=0.2)
    with pytest.raises(RecipeError, match="criterion"):
        lowbit.GradualPruning(amount=0.5, criterion="taylor")  # type: ignore[arg-type]
