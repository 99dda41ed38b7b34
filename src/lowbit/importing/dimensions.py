"""Which dimensions of a module's inputs stay open, and what they are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir
    import torch

    from lowbit.importing.examples import Examples

__all__ = ["BATCH", "OpenAxes", "doubled", "name_dimensions", "open_axes"]

BATCH = "batch"
_SEQUENCE = "sequence"
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class OpenAxes:
    """The open axes of every input tensor, in order: axis to name."""

    inputs: tuple[dict[int, str], ...]

    def without(self, name: str) -> OpenAxes:
        """Return the same with the axes of a name closed."""
        return OpenAxes(tuple({axis: own for axis, own in axes.items() if own != name} for axes in self.inputs))

    def axis_of_batch(self) -> list[int | None]:
        """Return where the batch lies in every input, `None` where it has none."""
        return [next((axis for axis, name in axes.items() if name == BATCH), None) for axes in self.inputs]

    def __bool__(self) -> bool:
        """Whether any axis is open."""
        return any(self.inputs)


def open_axes(examples: Examples) -> OpenAxes:
    """Open the batch of every input, and the length of what looks like tokens or a mask over them.

    The batch is axis 0 of every tensor that has as many entries there as the first one. Whole numbers or booleans of
    two or more axes are tokens: their axis 1 is the length of the sequence. Sizes of pictures stay as they are.
    """
    tensors = examples.tensors()
    size = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
    found: list[dict[int, str]] = []
    for tensor in tensors:
        axes: dict[int, str] = {}
        if tensor.ndim and tensor.shape[0] == size:
            axes[0] = BATCH
            if tensor.ndim >= 2 and not tensor.is_floating_point() and not tensor.is_complex() and tensor.shape[1] > 1:
                axes[1] = _SEQUENCE
        found.append(axes)
    return OpenAxes(tuple(found))


def doubled(examples: Examples, axes: OpenAxes) -> Examples:
    """Return the examples with two samples where they have one: a size of 1 would be taken for a constant."""
    import torch

    places = iter(axes.axis_of_batch())

    def twice(tensor: torch.Tensor) -> torch.Tensor:
        axis = next(places)
        return torch.cat([tensor, tensor], axis) if axis is not None and tensor.shape[axis] == 1 else tensor

    return examples.map_tensors(twice)


def name_dimensions(model: ir.Model, axes: Iterable[dict[int, str]]) -> None:
    """Rename the symbols of all shapes in place, as the open axes of the inputs are called.

    There is one batch: samples of all inputs go together, also where the module itself would broadcast one of them.
    """
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value, own in zip(model.graph.inputs, axes, strict=False):
        for axis, name in own.items():
            dim = value.shape[axis] if value.shape is not None else None
            symbol = getattr(dim, "value", None)
            if symbol and symbol not in names:
                free = name if name == BATCH or name not in names.values() else f"{value.name}_{name}"
                names[symbol] = free
    graphs: list[Any] = list(model.graphs())
    for graph in graphs:
        values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        for value in values:
            if value.shape is None:
                continue
            shape = [_renamed(dim, names) for dim in value.shape]
            value.shape = ir.Shape(shape)


def _renamed(dim: Any, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    text = dim.value
    return None if text is None else _SYMBOL.sub(lambda found: names.get(found[0], found[0]), text)
