"""Modules that decide by the values of tensors: one error that names the user's line, or a graph that does the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lowbit.exceptions import ModelError
from lowbit.graph import serialize
from lowbit.importing import import_model
from lowbit.runtime import open_session


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # a comparison
            return x
        return -x


class Taking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.max().item()
        return x if largest > 3 else x * 2  # a number taken from a tensor


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Identity(), Taking())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) + 1


class Counting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.sum())):  # a loop of unknown length
            x = x + 1
        return x


class Repeating(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.max() < 100:  # a loop until something holds
            x = x * 2
        return x


class Cutting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : int(x.sum())]  # a size taken from a tensor


class Claiming(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.min() > -100  # a check
        return x + 1


@pytest.mark.parametrize(
    ("module", "comment"),
    [
        (Deciding(), "a comparison"),
        (Taking(), "a number taken from a tensor"),
        (Inside(), "a number taken from a tensor"),
        (Counting(), "a loop of unknown length"),
        (Repeating(), "a loop until something holds"),
        (Cutting(), "a size taken from a tensor"),
        (Claiming(), "a check"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_error_names_the_line_and_what_to_write(module: nn.Module, comment: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(module, torch.ones(2, 3))
    text = str(caught.value)
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(number for number, code in enumerate(lines, 1) if code.endswith(f"# {comment}"))
    assert f"{type(module).__name__} cannot be captured as one graph: test_control_flow.py:{line} (" in text
    assert lines[line - 1].partition("#")[0].strip() in text
    assert "torch.where" in text
    assert "torch.cond" in text
    assert "\n" not in text


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.sum() > 0, x, -x)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: -y, (x,))


class Selecting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


class Masking(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.arange(x.shape[1]) < x.sum(1, keepdim=True)
        return torch.where(kept, x, 0.0)


@pytest.mark.parametrize("module", [Chosen(), Branching(), Selecting(), Masking()], ids=lambda m: type(m).__name__)
def test_the_advice_works(module: nn.Module) -> None:
    """The graph decides anew for values that were no example."""
    session = open_session(serialize(import_model(module, torch.ones(2, 3)).model), threads=1)
    for x in (torch.ones(2, 3), -torch.ones(2, 3), torch.tensor([[0.5, -1.0, 2.0], [3.0, 0.0, -0.5]])):
        np.testing.assert_allclose(session.run({"x": x.numpy()})[0], module(x).numpy())
