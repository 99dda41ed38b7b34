"""Families of operators as small PyTorch modules, with the ONNX operators that make each what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FAMILIES", "Family", "example"]


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    Attributes:
        make: Returns the module, with random weights.
        shape: The shape of its input without the batch.
        operators: The ONNX operators that the row is about; it is in integers where all of them are.
        tokens: Whether the input is whole numbers below 20.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    operators: frozenset[str]
    tokens: bool = False


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inside = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = nn.functional.max_pool2d(torch.relu(x + self.inside(x)), 2)
        return self.head(x.mean((2, 3)))


class _Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.stem(x))
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * gate


class _Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        wide = nn.functional.interpolate(torch.relu(self.down(x)), scale_factor=2.0)
        return self.head(torch.cat([x, wide], 1))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in self.project(x).chunk(3, 2))
        weights = torch.softmax(2 * query @ key.transpose(2, 3), -1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class _Recurrent(nn.Module):
    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.cells, self.head = cells, nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cells(x)[0][:, -1])


class _Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids).mean(1))


def _pooled(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5))


_PICTURE = (3, 16, 16)
FAMILIES: dict[str, Family] = {
    "Convolution, BatchNorm, Relu": Family(
        lambda: _pooled(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU()),
        _PICTURE,
        frozenset({"Conv"}),
    ),
    "Depthwise and grouped convolution": Family(
        lambda: _pooled(
            nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1, groups=2)
        ),
        _PICTURE,
        frozenset({"Conv"}),
    ),
    "Convolution of one axis": Family(
        lambda: nn.Sequential(nn.Conv1d(4, 8, 5, 2), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.Linear(96, 5)),
        (4, 32),
        frozenset({"Conv"}),
    ),
    "Transposed convolution": Family(
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)),
        _PICTURE,
        frozenset({"ConvTranspose"}),
    ),
    "Residuals and pools": Family(_Residual, _PICTURE, frozenset({"Add", "MaxPool"})),
    "Gates: HardSwish, Sigmoid, Mul": Family(_Gated, _PICTURE, frozenset({"Sigmoid", "Mul"})),
    "Resize and Concat": Family(_Upsampled, _PICTURE, frozenset({"Resize", "Concat"})),
    "Linear layers": Family(
        lambda: nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)),
        (24,),
        frozenset({"Gemm"}),
    ),
    "Attention, Softmax": Family(_Attention, (6, 16), frozenset({"MatMul"})),
    "LayerNorm, Gelu": Family(
        lambda: nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 16)),
        (6, 16),
        frozenset({"LayerNormalization", "Gelu", "Erf"}),
    ),
    "Embedding": Family(_Embedded, (12,), frozenset({"Gather"}), tokens=True),
    "LSTM": Family(lambda: _Recurrent(nn.LSTM(16, 32, batch_first=True)), (8, 16), frozenset({"LSTM"})),
    "GRU": Family(lambda: _Recurrent(nn.GRU(16, 32, batch_first=True)), (8, 16), frozenset({"GRU"})),
}


def example(family: Family, generator: torch.Generator) -> torch.Tensor:
    """Return one input, with its batch of 1."""
    if family.tokens:
        return torch.randint(0, 20, (1, *family.shape), generator=generator)
    return torch.randn(1, *family.shape, generator=generator)
