"""From what the user hands over to named arrays: dicts, arrays, tuples and tensors become an `Item`.

This is the one place that recognises foreign tensors, by the protocols they speak and without importing their library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data.lazy_array import LazyArray, MemoryArray, refuse_objects
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.data.inputs import InputSpec

__all__ = ["LABEL_NAMES", "Item", "bind_arrays", "bind_value", "to_array"]

LABEL_NAMES = ("y", "labels", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One or more samples, one array per model input.

    Attributes:
        arrays: Input name to array, still of the user's shape and dtype.
        labels: One label per sample, or None.
        given: Input name to the name that the user gave the array.
        name: What error messages call it.
        notes: What was assumed, for the user to read.
    """

    arrays: dict[str, LazyArray]
    labels: NDArray[Any] | None
    given: dict[str, str]
    name: str
    notes: tuple[str, ...] = ()


def bind_arrays(arrays: Mapping[str, LazyArray], inputs: Sequence[InputSpec], name: str) -> Item:
    """Match arrays to model inputs by their names; `y`, `label` and `labels` are labels.

    Raises:
        DataError: An input has no array, or an array no input.
    """
    wanted = [spec.name for spec in inputs]
    label_name = next((key for key in LABEL_NAMES if key in arrays and key not in wanted), None)
    labels = arrays[label_name].whole() if label_name is not None else None
    fed = {key: array for key, array in arrays.items() if key != label_name}
    given = {key: key for key in wanted}
    notes: tuple[str, ...] = ()
    if len(wanted) == 1 and len(fed) == 1 and wanted[0] not in fed:
        (stranger,) = fed
        notes = (f"the array {stranger!r} feeds the model's only input {wanted[0]!r}",)
        fed = {wanted[0]: fed[stranger]}
        given = {wanted[0]: stranger}
    if set(fed) != set(wanted):
        missing = [key for key in wanted if key not in fed]
        extra = [key for key in fed if key not in wanted]
        faults = [f"misses {missing}" if missing else "", f"has {extra} too many" if extra else ""]
        raise DataError(
            f"{name} has the arrays {sorted(arrays)}, but the model's inputs are {wanted}: it "
            + " and ".join(fault for fault in faults if fault),
            remedy="name one array after each input; labels may be called 'y', 'label' or 'labels'",
        )
    return Item(arrays={key: fed[key] for key in wanted}, labels=labels, given=given, name=name, notes=notes)


def bind_value(value: object, inputs: Sequence[InputSpec], name: str) -> Item:
    """Match one element of a Python iterable to the model's inputs.

    A mapping goes by names; an array feeds the only input; a tuple or list of arrays goes by position, and one element
    more than the model has inputs holds the labels, as in the usual `(x, y)`.

    Raises:
        DataError: The element cannot be matched.
    """
    labels: object = None
    if isinstance(value, tuple | list) and value and (len(inputs) > 1 or _is_structured(value[0])):
        parts = list(value)
        nested = isinstance(parts[0], Mapping) or (isinstance(parts[0], tuple | list) and _is_structured(parts[0]))
        if len(parts) == (2 if nested else len(inputs) + 1):
            labels = parts.pop()
        value = parts[0] if nested and len(parts) == 1 else parts
        if isinstance(value, tuple | list):
            if len(value) != len(inputs):
                raise DataError(
                    f"{name} is a sequence of {len(value)} arrays, but the model has the {len(inputs)} inputs "
                    f"{[spec.name for spec in inputs]}",
                    remedy="give one array per input, in this order, and the labels last; or a dict by input name",
                )
            value = {spec.name: part for spec, part in zip(inputs, value, strict=True)}
    if not isinstance(value, Mapping):
        if len(inputs) != 1:
            raise DataError(
                f"{name} is one array, but the model has the {len(inputs)} inputs {[spec.name for spec in inputs]}",
                remedy="give a dict by input name",
            )
        value = {inputs[0].name: value}
    arrays = {
        str(key): part if isinstance(part, LazyArray) else MemoryArray(to_array(part, f"{name}, array {key!r},"))
        for key, part in value.items()
    }
    item = bind_arrays(arrays, inputs, name)
    if labels is None:
        return item
    try:
        found = to_array(labels, "a label")
    except DataError as error:  # detection targets, captions, …: calibration does not need them
        return replace(item, notes=(*item.notes, f"labels that are not arrays are not used: {error.what}"))
    return replace(item, labels=found)


def to_array(value: object, where: str) -> NDArray[Any]:
    """Return a NumPy array of anything that can be one: numbers, nested lists, tensors of any library.

    Raises:
        DataError: It cannot, or holds Python objects.
    """
    foreign: Any = value
    if hasattr(foreign, "detach") and hasattr(foreign, "cpu"):  # a PyTorch tensor, maybe on a device or in a graph
        foreign = foreign.detach().cpu()
        if str(foreign.dtype) == "torch.bfloat16":  # NumPy has no such type; float32 holds all of its values
            foreign = foreign.float()
        foreign = foreign.numpy()
    try:
        array = np.asarray(foreign)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} is not an array: {type(value).__name__}", cause=str(error)) from error
    refuse_objects(array.dtype, where)
    return array


def _is_structured(first: object) -> bool:
    """Whether a sequence that starts so is a tuple of arrays and not a nested list of numbers."""
    if isinstance(first, tuple | list):
        return bool(first) and _is_structured(first[0])
    foreign: Any = first
    return isinstance(first, Mapping) or (hasattr(first, "shape") and len(foreign.shape) > 0)
