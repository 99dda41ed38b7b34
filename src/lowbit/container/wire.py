"""Where the numbers are in the bytes of an ONNX model: as much of protobuf and of `onnx.proto` as that takes.

A model is its structure, which is everything but the numbers, and the numbers. The structure keeps the lengths of what
was taken out, so that it alone tells where everything belongs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SMALLEST", "Payload", "Split", "Tensor", "join", "read_varint", "split", "varint", "walk"]

SMALLEST = 32
"""Bytes from which on numbers are taken out of the structure; fewer are compressed with it."""

_LEAST_ATTRIBUTE = 19
"""Bytes that an attribute has at least if its tensor has numbers to be taken out, or has them in another file."""
_DEPTH = 100
_CHILDREN = {
    "model": {7: "graph", 14: "property", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_NUMBERS = {4: 32, 5: 0, 7: 0, 9: None, 10: 64, 11: 0}
"""Fields of TensorProto that hold numbers: their bits, 0 if varints, None if the type says."""
_EXTERNAL = 1
_PACKED_TEXTS = (b"lowbit.plan",)
"""Keys of the model's metadata whose texts are base64, most likely, and taken out too."""
_BASE64 = 6


@dataclass(slots=True, kw_only=True)
class Tensor:
    """One TensorProto.

    Attributes:
        name: Its own, or that of what its node computes.
        dims: Its shape.
        data_type: Of `TensorProto.DataType`.
        external: Its `external_data`, if its data are in another file.
    """

    name: str
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    is_external: bool = False
    external: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Numbers that are taken out of the structure.

    Attributes:
        tensor: What they belong to.
        start: First byte in the structure behind which they go.
        length: In bytes.
        bits: Of one number, 0 if they are of different lengths, 6 if they are a text in base64; None if the type says.
    """

    tensor: Tensor
    start: int
    length: int
    bits: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A model taken apart.

    Attributes:
        structure: What is left without the numbers.
        payloads: What was taken out, in the order of the file; `start` is that in the model.
        tensors: All of them.
        numbers: For each payload its bytes.
    """

    structure: bytes
    payloads: list[Payload]
    tensors: list[Tensor]
    numbers: list[memoryview]


