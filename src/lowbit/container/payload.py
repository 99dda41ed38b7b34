"""The numbers of one tensor in the stream: their mode, their symbols, and their check."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container.bytes_model import code_bytes, table_bits
from lowbit.container.codes_model import code_codes
from lowbit.container.numbers import (
    CODES,
    STORED,
    TABLES,
    Mode,
    candidates,
    dictionary_of,
    reversed_bytes,
    symbols,
    unsymbols,
)
from lowbit.container.range_coder import code_stored, code_uniform, encoder, overrun
from lowbit.container.table_model import code_tables

if TYPE_CHECKING:
    from lowbit.container.numbers import Layout

__all__ = ["Damage", "check", "choose", "code_check", "decode", "encode"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_LONG_CHECK = 1 << 16
"""Bytes from which on a check has four bytes instead of two."""


class Damage(Exception):  # noqa: N818 - becomes an error where it is known in what
    """What was read is not what was written."""


def check(data: Bytes | bytes) -> tuple[int, int]:
    """Return the check of some bytes, the low end of their CRC-32, and its length in bytes."""
    size = 4 if len(data) >= _LONG_CHECK else 2
    return zlib.crc32(bytes(data)) & (1 << 8 * size) - 1, size


def code_check(coder: Ints, buffer: Bytes, data: Bytes) -> None:
    """Code the check of some bytes; when decoding, compare it.

    Raises:
        Damage: It is another one, or the buffer ended.
    """
    value, size = check(data)
    found = code_uniform(coder, buffer, value, size)
    if overrun(coder):
        raise Damage("the file ends in it")
    if found != value:
        raise Damage("its checksum is not that of its bytes")


def choose(data: Bytes, bits: int, layout: Layout, *, mixed: bool) -> Mode:
    """Return the mode in which a payload takes the fewest bytes, by trying."""
    best, least = Mode(model=STORED, bits=8), len(data) + 1
    for mode in candidates(len(data), bits, mixed=mixed):
        if mode.levels and dictionary_of(data, mode.bits) is None:
            continue
        buffer = np.empty(len(data) + 1, dtype=np.uint8)  # what needs more room is better stored
        coder = encoder(buffer)
        if encode(coder, buffer, data, mode, layout) and int(coder[2]) < least:
            best, least = mode, int(coder[2])
    return best


def encode(coder: Ints, buffer: Bytes, data: Bytes, mode: Mode, layout: Layout) -> bool:
    """Write a payload.

    Args:
        coder: Of `range_coder`, encoding.
        buffer: What the coder writes.
        data: `[length]`: the bytes of the payload.
        mode: How.
        layout: Where the neighbours of a number are.

    Returns:
        Whether the buffer was long enough.
    """
    code_uniform(coder, buffer, mode.to_byte(), 1)
    if mode.levels:
        found = dictionary_of(data, mode.bits)
        assert found is not None, "the mode fits the payload"
        levels, places = found
        code_uniform(coder, buffer, len(levels) - 1, 1)
        _code_planes(coder, buffer, levels.view(np.uint8).copy(), mode.bits, 1)
        return _code_symbols(coder, buffer, places, mode.model, 8, layout)
    return _code_symbols(coder, buffer, data.copy(), mode.model, mode.bits, layout)


def decode(coder: Ints, buffer: Bytes, length: int, layout: Layout) -> Bytes:
    """Read a payload of `length` bytes.

    Raises:
        Damage: There is none.
    """
    try:
        mode = Mode.from_byte(code_uniform(coder, buffer, 0, 1))
    except ValueError as error:
        raise Damage(str(error)) from error
    if length * 8 % mode.bits:
        raise Damage(f"{length} bytes are no numbers of {mode.bits} bits")
    width = mode.bits // 8
    data = np.zeros(length // width if mode.levels else length, dtype=np.uint8)
    if not mode.levels:
        if not _code_symbols(coder, buffer, data, mode.model, mode.bits, layout):
            raise Damage("the file ends in it")
        return data
    levels = np.zeros((code_uniform(coder, buffer, 0, 1) + 1) * width, dtype=np.uint8)
    if not _code_planes(coder, buffer, levels, mode.bits, 1) or not _code_symbols(
        coder, buffer, data, mode.model, 8, layout
    ):
        raise Damage("the file ends in it")
    numbers = levels.view(f"<u{width}")
    if data.max(initial=0) >= len(numbers):
        raise Damage("it has levels that are not in its list")
    return numbers[data].view(np.uint8)


def _code_symbols(coder: Ints, buffer: Bytes, data: Bytes, model: int, bits: int, layout: Layout) -> bool:
    if model == CODES:
        codes = symbols(data, bits)
        centre = code_uniform(coder, buffer, _most_frequent(codes), 1)
        whole = bool(code_codes(coder, buffer, codes, centre, layout.inner, layout.row, table_bits(len(codes))))
        data[:] = unsymbols(codes, bits)
        return whole
    if model == STORED:
        return bool(code_stored(coder, buffer, data))
    if model != TABLES:
        return _code_planes(coder, buffer, data, bits, layout.row)
    if bits > 8:
        width = bits // 8
        turned = reversed_bytes(data, width)
        whole = bool(code_tables(coder, buffer, turned, width, 8, 0))
        data[:] = reversed_bytes(turned, width)
        return whole
    centre = code_uniform(coder, buffer, _most_frequent(symbols(data, bits)), 1)
    return bool(code_tables(coder, buffer, data, 1, bits, centre))


def _code_planes(coder: Ints, buffer: Bytes, data: Bytes, bits: int, row: int) -> bool:
    width = bits // 8
    turned = reversed_bytes(data, width)
    whole = bool(code_bytes(coder, buffer, turned, 0, 0, width, row, table_bits(len(data))))
    data[:] = reversed_bytes(turned, width)
    return whole


def _most_frequent(codes: Bytes) -> int:
    return int(np.argmax(np.bincount(codes, minlength=256)))
