"""What is no tensor's number: the graph, the names and the metadata. Small ones are mixed, large ones are LZMA's."""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container.bytes_model import code_bytes, table_bits
from lowbit.container.cursor import Damage
from lowbit.container.dictionary import dictionary
from lowbit.container.wire import varint

if TYPE_CHECKING:
    from lowbit.container.cursor import Cursor

__all__ = ["STRUCTURE_RATIO", "compressed", "decompressed", "mix_structure"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

STRUCTURE_RATIO = 1 << 12
"""Bytes of a structure that one byte of a file can stand for at most."""
_QUICK, _PATIENT = 3, 6
_SHARE = 20
"""Times that a model is as large as its structure, from which on that may take LZMA's slower preset."""
_MEMORY = 1 << 25
"""Bytes that LZMA may take beside its output."""


def compressed(structure: bytes, total: int) -> bytes | None:
    """Return the structure of a model of `total` bytes as an `.lzma` file behind its length.

    None if it is too repetitive for the limit.
    """
    preset = _PATIENT if _SHARE * len(structure) <= total else _QUICK
    filters = [{"id": lzma.FILTER_LZMA1, "preset": preset, "dict_size": 1 << 20, "pb": 0}]
    found = lzma.compress(structure, format=lzma.FORMAT_ALONE, filters=filters)
    return varint(len(found)) + found if len(structure) <= STRUCTURE_RATIO * len(found) else None


def decompressed(cursor: Cursor, length: int) -> bytes:
    """Return a structure of `length` bytes.

    Raises:
        Damage: There is none.
    """
    packed = cursor.take(cursor.varint())
    try:
        found = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY).decompress(packed, length + 1)
    except lzma.LZMAError as error:
        raise Damage(f"LZMA says: {error}") from error
    if len(found) != length:
        raise Damage("it has another length")
    return found


def mix_structure(coder: Ints, buffer: Bytes, structure: Bytes) -> Bytes:
    """Code a structure by mixing, and return it; when decoding, only its length is looked at.

    Raises:
        Damage: The buffer ended.
    """
    known = dictionary()
    history = np.concatenate([known, structure])
    if not code_bytes(coder, buffer, history, 0, len(known), 0, 1, table_bits(len(history))):
        raise Damage("the file ends in it")
    return history[len(known) :]
