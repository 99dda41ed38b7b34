"""Machine code for the loops over bits and symbols, which numpy cannot express."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["compiled"]


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of integers and integer arrays when it is first called, and keep the result on disk.

    NOTE: indices are not checked at run time. Every index in such a function is masked or bounded by what it was
    computed from, so that a forged file cannot reach outside an array.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return numba.njit(**options)(function)
