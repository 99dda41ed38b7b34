"""Small arrays as text, exact to the last bit, so that a plan holds all that its artifact is made of."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

__all__ = ["pack_arrays", "pack_floats", "pack_steps", "unpack_arrays", "unpack_floats", "unpack_steps"]


def pack_floats(array: NDArray[np.float32]) -> str:
    """Return `[N]` float32 as base64 of its little-endian bytes."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def unpack_floats(text: str) -> NDArray[np.float32]:
    """Return the `[N]` float32 that `pack_floats` wrote.

    Raises:
        RecipeError: The text is not such an array.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise RecipeError(
            "the plan holds an unreadable array", cause=str(error), remedy="make the plan again with --save-plan"
        ) from error


def pack_steps(steps: NDArray[np.int8], base: NDArray[np.int8]) -> str:
    """Return small differences of codes, compressed, in base64, with a checksum of the codes that they change.

    Args:
        steps: Differences, any shape.
        base: The codes that they are added to.
    """
    checksum = zlib.crc32(np.ascontiguousarray(base).tobytes()).to_bytes(4, "little")
    return base64.b64encode(checksum + zlib.compress(np.ascontiguousarray(steps).tobytes(), 9)).decode("ascii")


def unpack_steps(text: str, base: NDArray[np.int8]) -> NDArray[np.int8] | None:
    """Return the differences that `pack_steps` wrote, in the shape of `base`; `None` if they belong to other codes.

    Raises:
        RecipeError: The text is not such an array.
    """
    try:
        data = base64.b64decode(text, validate=True)
        if int.from_bytes(data[:4], "little") != zlib.crc32(np.ascontiguousarray(base).tobytes()):
            return None
        return np.frombuffer(zlib.decompress(data[4:]), dtype=np.int8).reshape(base.shape)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise RecipeError(
            "the plan holds an unreadable array", cause=str(error), remedy="make the plan again with --save-plan"
        ) from error


def pack_arrays(*arrays: NDArray[Any]) -> str:
    """Return arrays of any shapes and plain types, compressed, in base64."""
    buffer = io.BytesIO()
    for array in arrays:
        np.save(buffer, np.asarray(array), allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue(), 9)).decode("ascii")


def unpack_arrays(text: str, count: int) -> tuple[NDArray[Any], ...]:
    """Return the arrays that `pack_arrays` wrote.

    Args:
        text: What it returned.
        count: How many there are.

    Raises:
        RecipeError: The text is not so many arrays.
    """
    try:
        buffer = io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))
        return tuple(np.load(buffer, allow_pickle=False) for _ in range(count))
    except (binascii.Error, ValueError, EOFError, OSError, zlib.error) as error:
        raise RecipeError(
            "the plan holds an unreadable array", cause=str(error), remedy="make the plan again with --save-plan"
        ) from error
