"""Example inputs: what the user gives, or the first samples of the data, as arguments of a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data.item import LABEL_NAMES
from lowbit.exceptions import DataError, ModelError

if TYPE_CHECKING:
    import torch

__all__ = ["Examples", "example_inputs_from", "examples_of"]

_HOW = (
    "give example_inputs: a tensor, a tuple of the arguments of forward, or a dict of its named arguments, e.g. "
    "example_inputs=torch.zeros(1, 3, 224, 224)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The arguments of one call of a module: positional and named; tensors, or what holds tensors, or plain values."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Examples:
        """Return the same arguments with `function` of every tensor."""
        import torch
        from torch.utils import _pytree as pytree

        positional, named = pytree.tree_map_only(torch.Tensor, function, (self.positional, self.named))
        return Examples(positional=tuple(positional), named=dict(named))

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor, in the order of the exported graph's inputs."""
        import torch
        from torch.utils import _pytree as pytree

        leaves = pytree.tree_leaves((self.positional, self.named))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def examples_of(module: torch.nn.Module, given: Any) -> Examples:
    """Return example inputs as arguments of `module.forward`, on the module's own device.

    Args:
        module: What will be called.
        given: A tensor or NumPy array, a tuple or list of arguments, or a dict of named arguments.

    Raises:
        ModelError: There are none, or they are not what `forward` takes.
    """
    import torch
    from torch.utils import _pytree as pytree

    if given is None:
        raise ModelError(f"{type(module).__name__} has no example inputs", cause="a module has no shapes", remedy=_HOW)
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(given, Mapping):
        named = {str(name): value for name, value in given.items()}
    elif isinstance(given, (tuple, list)):
        positional = tuple(given)
    else:
        positional = (given,)
    anchor = next(iter(module.parameters()), None)
    device = torch.device("cpu") if anchor is None else anchor.device

    def placed(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            leaf = torch.from_numpy(np.array(leaf))
        return leaf.detach().to(device) if isinstance(leaf, torch.Tensor) else leaf

    positional, named = pytree.tree_map(placed, (positional, named))
    examples = Examples(positional=positional, named=named)
    if not examples.tensors():
        raise ModelError(f"the example inputs {given!r} hold no tensor", remedy=_HOW)
    if not isinstance(module, torch.jit.ScriptModule):
        try:
            inspect.signature(module.forward).bind(*positional, **named)
        except TypeError as error:
            raise ModelError(
                f"the example inputs are not what {type(module).__name__}.forward takes",
                cause=f"{error}; its arguments are {inspect.signature(module.forward)}",
                remedy=_HOW,
            ) from error
    return examples


def example_inputs_from(data: Any, module: torch.nn.Module) -> Any:
    """Return example inputs out of the first samples of the data, `None` if there are no data to look into.

    Raises:
        DataError: The data can be read only once.
    """
    if data is None or (isinstance(data, str) and data == "random"):
        return None
    first = _first(data)
    wanted = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    if isinstance(first, Mapping):
        fed = {str(key): value for key, value in first.items() if key in wanted or key not in LABEL_NAMES}
        if len(fed) == 1 and next(iter(fed)) not in wanted:
            return next(iter(fed.values()))  # the only array feeds the only input, as everywhere
        return fed
    if isinstance(first, (tuple, list)):
        required = [
            name
            for name, parameter in inspect.signature(module.forward).parameters.items()
            if name in wanted and parameter.default is parameter.empty
        ]
        parts = first[0] if isinstance(first[0], (tuple, list, Mapping)) else first[: max(len(required), 1)]
        return parts if isinstance(parts, Mapping) else tuple(parts)
    return first


def _first(data: Any) -> Any:
    if isinstance(data, (str, Path)):
        return _first_of_file(Path(data))
    if isinstance(data, Mapping):
        return {key: value[:2] for key, value in data.items()}
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        return data[:2]
    if isinstance(data, Iterator):
        raise DataError(
            "the data can be read only once",
            cause="a look at the first sample, for the shapes of the inputs, would use it up",
            remedy=_HOW,
        )
    if isinstance(data, Iterable):
        return _element(iter(data))
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # a map-style data set: samples without a batch
        return _with_batch(data[0])
    return _element(iter(data())) if callable(data) else None


def _element(samples: Iterator[Any]) -> Any:
    for sample in samples:
        return sample
    raise DataError("the data are empty", remedy="give at least one sample")


def _with_batch(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        return {key: _with_batch(value) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(_with_batch(value) for value in sample)
    return sample[None] if hasattr(sample, "shape") else np.asarray([sample])


def _first_of_file(path: Path) -> Any:
    if path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name][:2] for name in arrays.files}
    if path.suffix == ".npy" and path.is_file():
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[:2])
    raise ModelError(f"nothing says which shapes the module takes; the data are {str(path)!r}", remedy=_HOW)
