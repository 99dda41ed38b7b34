"""What a data loader yields, as named tensors and a target, checked against the model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowbit.data import open_data
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lowbit.data import InputSpec, Preprocessing

__all__ = ["Batch", "Batches"]

_LABELS = ("y", "labels", "label", "targets", "target")

Batch = tuple[dict[str, torch.Tensor], Any]
"""Inputs by name, and the target; `None` without one."""


class Batches:
    """Batches of a training or of a validation; every pass reads the loader anew.

    Args:
        loader: A `DataLoader` or another iterable that can be read again and again, of `(x, y)`, `x` or dicts; a
            map-style data set, which is shuffled and batched here; or a dict of arrays, or a path of arrays or
            pictures, likewise.
        inputs: The model's inputs.
        batch: Size of batches that are made here.
        shuffle: Whether samples are shuffled that are batched here.
        name: What error messages call it.
        preprocessing: What to do to pictures.

    Raises:
        DataError: It can be read only once, or is no data.
    """

    def __init__(
        self,
        loader: Any,
        inputs: Sequence[InputSpec],
        *,
        batch: int = 64,
        shuffle: bool = False,
        name: str = "data",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self.inputs, self.name = tuple(inputs), name
        if isinstance(loader, (str, Path)):
            loader = _read(loader, inputs, preprocessing)
        if isinstance(loader, Mapping):
            loader = _samples(loader, inputs, name)
        indexed = hasattr(loader, "__getitem__") and hasattr(loader, "__len__")
        if indexed and not isinstance(loader, (list, tuple)) and not isinstance(loader, torch.utils.data.DataLoader):
            loader = torch.utils.data.DataLoader(
                loader, batch_size=batch, shuffle=shuffle, drop_last=shuffle and len(loader) > batch
            )
        if not isinstance(loader, Iterable):
            raise DataError(f"{name} is a {type(loader).__name__}", remedy="give a DataLoader or a list of batches")
        if iter(loader) is loader:
            raise DataError(
                f"{name} can be read only once",
                cause="a generator ends after one epoch",
                remedy="give a DataLoader, a list of batches or a data set",
            )
        self.loader = loader

    def __len__(self) -> int:
        """Return the number of batches of one pass; reads the loader where nothing else tells."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return sum(1 for _ in self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for number, item in enumerate(self.loader):
            yield self._bound(item, f"batch {number} of {self.name}")

    def first(self) -> Batch:
        """Return the first batch.

        Raises:
            DataError: There is none.
        """
        for batch in self:
            return batch
        raise DataError(f"{self.name} is empty", remedy="give at least one batch")

    def _bound(self, item: Any, where: str) -> Batch:
        names = [spec.name for spec in self.inputs]
        target: Any = None
        if isinstance(item, Mapping):
            values = dict(item)
            key = next((key for key in _LABELS if key in values and key not in names), None)
            target = values.pop(key) if key is not None else None
            if len(names) == 1 and len(values) == 1:
                values = {names[0]: next(iter(values.values()))}
        elif isinstance(item, Sequence) and not isinstance(item, str):
            parts = list(item)
            if len(parts) == 2 and isinstance(parts[0], (list, tuple, Mapping)):
                inner, target = parts
                parts = [inner[name] for name in names if name in inner] if isinstance(inner, Mapping) else list(inner)
            elif len(parts) == len(names) + 1:
                *parts, target = parts
            values = dict(zip(names, parts, strict=False)) if len(parts) == len(names) else {}
        else:
            values = {names[0]: item} if len(names) == 1 else {}
        if set(values) != set(names):
            raise DataError(
                f"{where} does not fit the model's inputs {', '.join(map(repr, names))}",
                cause=f"it is {_described(item)}",
                remedy="yield (x, y), one array per input and the target, or a dict by input name",
            )
        tensors = {spec.name: _checked(values[spec.name], spec, where) for spec in self.inputs}
        return tensors, None if target is None else _target(target)


def _checked(value: Any, spec: InputSpec, where: str) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
    wanted = torch.from_numpy(np.empty(0, dtype=spec.dtype)).dtype
    fits = tensor.ndim == len(spec.shape) and all(
        not isinstance(dim, int) or axis == 0 or dim == size
        for axis, (dim, size) in enumerate(zip(spec.shape, tensor.shape, strict=True))
    )
    if not fits:
        raise DataError(
            f"{where} has shape {list(tensor.shape)} for the model's input {spec}",
            cause=_layout_hint(tensor, spec),
            remedy="give batches of the model's own shape and layout",
        )
    if tensor.is_floating_point() != wanted.is_floating_point:
        raise DataError(
            f"{where} is {str(tensor.dtype).removeprefix('torch.')} for the model's input {spec}",
            remedy=f"convert it, scaled as the model was trained, to {spec.dtype}",
        )
    return tensor.to(wanted)


def _layout_hint(tensor: torch.Tensor, spec: InputSpec) -> str:
    if tensor.ndim == 4 and len(spec.shape) == 4:
        n, a, b, c = tensor.shape
        for moved, words in (((n, b, c, a), "channels first"), ((n, c, a, b), "channels last")):
            if all(
                not isinstance(dim, int) or dim == size for dim, size in zip(spec.shape[1:], moved[1:], strict=True)
            ):
                return f"the batch has its {words}"
    return ""


def _target(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.as_tensor(np.asarray(value))
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, (int, float)) for one in value):
        return torch.tensor(value)
    return value


def _described(item: Any) -> str:
    if isinstance(item, Mapping):
        return f"a dict of {', '.join(map(repr, item))}"
    if isinstance(item, (list, tuple)):
        return f"a sequence of {len(item)}"
    return f"one {type(item).__name__}"


def _read(path: str | Path, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None) -> dict[str, Any]:
    """Return all samples of a path, as arrays in memory."""
    with open_data(path, inputs, preprocessing=preprocessing) as dataset:
        feeds = list(dataset)
        arrays: dict[str, Any] = {spec.name: np.concatenate([feed[spec.name] for feed in feeds]) for spec in inputs}
        if dataset.labels is not None:
            arrays["labels"] = dataset.labels
    return arrays


def _samples(arrays: Mapping[str, Any], inputs: Sequence[InputSpec], name: str) -> torch.utils.data.Dataset:
    names = [spec.name for spec in inputs]
    label = next((key for key in _LABELS if key in arrays and key not in names), None)
    rest = [key for key in arrays if key != label]
    order = names if set(names) == set(rest) else rest if len(rest) == len(names) == 1 else None
    if order is None:
        raise DataError(
            f"{name} has the arrays {rest}, the model the inputs {names}", remedy="name one array after each input"
        )
    columns = [torch.as_tensor(np.asarray(arrays[key])) for key in (*order, *([label] if label else []))]
    if len({len(column) for column in columns}) != 1:
        raise DataError(f"the arrays of {name} have different lengths: {[len(column) for column in columns]}")
    return torch.utils.data.TensorDataset(*columns)
