"""The `.lbz` file: a model's structure and numbers in one stream, with checks; `docs/lbz.md` specifies it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container import payload as coding
from lowbit.container.bytes_model import code_bytes, table_bits
from lowbit.container.dictionary import dictionary
from lowbit.container.files import locations, pieces
from lowbit.container.numbers import BITS, dictionary_of, layout
from lowbit.container.payload import Damage
from lowbit.container.range_coder import code_uniform, decoder, encoder, finish
from lowbit.container.wire import join, read_varint, split, varint, walk
from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.container.numbers import Mode
    from lowbit.container.wire import Tensor

__all__ = ["Part", "Unpacked", "pack", "unpack"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAGIC = b"LBZ"
VERSION = 1
_CHECK = 4
_STRUCTURE_RATIO = 1 << 12
_RATIO = 1 << 18
"""Bytes that one byte of a file can stand for at most; what claims more is refused before memory is taken for it."""
_ALL_MIXED = 5_000_000
"""Decisions, one to two seconds' worth, that a whole model may take to be coded by mixing; ..."""
_SHARE_MIXED = 256
"""... beyond that, the smallest of its tensors, for this part of the decisions, so that tables set the pace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one tensor became.

    Attributes:
        name: Of the tensor; of the data file for what is between its tensors.
        mode: How it was coded.
        bytes: Before.
        packed: After, to a byte.
    """

    name: str
    mode: Mode
    bytes: int
    packed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A model as it was.

    Attributes:
        model: The bytes of the `.onnx` file.
        files: Those of each data file, by its location relative to the model.
    """

    model: bytes
    files: dict[str, bytes]


def pack(
    model: bytes,
    files: Callable[[str], bytes | memoryview],
    *,
    smallest: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> tuple[bytes, list[Part]]:
    """Return an `.lbz` file, the same bytes every time, and what became of each tensor.

    Args:
        model: The bytes of an `.onnx` file.
        files: Gives the bytes of a data file by its location.
        smallest: Whether everything is coded by mixing, however long that takes.
        advance: Called after every tensor.

    Raises:
        ModelError: It is no ONNX model, or its data files have forbidden names.
    """
    structure, numbers = split(model)
    payloads, tensors = walk(structure)
    contents = {location: files(location) for location in locations(tensors)}
    jobs: list[tuple[Tensor, int, Bytes]] = [
        (item.tensor, _bits(item.tensor, item.bits), np.frombuffer(content, dtype=np.uint8))
        for item, content in zip(payloads, numbers, strict=True)
    ]
    for location, content in contents.items():
        for piece in pieces(tensors, location, len(content)):
            view = memoryview(content)[piece.start : piece.start + piece.length]
            jobs.append((piece.tensor, _bits(piece.tensor, None), np.frombuffer(view, dtype=np.uint8)))
    mixed = _mixed([_decisions(bits, data) for _, bits, data in jobs], smallest=smallest)
    # Not more than 16 bits for a bit of the structure, and for a byte of what tables code.
    room = 16 * len(structure) + 4096 + sum(3 * len(data) + 8192 for _, _, data in jobs)
    buffer = np.empty(room, dtype=np.uint8)
    coder = encoder(buffer)
    _code_structure(coder, buffer, np.frombuffer(structure, dtype=np.uint8))
    for content in contents.values():
        code_uniform(coder, buffer, len(content), 7)
    parts = []
    for (tensor, bits, data), mix in zip(jobs, mixed, strict=True):
        shape = layout(tensor.dims)
        before = int(coder[2])
        mode = coding.choose(data, bits, shape, mixed=mix)
        whole = coding.encode(coder, buffer, data, mode, shape)
        assert whole, "the buffer has room"
        coding.code_check(coder, buffer, data)
        parts.append(Part(name=tensor.name, mode=mode, bytes=len(data), packed=int(coder[2]) - before))
        advance()
    stream = buffer[: finish(coder, buffer)].tobytes()
    packed = MAGIC + bytes([VERSION]) + varint(len(structure)) + stream
    return packed + zlib.crc32(packed).to_bytes(_CHECK, "little"), parts


def unpack(packed: bytes, label: str = "The file", *, advance: Callable[[], None] = lambda: None) -> Unpacked:
    """Return the model of an `.lbz` file.

    Args:
        packed: The bytes of the file.
        label: What errors call it.
        advance: Called after every tensor.

    Raises:
        ModelError: It is no such file, of a later version, or damaged; the error says which tensor is.
    """
    if packed[:3] != MAGIC:
        raise ModelError(
            f"{label} is not an .lbz file",
            cause=f"It does not start with {MAGIC.decode()}",
            remedy="Give a file that `lowbit pack` wrote",
        )
    if len(packed) > 3 and packed[3] != VERSION:
        raise ModelError(
            f"{label} has version {packed[3]} of the .lbz format",
            cause=f"This lowbit reads version {VERSION}",
            remedy="Update lowbit, or copy the file again",
        )
    # NOTE: what the check of the whole file does not cover is read only to find where the damage is.
    intact = zlib.crc32(packed[:-_CHECK]).to_bytes(_CHECK, "little") == packed[-_CHECK:]
    model, files = _read(packed, label, advance if intact else lambda: None)
    if not intact:
        raise _damaged(label, "The end", "its checksum is not that of its bytes")
    return Unpacked(model=model, files=files)


def _read(packed: bytes, label: str, advance: Callable[[], None]) -> tuple[bytes, dict[str, bytes]]:
    try:
        length, position = read_varint(packed, 4)
        _check_length(length, _STRUCTURE_RATIO * len(packed))
        buffer = np.frombuffer(packed[position:-_CHECK], dtype=np.uint8).copy()
        coder = decoder(buffer)
        structure = _code_structure(coder, buffer, np.zeros(length, dtype=np.uint8)).tobytes()
        payloads, tensors = walk(structure)
        names = locations(tensors)
    except (Damage, ValueError) as error:
        raise _damaged(label, "The model's structure", str(error)) from error
    sizes = {name: code_uniform(coder, buffer, 0, 7) for name in names}
    read = _Reader(packed=packed, label=label, coder=coder, buffer=buffer, advance=advance)
    model = join(structure, payloads, [read.numbers(item.tensor, item.length) for item in payloads])
    files = {
        name: b"".join(read.numbers(piece.tensor, piece.length) for piece in pieces(tensors, name, size))
        for name, size in sizes.items()
    }
    return model, files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    packed: bytes
    label: str
    coder: Ints
    buffer: Bytes
    advance: Callable[[], None]

    def numbers(self, tensor: Tensor, length: int) -> bytes:
        try:
            _check_length(length, _RATIO * len(self.packed))
            data = coding.decode(self.coder, self.buffer, length, layout(tensor.dims))
            coding.code_check(self.coder, self.buffer, data)
        except Damage as error:
            raise _damaged(self.label, f"Tensor {tensor.name!r}", str(error)) from error
        self.advance()
        return data.tobytes()


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise Damage(f"it cannot have {length:,} bytes")


def _code_structure(coder: Ints, buffer: Bytes, structure: Bytes) -> Bytes:
    known = dictionary()
    history = np.concatenate([known, structure])
    if not code_bytes(coder, buffer, history, 0, len(known), 0, 1, table_bits(len(history))):
        raise Damage("the file ends in it")
    coding.code_check(coder, buffer, history[len(known) :])
    return history[len(known) :]


def _damaged(label: str, what: str, cause: str) -> ModelError:
    return ModelError(f"{what} of {label} is damaged", cause=cause, remedy="Copy or download the file again")


def _bits(tensor: Tensor, bits: int | None) -> int:
    return BITS.get(tensor.data_type, 8) if bits is None else bits


def _mixed(decisions: list[int], *, smallest: bool) -> list[bool]:
    """Return which payloads may be coded by mixing, from the decisions that each would take."""
    total = sum(decisions)
    left = total if smallest or total <= _ALL_MIXED else max(total // _SHARE_MIXED, _ALL_MIXED // 64)
    found = [False] * len(decisions)
    for number in sorted(range(len(decisions)), key=lambda number: (decisions[number], number)):
        left -= decisions[number]
        found[number] = left >= 0
    return found


def _decisions(bits: int, data: Bytes) -> int:
    """Estimate how many decisions it takes to mix a payload: few where most numbers are the same."""
    if bits in {16, 32, 64} and len(data) * 8 % bits == 0:
        if dictionary_of(data, bits) is None:
            return 8 * len(data)
        numbers = data.view(f"<u{bits // 8}")
        return len(numbers) + 8 * int(np.count_nonzero(numbers))
    return len(data) + 8 * int(np.count_nonzero(data))
