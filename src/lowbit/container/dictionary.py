"""What the structures of small models have in common: learned before a structure is coded, so that it costs nothing.

It is a part of the format: other bytes would need another version.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["dictionary"]


@functools.cache
def dictionary() -> NDArray[np.uint8]:
    """Return the bytes of `dictionary.bin`, which `benchmarks/lbz_dictionary.py` has made."""
    return np.frombuffer(Path(__file__).with_name("dictionary.bin").read_bytes(), dtype=np.uint8)
