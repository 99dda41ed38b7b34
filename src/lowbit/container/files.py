"""What lies in the data files of a model: its tensors, and the gaps between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from lowbit.container.numbers import BITS
from lowbit.container.wire import Tensor
from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Piece", "check_location", "locations", "pieces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of a data file that are coded together.

    Attributes:
        tensor: What they are, or a tensor without a type for the bytes between.
        start: First byte in the file.
        length: In bytes.
    """

    tensor: Tensor
    start: int
    length: int


def check_location(tensor: Tensor) -> str:
    """Return the data file of an external tensor.

    Raises:
        ModelError: It has none, or one that leaves the model's folder.
    """
    location = tensor.external.get("location", "")
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    absolute = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    parts = {*posix.parts, *windows.parts}
    if not parts or absolute or ".." in parts or "\0" in location:
        raise ModelError(
            f"Tensor {tensor.name!r} lies in the external file {location!r}",
            cause="External data must be named relative to the model's folder and stay inside it",
            remedy="Do not use this file unless you trust its origin",
        )
    return location


def locations(tensors: Sequence[Tensor]) -> list[str]:
    """Return the data files of a model, in the order in which its tensors name them.

    Raises:
        ModelError: One leaves the model's folder.
    """
    return list(dict.fromkeys(check_location(tensor) for tensor in tensors if tensor.is_external))


def pieces(tensors: Sequence[Tensor], location: str, size: int) -> list[Piece]:
    """Divide a data file of `size` bytes into its tensors and what is between them.

    Raises:
        ModelError: A tensor's place is no number.
    """
    places: list[tuple[int, int, Tensor]] = []
    for tensor in tensors:
        if tensor.is_external and tensor.external.get("location") == location:
            start = _number(tensor, "offset", 0)
            stored = -(-math.prod(tensor.dims) * BITS.get(tensor.data_type, 8) // 8)
            places.append((start, _number(tensor, "length", stored), tensor))
    found: list[Piece] = []
    position = 0
    for start, length, tensor in sorted(places, key=lambda place: place[:2]):
        if start < position or start + length > size or length == 0:
            continue  # shared with another tensor, or not there: the gaps hold whatever there is
        if start > position:
            found.append(_gap(location, position, start))
        found.append(Piece(tensor=tensor, start=start, length=length))
        position = start + length
    if position < size:
        found.append(_gap(location, position, size))
    return found


def _gap(location: str, start: int, end: int) -> Piece:
    return Piece(tensor=Tensor(name=f"the rest of {location}"), start=start, length=end - start)


def _number(tensor: Tensor, key: str, default: int) -> int:
    text = tensor.external.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"Tensor {tensor.name!r} has the {key} {text!r} in its external file", remedy="Save it again")
    return int(text)
