"""A rate is found that a model can be trained with: below what diverges, by theory, and not far below."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lowbit
from lowbit.data import input_specs
from lowbit.exceptions import RecipeError
from lowbit.graph import load_model
from lowbit.training.batches import Batches
from lowbit.training.rate_finder import find_rate, rate_from
from lowbit.training.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LINE = "g (float[n,8] x, float[8,1] w) => (float[n,1] y) { y = MatMul(x, w) }"


def found(parse: Callable[..., Any], size: float, *, noise: float = 0.0, start: bool = False) -> float:
    """Return the rate for a linear regression on inputs of a size, from noise or from the solution."""
    model = parse(LINE)
    generator = np.random.default_rng(0)
    x = (size * generator.standard_normal((512, 8))).astype(np.float32)
    solution = np.ones((8, 1), np.float32) / size
    if start:
        import onnx

        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(solution, "w"))
    y = x @ solution + noise * generator.standard_normal((512, 1)).astype(np.float32)
    module = lowbit.trainable(model, quantized=False)
    before = {name: one.clone() for name, one in module.state_dict().items()}
    batches = Batches({"x": x, "y": y}, input_specs(load_model(model)), batch=64, shuffle=True)

    def loss(batch: Any) -> torch.Tensor:
        inputs, target = batch
        return torch.nn.functional.mse_loss(module(**inputs), target)

    settings = Settings(optimizer="sgd", clip=0.0, weight_decay=0.0)
    result = find_rate(module, batches, loss, settings)
    assert find_rate(module, batches, loss, settings).rate == result.rate
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    assert (np.diff(result.rates) > 0).all()
    return result.rate


@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("start", [False, True])
def test_the_rate_is_below_what_diverges(parse: Callable[..., Any], size: float, start: bool) -> None:
    # Nesterov's method with momentum b is stable below (2 + 2b) / ((1 + 2b) h); the curvature h is 2 E[x²] here, and a
    # batch of 64 has up to half as much again.
    curvature = 2.0 * size**2 * 1.5
    limit = (2 + 2 * 0.9) / ((1 + 2 * 0.9) * curvature)
    assert limit / 100 < found(parse, size, noise=0.5, start=start) < limit


def test_a_tenth_of_where_the_loss_is_lowest() -> None:
    rates = 10.0 ** np.linspace(-5, 0, 80)
    falling = np.where(rates < 1e-2, 1.0 / (1.0 + 3e3 * rates), 30.0 * rates)
    assert 3e-4 < rate_from(rates, falling) < 3e-3
    generator = np.random.default_rng(0)
    flat = np.where(rates < 3e-2, 0.1, rates * 10) + 0.02 * generator.standard_normal(80)
    assert 1e-3 < rate_from(rates, flat) < 6e-3


def test_training_with_the_rate_that_was_found(net: Any, data: dict[str, Any], tmp_path: Path) -> None:
    options: dict[str, Any] = {"quantized": False, "finalized": False, "progress": False, "batch": 16, "lr": "auto"}
    trained = lowbit.qat(net, data, epochs=12, **options)
    again = lowbit.qat(net, data, epochs=1, **options)
    assert trained.lr == again.lr
    assert 1e-4 < trained.lr < 0.1
    assert trained.history[-1].loss < 0.7 * trained.history[0].loss
    kept = lowbit.qat(net, data, epochs=1, checkpoint=tmp_path / "state", **options)
    assert kept.lr == trained.lr


def test_words_that_are_no_rate(net: Any, data: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="lr is 'fast'"):
        lowbit.qat(net, data, lr="fast")  # type: ignore[arg-type]
