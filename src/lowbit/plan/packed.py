"""Small float arrays as text, exact to the last bit, so that a plan holds all that its artifact is made of."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["pack_floats", "unpack_floats"]


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
