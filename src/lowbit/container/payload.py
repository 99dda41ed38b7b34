"""The numbers of one tensor in the file: their mode, their symbols, and their check."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container.bytes_model import code_bytes, table_bits
from lowbit.container.codes_model import code_codes
from lowbit.container.cursor import Damage
from lowbit.container.levels import levels_of
from lowbit.container.numbers import (
    BASE64,
    CODES,
    PLANES,
    STORED,
    TABLES,
    Mode,
    candidates,
    reversed_bytes,
    symbols,
    unsymbols,
)
from lowbit.container.planes import decode_planes, encode_planes, rotated_left, rotated_right
from lowbit.container.range_coder import code_uniform, encoder, overrun
from lowbit.container.streams import decode_stream, encode_stream
from lowbit.container.wire import varint

if TYPE_CHECKING:
    from lowbit.container.cursor import Cursor
    from lowbit.container.numbers import Kind, Layout

__all__ = ["Choice", "choose", "choose_tables", "code_check", "decode", "encode"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_LONG_CHECK = 1 << 16
"""Bytes from which on a check has four bytes instead of two."""
_SAMPLE = 1 << 17
"""Bytes, or an eighth if that is more, from which it is judged whether columns tell something."""
_GLIMPSE = 1 << 14
"""Bytes from which on that is asked at all."""
_COMMON = 8
"""Numbers for each of the levels, from which on they are not coded otherwise in a large model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a payload is coded, and what of it lies outside the range coder's stream."""

    mode: Mode
    blob: bytes = b""


def code_check(coder: Ints, buffer: Bytes, data: Bytes | bytes) -> None:
    """Code the check of some bytes, the low end of their CRC-32; when decoding, compare it.

    Raises:
        Damage: It is another one, or the buffer ended.
    """
    size = 4 if len(data) >= _LONG_CHECK else 2
    value = zlib.crc32(data if isinstance(data, bytes) else data.data) & (1 << 8 * size) - 1
    found = code_uniform(coder, buffer, value, size)
    if overrun(coder):
        raise Damage("the file ends in it")
    if found != value:
        raise Damage("its checksum is not that of its bytes")


def choose(data: Bytes, kind: Kind, layout: Layout) -> Choice:
    """Return the way in which a payload takes the fewest bytes, by trying all."""
    best = _stored(data, kind)
    least = len(best.blob)
    if best.mode.bits == BASE64:
        return best
    for mode in candidates(len(data), kind, layout):
        if mode.levels and levels_of(data, mode.bits) is None:
            continue
        if mode.model == TABLES:
            tried = Choice(mode=mode, blob=_tables(data, mode, layout))
            size = len(tried.blob)
        else:
            tried = Choice(mode=mode)
            buffer = np.empty(len(data) + 1, dtype=np.uint8)  # what needs more room is better stored
            coder = encoder(buffer)
            size = int(coder[2]) if _code_mixed(coder, buffer, data, mode, layout) else len(data)
        if size < least:
            best, least = tried, size
    return best


