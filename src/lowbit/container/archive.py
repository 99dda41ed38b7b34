"""The `.lbz` file: a model's structure and numbers in one stream, with checks; `docs/lbz.md` specifies it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lowbit.container import payload as coding
from lowbit.container.cursor import Cursor, Damage
from lowbit.container.files import locations, pieces
from lowbit.container.numbers import kind_of, layout
from lowbit.container.range_coder import code_uniform, decoder, encoder, finish
from lowbit.container.structure import STRUCTURE_RATIO, compressed, decompressed, mix_structure
from lowbit.container.wire import join, split, varint, walk
from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.container.numbers import Kind, Mode
    from lowbit.container.wire import Tensor

__all__ = ["Part", "Unpacked", "pack", "unpack"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAGIC = b"LBZ"
VERSION = 2
_CHECK = 4
_RATIO = 1 << 20
"""Bytes that one byte of a file can stand for at most; what claims more is refused before memory is taken for it."""
_SMALL = 1 << 16
"""Bytes of a model, in all, up to which everything is tried; what is larger is coded at the pace of tables."""


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
        smallest: Whether everything is tried for a large model too, mixing above all, however long that takes.
        advance: Called after every tensor.

    Raises:
        ModelError: It is no ONNX model, or its data files have forbidden names.
    """
    found = split(model)
    structure, tensors = found.structure, found.tensors
    contents = {location: files(location) for location in locations(tensors)}
    jobs: list[tuple[Tensor, Kind, Bytes]] = [
        (item.tensor, kind_of(item.tensor.data_type, item.bits), np.frombuffer(content, dtype=np.uint8))
        for item, content in zip(found.payloads, found.numbers, strict=True)
    ]
    for location, content in contents.items():
        for piece in pieces(tensors, location, len(content)):
            view = memoryview(content)[piece.start : piece.start + piece.length]
            kind = kind_of(piece.tensor.data_type, None)
            jobs.append((piece.tensor, kind, np.frombuffer(view, dtype=np.uint8)))
    total = len(structure) + sum(len(data) for _, _, data in jobs)
    mixed = smallest or total <= _SMALL
    blobs = bytearray(b"" if mixed else compressed(structure, total) or b"")
    # Not more than 16 bits for a bit of the structure, and for a byte of what is mixed.
    room = (0 if blobs else 16 * len(structure)) + 4096
    room += sum(3 * len(data) + 8192 if mixed else 8 for _, _, data in jobs) + 8 * len(contents)
    buffer = np.empty(room, dtype=np.uint8)
    coder = encoder(buffer)
    is_compressed = len(blobs) > 0
    if not is_compressed:
        mix_structure(coder, buffer, np.frombuffer(structure, dtype=np.uint8))
    coding.code_check(coder, buffer, structure)
    for content in contents.values():
        code_uniform(coder, buffer, len(content), 7)
    parts = []
    for tensor, kind, data in jobs:
        shape = layout(tensor.dims)
        before = int(coder[2])
        choice = (coding.choose if mixed else coding.choose_tables)(data, kind, shape)
        whole = coding.encode(coder, buffer, data, choice, shape)
        assert whole, "the buffer has room"
        blobs += choice.blob
        coding.code_check(coder, buffer, data)
        size = int(coder[2]) - before + len(choice.blob)
        parts.append(Part(name=tensor.name, mode=choice.mode, bytes=len(data), packed=size))
        advance()
    stream = buffer[: finish(coder, buffer)].tobytes()
    head = varint(len(structure) << 1 | is_compressed) + varint(len(stream) if blobs else 0)
    packed = b"".join([MAGIC, bytes([VERSION]), head, stream, blobs])
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
            remedy="Update lowbit" if packed[3] > VERSION else "Pack the model again",
        )
    # NOTE: what the check of the whole file does not cover is read only to find where the damage is.
    intact = zlib.crc32(packed[:-_CHECK]).to_bytes(_CHECK, "little") == packed[-_CHECK:]
    model, files = _read(packed, label, advance if intact else lambda: None)
    if not intact:
        raise _damaged(label, "The end", "its checksum is not that of its bytes")
    return Unpacked(model=model, files=files)


def _read(packed: bytes, label: str, advance: Callable[[], None]) -> tuple[bytes, dict[str, bytes]]:
    try:
        cursor = Cursor(memoryview(packed)[4:-_CHECK])
        head, size = cursor.varint(), cursor.varint()
        length = head >> 1
        _check_length(length, STRUCTURE_RATIO * len(packed))
        stream = cursor.take(min(size, cursor.left) if size else cursor.left)
        buffer = np.frombuffer(stream, dtype=np.uint8).copy()
        coder = decoder(buffer)
        if head & 1:
            structure = decompressed(cursor, length)
        else:
            structure = mix_structure(coder, buffer, np.zeros(length, dtype=np.uint8)).tobytes()
        coding.code_check(coder, buffer, structure)
        payloads, tensors = walk(structure)
        names = locations(tensors)
    except (Damage, ValueError) as error:
        raise _damaged(label, "The model's structure", str(error)) from error
    sizes = {name: code_uniform(coder, buffer, 0, 7) for name in names}
    read = _Reader(packed=packed, label=label, coder=coder, buffer=buffer, cursor=cursor, advance=advance)
    model = join(structure, payloads, [read.numbers(item.tensor, item.length) for item in payloads])
    files = {
        name: b"".join(read.numbers(piece.tensor, piece.length) for piece in pieces(tensors, name, size))
        for name, size in sizes.items()
    }
    if cursor.left:
        raise _damaged(label, "The end", "more follows than its tensors are")
    return model, files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    packed: bytes
    label: str
    coder: Ints
    buffer: Bytes
    cursor: Cursor
    advance: Callable[[], None]

    def numbers(self, tensor: Tensor, length: int) -> bytes:
        try:
            _check_length(length, _RATIO * len(self.packed))
            data = coding.decode(self.coder, self.buffer, self.cursor, length, layout(tensor.dims))
            coding.code_check(self.coder, self.buffer, data)
        except Damage as error:
            raise _damaged(self.label, f"Tensor {tensor.name!r}", str(error)) from error
        self.advance()
        return data.tobytes()


def _check_length(length: int, most: int) -> None:
    if length > most:
        raise Damage(f"it cannot have {length:,} bytes")


def _damaged(label: str, what: str, cause: str) -> ModelError:
    return ModelError(f"{what} of {label} is damaged", cause=cause, remedy="Copy or download the file again")
