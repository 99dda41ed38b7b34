"""What a model wants to be fed: one `InputSpec` per graph input, and where the batch lies in each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import DataError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir
    from numpy.typing import NDArray

__all__ = ["BatchLayout", "Dim", "InputSpec", "batch_layout", "batched", "input_specs"]

Dim = int | str | None


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: The input's name in the graph.
        dtype: The element type as NumPy knows it (`ml_dtypes` types for bfloat16, float8 and 4 bits).
        shape: One entry per axis: an int is static, a string is a named dynamic axis, None an unnamed one.
    """

    name: str
    dtype: np.dtype
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        """Return the input as error messages show it, e.g. `'x' ['b', 3, 224, 224] float32`."""
        return f"{self.name!r} {list(self.shape)} {self.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """Where samples are joined to a batch.

    Attributes:
        axes: Input name to its batch axis; None where the input has none (a scalar, or a table of fixed shape).
        fixed: The batch size where the model fixes it, else None.
    """

    axes: dict[str, int | None]
    fixed: int | None


def input_specs(model: onnx_ir.Model) -> tuple[InputSpec, ...]:
    """Return what the model wants to be fed, in graph order.

    Graph inputs that are also initializers (defaults, as files before IR version 4 list them) are left out.

    Raises:
        ModelError: An input has no element type or no shape, or is not a tensor.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.name is None or value.dtype is None or value.shape is None:
            raise ModelError(
                f"the graph input {value.name!r} has no element type or no shape",
                cause="only tensors of a known type and rank can be fed",
                remedy="export the model again with typed inputs",
            )
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        specs.append(InputSpec(value.name, np.dtype(value.dtype.numpy()), shape))
    return tuple(specs)


def batch_layout(inputs: Sequence[InputSpec]) -> BatchLayout:
    """Find the batch axis of every input.

    The batch is axis 0 of the anchor: the first input whose axis 0 is dynamic or 1, or else the first that has an axis.
    An input whose own axis 0 cannot be that batch, such as the state [2, N, 128] of a recurrent model, has it at the
    first later axis that can.
    """
    with_axes = [spec for spec in inputs if spec.shape]
    anchors = [spec for spec in with_axes if spec.shape[0] == 1 or not isinstance(spec.shape[0], int)]
    anchor = next(iter(anchors or with_axes), None)
    axes: dict[str, int | None] = {spec.name: None for spec in inputs}
    if anchor is None:
        return BatchLayout(axes=axes, fixed=None)
    batch = anchor.shape[0]
    for spec in with_axes:
        axes[spec.name] = _batch_axis(spec.shape, batch)
    sizes = {spec.shape[axis] for spec in with_axes if (axis := axes[spec.name]) is not None}
    static = [size for size in sizes if isinstance(size, int)]
    return BatchLayout(axes=axes, fixed=min(static) if static else None)


def batched(feed: Mapping[str, NDArray[Any]], inputs: Sequence[InputSpec], size: int) -> dict[str, NDArray[Any]]:
    """Return a feed of `size` samples, all the same as the one sample of `feed`.

    Raises:
        DataError: The model fixes its batch at another size.
    """
    if size == 1:
        return dict(feed)
    layout = batch_layout(inputs)
    if layout.fixed not in {None, size} or not any(axis is not None for axis in layout.axes.values()):
        raise DataError(
            f"the batch is {size}",
            cause="the model has no batch axis" if layout.fixed is None else f"the model takes {layout.fixed} at once",
            remedy="export the model with an open batch axis, or leave --batch out",
        )
    result = {}
    for name, array in feed.items():
        axis = layout.axes.get(name)
        result[name] = array if axis is None else np.repeat(array[(slice(None),) * axis + (slice(0, 1),)], size, axis)
    return result


def _batch_axis(shape: tuple[Dim, ...], batch: Dim) -> int | None:
    first = shape[0]
    if first == batch or first == 1 or not isinstance(first, int):
        return 0
    if batch in shape:
        return shape.index(batch)
    return next((axis for axis, dim in enumerate(shape) if not isinstance(dim, int)), None)