def choose_tables(data: Bytes, kind: Kind, layout: Layout) -> Choice:
    """Return a good way to code a payload with tables, looking at a part of it."""
    stored = _stored(data, kind)
    if stored.mode.bits == BASE64:
        return stored
    bits = kind.bits_in(len(data))
    mode = Mode(model=TABLES, bits=bits, rotated=kind.floats and bits >= 16)
    if bits >= 16:
        found = levels_of(data, bits)
        if found is not None and len(found[0]) * _COMMON <= len(found[1]):
            mode = Mode(model=TABLES, bits=bits, levels=True)
    highest = None
    if layout.row > 1 and len(data) >= _GLIMPSE:
        sample = data[: max(_SAMPLE, len(data) // 8 & ~7)]
        wide = replace(mode, columns=True)
        tries = [(one, _tables(sample, one, layout, only_highest=True)) for one in (mode, wide)]
        mode, highest = min(tries, key=lambda tried: len(tried[1]))
        highest = highest if len(sample) == len(data) else None
    blob = _tables(data, mode, layout, highest=highest)
    return Choice(mode=mode, blob=blob) if len(blob) < len(data) else stored


def encode(coder: Ints, buffer: Bytes, data: Bytes, choice: Choice, layout: Layout) -> bool:
    """Write what of a payload lies in the range coder's stream.

    Args:
        coder: Of `range_coder`, encoding.
        buffer: What the coder writes.
        data: `[length]`: the bytes of the payload.
        choice: How.
        layout: Where the neighbours of a number are.

    Returns:
        Whether the buffer was long enough.
    """
    code_uniform(coder, buffer, choice.mode.to_byte(), 1)
    if choice.mode.model in {TABLES, STORED}:
        return not overrun(coder)
    return _code_mixed(coder, buffer, data, choice.mode, layout)


def decode(coder: Ints, buffer: Bytes, cursor: Cursor, length: int, layout: Layout) -> Bytes:
    """Read a payload of `length` bytes.

    Raises:
        Damage: There is none.
    """
    try:
        mode = Mode.from_byte(code_uniform(coder, buffer, 0, 1))
    except ValueError as error:
        raise Damage(str(error)) from error
    if mode.bits == BASE64:
        text = base64.b64encode(cursor.take(cursor.varint()))
        if len(text) != length:
            raise Damage("it has another length")
        return np.frombuffer(text, dtype=np.uint8)
    if length * 8 % mode.bits:
        raise Damage(f"{length} bytes are no numbers of {mode.bits} bits")
    if mode.model == STORED:
        return np.frombuffer(cursor.take(length), dtype=np.uint8)
    if mode.model == TABLES:
        return _from_tables(cursor, length, mode, layout)
    if not mode.levels:
        data = np.zeros(length, dtype=np.uint8)
        if not _code_symbols(coder, buffer, data, mode, layout):
            raise Damage("the file ends in it")
        return data
    places = np.zeros(length * 8 // mode.bits, dtype=np.uint8)
    levels = np.zeros((code_uniform(coder, buffer, 0, 1) + 1) * mode.bits // 8, dtype=np.uint8)
    if not _code_levels(coder, buffer, levels, places, mode, layout):
        raise Damage("the file ends in it")
    return _of_levels(levels, places, mode.bits)


def _stored(data: Bytes, kind: Kind) -> Choice:
    if kind.bits == BASE64:
        try:
            meant = base64.b64decode(data.tobytes(), validate=True)
        except binascii.Error:
            meant = b""
        if base64.b64encode(meant) == data.tobytes():
            return Choice(mode=Mode(model=STORED, bits=BASE64), blob=varint(len(meant)) + meant)
    return Choice(mode=Mode(model=STORED, bits=8), blob=data.tobytes())


def _tables(
    data: Bytes, mode: Mode, layout: Layout, *, only_highest: bool = False, highest: bytes | None = None
) -> bytes:
    """Return a payload by tables; of planes only the highest, or with that as it is."""
    planes = mode.bits > 8 and not mode.levels
    if highest is not None and not planes:
        return highest
    row = layout.bytes_in_row(mode.bits) if mode.columns else 0
    if mode.levels:
        found = levels_of(data, mode.bits)
        assert found is not None, "the mode fits the payload"
        levels, places = found
        return bytes([len(levels) - 1]) + levels.tobytes() + encode_stream(places, 8, row)
    if planes:
        width = mode.bits // 8
        return encode_planes(data, width, row, rotated=mode.rotated, only_highest=only_highest, highest=highest)
    return encode_stream(data, mode.bits, row)


def _from_tables(cursor: Cursor, length: int, mode: Mode, layout: Layout) -> Bytes:
    row = layout.bytes_in_row(mode.bits) if mode.columns else 0
    width = mode.bits // 8
    if mode.levels:
        levels = np.frombuffer(cursor.take((cursor.byte() + 1) * width), dtype=np.uint8)
        return _of_levels(levels, decode_stream(cursor, length // width, 8, row), mode.bits)
    if mode.bits > 8:
        return decode_planes(cursor, length, width, row, rotated=mode.rotated)
    return decode_stream(cursor, length, mode.bits, row)


def _of_levels(levels: Bytes, places: Bytes, bits: int) -> Bytes:
    numbers = levels.view(f"<u{bits // 8}")
    if places.max(initial=0) >= len(numbers):
        raise Damage("it has levels that are not in its list")
    return numbers[places].view(np.uint8)


def _code_mixed(coder: Ints, buffer: Bytes, data: Bytes, mode: Mode, layout: Layout) -> bool:
    if not mode.levels:
        return _code_symbols(coder, buffer, data.copy(), mode, layout)
    found = levels_of(data, mode.bits)
    assert found is not None, "the mode fits the payload"
    levels, places = found
    code_uniform(coder, buffer, len(levels) - 1, 1)
    return _code_levels(coder, buffer, levels.view(np.uint8).copy(), places, mode, layout)


def _code_levels(coder: Ints, buffer: Bytes, levels: Bytes, places: Bytes, mode: Mode, layout: Layout) -> bool:
    _code_planes(coder, buffer, levels, Mode(model=PLANES, bits=mode.bits), 1)
    return _code_symbols(coder, buffer, places, Mode(model=CODES, bits=8), layout)


def _code_symbols(coder: Ints, buffer: Bytes, data: Bytes, mode: Mode, layout: Layout) -> bool:
    """Code numbers by mixing; when decoding, `data` is filled in."""
    if mode.model == PLANES:
        return _code_planes(coder, buffer, data, mode, layout.row)
    codes = symbols(data, mode.bits)
    centre = code_uniform(coder, buffer, int(np.argmax(np.bincount(codes, minlength=256))), 1)
    whole = bool(code_codes(coder, buffer, codes, centre, layout.inner, layout.row, table_bits(len(codes))))
    data[:] = unsymbols(codes, mode.bits)
    return whole


def _code_planes(coder: Ints, buffer: Bytes, data: Bytes, mode: Mode, row: int) -> bool:
    width = mode.bits // 8
    turned = reversed_bytes(rotated_left(data, mode.bits) if mode.rotated else data, width)
    whole = bool(code_bytes(coder, buffer, turned, 0, 0, width, row, table_bits(len(data))))
    back = reversed_bytes(turned, width)
    data[:] = rotated_right(back, mode.bits) if mode.rotated else back
    return whole
