"""Random operators against their distributions, and what training changes."""

from __future__ import annotations

import math

import onnx.parser
import pytest
import torch

from lowbit.interpreter import Interpreter, to_torch

COUNT = 40_000
# Six standard errors of a mean of this many draws of variance 1; a right generator fails once in 10^9 runs.
SIGMAS = 6 / math.sqrt(COUNT)


def module(body: str, opset: int = 21) -> Interpreter:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> drawn (float[n] x) => (float[n] y) {{ {body} }}'
    return to_torch(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("body", "mean", "deviation"),
    [
        ("y = RandomNormalLike <mean = 2.0, scale = 3.0> (x)", 2, 3),
        (f"y = RandomNormal <mean = 2.0, scale = 3.0, shape = [{COUNT}]> ()", 2, 3),
        ("y = RandomUniformLike <low = -1.0, high = 3.0> (x)", 1, 4 / math.sqrt(12)),
        (f"y = RandomUniform <low = -1.0, high = 3.0, shape = [{COUNT}]> ()", 1, 4 / math.sqrt(12)),
        ("y = Bernoulli (x)", 0.25, math.sqrt(0.25 * 0.75)),
        ("y = Bernoulli <dtype = 7, seed = 5.0> (x)", 0.25, math.sqrt(0.25 * 0.75)),
        ("t = Constant <value = bool {1}> () r = Constant <value = float {0.4}> () y = Dropout (x, r, t)", 0.25, None),
    ],
)
def test_draws_have_their_mean_and_deviation(body: str, mean: float, deviation: float | None) -> None:
    torch.manual_seed(0)
    (y,) = module(body)(torch.full((COUNT,), 0.25))
    assert y.shape == (COUNT,)
    expected = 0.25 * math.sqrt(0.4 / 0.6) if deviation is None else deviation
    assert y.to(torch.float64).mean().item() == pytest.approx(mean, abs=SIGMAS * expected)
    assert y.to(torch.float64).std().item() == pytest.approx(expected, rel=0.03)


def test_classes_are_drawn_by_their_probabilities() -> None:
    torch.manual_seed(0)
    drawn = to_torch(
        onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> drawn (float[2, 3] x) => (int32[2, {COUNT}] y)'
            f" {{ y = Multinomial <sample_size = {COUNT}> (x) }}"
        )
    )
    chances = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    (y,) = drawn(chances.log())
    found = torch.stack([(y == index).to(torch.float64).mean(1) for index in range(3)], 1)
    assert y.dtype == torch.int32
    assert torch.allclose(found, chances.to(torch.float64), atol=SIGMAS)


@pytest.mark.parametrize("name", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_a_seed_draws_the_same_again(name: str) -> None:
    x = torch.full((100,), 0.5)
    seeded, free = module(f"y = {name} <seed = 3.0> (x)"), module(f"y = {name} (x)")
    assert torch.equal(seeded(x)[0], seeded(x)[0])
    assert not torch.equal(free(x)[0], free(x)[0])


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("r = Constant <value = float {0.4}> () y = Dropout (x, r)", 21),
        ("r = Constant <value = float {0.4}> () y = Dropout (x, r)", 13),
        ("y = Dropout <ratio = 0.4> (x)", 11),
    ],
)
def test_dropout_drops_in_training(body: str, opset: int) -> None:
    torch.manual_seed(0)
    dropped, x = module(body, opset), torch.ones(COUNT, requires_grad=True)
    assert torch.equal(dropped.eval()(x)[0], x)
    (y,) = dropped.train()(x)
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / 0.6])
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_tells_what_it_kept() -> None:
    masked = to_torch(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]> masked (float[n] x) => (float[n] y, bool[n] m)'
            " { t = Constant <value = bool {1}> () y, m = Dropout (x, , t) }"
        )
    )
    y, mask = masked.eval()(torch.ones(100))
    assert torch.equal(y != 0, mask)
    assert 0 < mask.sum() < 100


def test_batch_normalization_learns_its_running_statistics() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        normal (float[n, 2, 5] x) => (float[n, 2, 5] y)
        <float[2] scale = {1, 2}, float[2] shift = {0, 1}, float[2] mean = {5, -5}, float[2] variance = {0.25, 0.5}>
        { y = BatchNormalization <momentum = 0.75> (x, scale, shift, mean, variance) }
    """)
    normal = to_torch(proto)
    assert {name for name, _ in normal.named_parameters()} == {"scale", "shift"}
    x = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0))
    (still,) = normal.eval()(x)
    assert normal.state_dict()["mean"].tolist() == [5, -5]
    (y,) = normal.train()(x)
    expected = torch.nn.functional.batch_norm(
        x, None, None, torch.tensor([1.0, 2]), torch.tensor([0.0, 1]), training=True, eps=1e-5
    )
    assert torch.allclose(y, expected, atol=1e-5)
    assert not torch.allclose(y, still, atol=0.1)
    state = normal.state_dict()
    torch.testing.assert_close(state["mean"], 0.75 * torch.tensor([5.0, -5]) + 0.25 * x.mean((0, 2)))
    variance = 0.75 * torch.tensor([0.25, 0.5]) + 0.25 * x.var((0, 2), correction=0)
    torch.testing.assert_close(state["variance"], variance, rtol=1e-5, atol=0)