class _Walk:
    """Position in a model or in its structure; `removed` is how much less the structure has before it."""

    def __init__(self, data: bytes | memoryview, *, whole: bool) -> None:
        self.data = data
        self.size = len(data)
        self.whole = whole
        self.position = 0
        self.removed = 0
        self.payloads: list[Payload] = []
        self.tensors: list[Tensor] = []

    @property
    def place(self) -> int:
        return self.position + self.removed

    def varint(self) -> int:
        position = self.position
        if position < self.size and (byte := self.data[position]) < 128:
            self.position = position + 1
            return byte
        value, self.position = read_varint(self.data, position)
        return value

    def bytes(self, length: int) -> bytes:
        start = self.position
        self.skip(length)
        return bytes(self.data[start : self.position])

    def skip(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            raise ValueError("the bytes end too early")

    def message(self, kind: str, end: int | None, label: str, depth: int) -> Tensor | None:
        if depth > _DEPTH:
            raise ValueError(f"messages are nested more than {_DEPTH} deep")
        children = _CHILDREN.get(kind, {})
        tensor = Tensor(name=label) if kind == "tensor" else None
        if tensor is not None:
            self.tensors.append(tensor)
        data, size = self.data, self.size
        looked_into = (2,) if kind == "node" else children
        while self.position + self.removed < end if end is not None else self.position < size:
            position = self.position
            key = data[position] if position < size else 128
            if key < 128:
                self.position = position = position + 1
            else:
                key = self.varint()
                position = self.position
            number, wire = key >> 3, key & 7
            if wire == 2:
                length = data[position] if position < size else 128
                if length < 128:
                    self.position = position + 1
                else:
                    length = self.varint()
                if tensor or number in looked_into or (number == 5 and kind == "node" and length >= _LEAST_ATTRIBUTE):
                    label = self._field(kind, number, length, label, tensor, children, depth)
                else:
                    self.skip(length)
            elif wire == 0:
                value = self.varint()
                if tensor is not None:
                    _note(tensor, number, value)
            elif wire in {1, 5}:
                self.skip(8 if wire == 1 else 4)
            else:
                raise ValueError(f"wire type {wire} is none of ONNX")
        if end is not None and self.place != end:
            raise ValueError("a message is longer than what it is in")
        return tensor

    def _take(self, tensor: Tensor, length: int, bits: int | None) -> None:
        self.payloads.append(Payload(tensor=tensor, start=self.position, length=length, bits=bits))
        if self.whole:
            self.skip(length)
        else:
            self.removed += length

    def _property(self, end: int) -> None:
        name = b""
        while self.place < end:
            key = self.varint()
            if key & 7 != 2:
                raise ValueError("an entry of metadata_props is no pair of strings")
            length = self.varint()
            if key >> 3 == 2 and name in _PACKED_TEXTS and length >= SMALLEST:
                self._take(Tensor(name=name.decode()), length, _BASE64)
            elif key >> 3 == 1:
                name = self.bytes(length)
            else:
                self.skip(length)
        if self.place != end:
            raise ValueError("an entry of metadata_props is longer than what it is in")

    def _field(
        self,
        kind: str,
        number: int,
        length: int,
        label: str,
        tensor: Tensor | None,
        children: dict[int, str],
        depth: int,
    ) -> str:
        """Read what has a length; return what tensors below are called."""
        if tensor is not None and number in _NUMBERS and length >= SMALLEST:
            self._take(tensor, length, _NUMBERS[number])
        elif kind == "model" and number == 14:
            self._property(self.place + length)
        elif tensor is not None and number == 13:
            self._entry(tensor, self.place + length)
        elif number in children:
            self.message(children[number], self.place + length, label, depth + 1)
        else:
            text = self.bytes(length)
            if tensor is not None and number == 8 and text:
                tensor.name = text.decode("utf-8", errors="replace")
            elif tensor is not None and number == 1:
                position = 0
                while position < len(text):
                    value, position = read_varint(text, position)
                    _note(tensor, 1, value)
            elif kind == "node" and number == 2:
                return text.decode("utf-8", errors="replace")
        return label

    def _entry(self, tensor: Tensor, end: int) -> None:
        pair = {1: "", 2: ""}
        while self.place < end:
            key = self.varint()
            if key & 7 != 2:
                raise ValueError("an entry of external_data is no pair of strings")
            pair[key >> 3] = self.bytes(self.varint()).decode("utf-8", errors="replace")
        tensor.external[pair[1]] = pair[2]


def _note(tensor: Tensor, number: int, value: int) -> None:
    if number == 1:
        tensor.dims.append(value)
    elif number == 2:
        tensor.data_type = value
    elif number == 14:
        tensor.is_external = value == _EXTERNAL


def read_varint(data: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return the varint at `position` and where it ends.

    Raises:
        ValueError: The bytes end in it, or it is longer than ten bytes.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("the bytes end too early")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a varint has more than ten bytes")


def varint(value: int) -> bytes:
    """Return a number that is not negative as a varint: seven bits a byte, the lowest first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def walk(structure: bytes) -> tuple[list[Payload], list[Tensor]]:
    """Return what was taken out of a structure, and all tensors of it, in the order of the file.

    Raises:
        ValueError: It is not what `split` makes.
    """
    found = _Walk(structure, whole=False)
    found.message("model", None, "", 0)
    return found.payloads, found.tensors


def split(model: bytes | memoryview) -> Split:
    """Take the numbers out of a model.

    Args:
        model: The bytes of an `.onnx` file.

    Raises:
        ModelError: The bytes are no ONNX model.
    """
    found = _Walk(model, whole=True)
    try:
        found.message("model", None, "", 0)
    except ValueError as error:
        raise ModelError("The model is not valid ONNX", cause=str(error)) from error
    view = memoryview(model)
    parts, numbers, position = [], [], 0
    for payload in found.payloads:
        parts.append(view[position : payload.start])
        position = payload.start + payload.length
        numbers.append(view[payload.start : position])
    parts.append(view[position:])
    return Split(structure=b"".join(parts), payloads=found.payloads, tensors=found.tensors, numbers=numbers)


def join(structure: bytes, payloads: Sequence[Payload], numbers: Sequence[bytes]) -> bytes:
    """Put the numbers back."""
    parts, position = [], 0
    for payload, content in zip(payloads, numbers, strict=True):
        parts += [structure[position : payload.start], content]
        position = payload.start
    return b"".join([*parts, structure[position:]])
