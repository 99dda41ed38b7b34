"""A decoder of `.lbz` files in plain Python, written from `docs/lbz.md` alone: slow, and for whole files only."""

from __future__ import annotations

import base64
import lzma
import math
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from typing import ClassVar

WORD = 1 << 32


def round_(x: float) -> int:
    return math.floor(x + 0.5)


RATES = [round_(65536 / (n + 1.5)) for n in range(256)]
STRETCH = [round_(math.log((i + 0.5) / (4095.5 - i)) * 2048 / 12) for i in range(4096)]
SQUASH = [min(max(round_(65536 / (1 + math.exp(-(i - 2048) * 12 / 2048))), 16), 65520) for i in range(4096)]
WIDTHS = [2, 4, 8, 16, 32, 64, 6]
TYPE_BITS = {1: 32, 4: 16, 5: 16, 6: 32, 7: 64, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16}
TYPE_BITS |= {21: 4, 22: 4, 23: 4, 25: 2, 26: 2}


class Bytes:
    """Reads blobs, or protobuf."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.range, self.code = WORD - 1, int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def _fill(self) -> None:
        while self.range < 1 << 24:
            byte = self.data[self.at] if self.at < len(self.data) else 0
            self.at += 1
            self.code, self.range = self.code << 8 | byte, self.range << 8

    def bit(self, p: int) -> int:
        bound = (self.range >> 16) * p
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.code -= bound
            self.range -= bound
        self._fill()
        return bit

    def uniform(self, count: int) -> int:
        value = 0
        for _ in range(count):
            unit = self.range >> 8
            byte = min(self.code // unit, 255)
            self.code -= unit * byte
            self.range = unit
            self._fill()
            value = value << 8 | byte
        return value


class Counter:
    def __init__(self, p: int = 32768) -> None:
        self.p, self.n, self.tag = p, 0, 0

    def learn(self, bit: int, limit: int) -> None:
        self.p += ((bit * 65535 - self.p) * RATES[self.n]) >> 16
        self.n += self.n < limit


class Weights:
    def __init__(self, inputs: int, first: int) -> None:
        self.w = [first] * inputs

    def mix(self, inputs: list[int]) -> int:
        return min(max(sum(a * b for a, b in zip(inputs, self.w, strict=True)) >> 16, -2047), 2047)

    def refine(self, inputs: list[int], z: int, bit: int, rate: int) -> None:
        e = (bit * 65535 - SQUASH[z + 2048]) * rate
        for i, x in enumerate(inputs):
            self.w[i] = min(max(self.w[i] + ((x * e + (1 << 17)) >> 18), -(1 << 20)), 1 << 20)


def table_bits(n: int) -> int:
    return min(max((16 * n).bit_length(), 12), 20)


def level(x: int) -> int:
    if x < 4:
        return x
    length = x.bit_length() - 1
    return min(2 * length + ((x >> (length - 1)) & 1), 15)


def codes_by_mixing(coder: RangeDecoder, count: int, inner: int, row: int) -> list[int]:
    centre = coder.uniform(1)
    bits = table_bits(count)
    tables: list[defaultdict[int, Counter]] = [defaultdict(Counter) for _ in range(9)]
    by_node = defaultdict(lambda: Weights(10, 8000))
    by_activity = defaultdict(lambda: Weights(10, 8000))
    column: defaultdict[int, int] = defaultdict(int)
    near = wide = 0
    values: list[int] = []

    def before(distance: int) -> int:
        return values[-distance] if len(values) >= distance else 0

    for place in range(count):
        j = place % row
        left, left2, back, up = before(1), before(2), before(inner), before(row)
        contexts = [
            0,
            level(abs(left)) * 16 + level(abs(left2)),
            level(abs(back)) * 16 + level(abs(up)),
            level(2 * abs(left) + abs(left2) + 2 * abs(back) + 2 * abs(up)),
            left + 255,
            up + 255,
            level(column[j] >> 4) * 16 + level(near >> 5),
            level(wide >> 6) * 16 + level(near >> 4),
            back + 255,
        ]
        activity = level((near >> 4) + (column[j] >> 4) + abs(up))

        def decide(node: int, contexts: list[int] = contexts, activity: int = activity) -> int:
            counters = [
                tables[i][((context * 512 + node) * 0x9E3779B1 % WORD) >> (32 - bits)]
                for i, context in enumerate(contexts)
            ]
            inputs = [STRETCH[counter.p >> 4] for counter in counters] + [256]
            sets = by_node[node], by_activity[min(node, 12), activity]
            z = [one.mix(inputs) for one in sets]
            bit = coder.bit(SQUASH[(sum(z) >> 1) + 2048])
            for counter in counters:
                counter.learn(bit, 255)
            for one, its in zip(sets, z, strict=True):
                one.refine(inputs, its, bit, 2)
            return bit

        v = 0
        if decide(0):
            below = decide(1)
            length = 0
            while length < 7 and decide(2 + length):
                length += 1
            v = 1
            for r in range(length, 0, -1):
                v = v << 1 | decide(256 + ((v << r) | (1 << r >> 1)))
            v = min(max(-v if below else v, -centre), 255 - centre)
        values.append(v)
        column[j] += ((abs(v) << 6) - column[j]) >> 2
        near += ((abs(v) << 8) - near) >> 3
        wide += ((abs(v) << 8) - wide) >> 6
    return [v + centre for v in values]


def hash_(x: int, salt: int) -> int:
    x = (x * 0x9E3779B1 + salt * 0x85EBCA77) % WORD
    x ^= x >> 15
    x = x * 0xC2B2AE3D % WORD
    return x ^ x >> 13


class BytesModel:
    """Bytes by mixing: of the structure (`width` 0), or of numbers."""

    def __init__(self, width: int, row: int, total: int) -> None:
        self.width, self.row, self.bits = width, row, table_bits(total)
        self.history: list[int] = []
        self.tables: list[defaultdict[int, Counter]] = [defaultdict(Counter) for _ in range(8)]
        first = 8000 if width else 20000
        self.by_bucket, self.by_node = (defaultdict(lambda: Weights(10, first)) for _ in range(2))
        self.matches = defaultdict(lambda: Counter(49152))
        self.correction: dict[tuple[int, int, int], int] = {}
        self.word = self.m = self.candidate = 0
        self.table: dict[int, int] = {}

    def at(self, i: int, otherwise: int = 0) -> int:
        return self.history[i] if i >= 0 else otherwise

    def contexts(self) -> list[int]:
        i, width = len(self.history), self.width
        if width:
            plane = i % width
            above = self.at(i - 1) if plane >= 1 else 256
            above2 = self.at(i - 2) if plane >= 2 else 256
            left, left2 = self.at(i - width, 256), self.at(i - 2 * width, 256)
            up = self.at(i - self.row * width, 256)
            values = [above, above * 257 + above2, left, up, left * 257 + above, left * 257 + left2]
            values += [i // width % self.row, 0]
            return [hash_(value, 16 * plane + 1 + n) for n, value in enumerate(values)]
        found, v = [], 0
        for o in range(1, 7):
            v = (v * 271 + self.at(i - o) + 1) % WORD
            if o != 5:
                found.append(hash_(v, o))
        return [*found, hash_(self.word, 7), hash_(self.at(i - 2) * 256 + self.at(i - 3), 8), hash_(0, 9)]

    def byte(self, coder: RangeDecoder | None, known: int = 0) -> None:
        """Read the next byte; or learn what is known, without reading."""
        i, width = len(self.history), self.width
        plane = i % width if width else 0
        contexts, node = self.contexts(), 1
        for number in range(8):
            cells, inputs = [], []
            for table, context in zip(self.tables, contexts, strict=True):
                h = hash_(context + node * 0x3D4D51CB, 11)
                cell = table[h % (1 << self.bits)]
                if cell.tag != h >> 24:
                    cell.p, cell.n, cell.tag = 32768, 0, h >> 24
                cells.append(cell)
                inputs.append(STRETCH[cell.p >> 4] * cell.n // (cell.n + (3 if width else 0)) if cell.n else 0)
            expected = None
            if self.m and (self.at(self.candidate) | 256) >> (8 - number) == node:
                expected = self.at(self.candidate) >> (7 - number) & 1
                bucket = self.m if self.m < 16 else min(15 + (self.m >> 4), 19)
                strength = STRETCH[self.matches[bucket].p >> 4]
                inputs.append(strength if expected else -strength)
            else:
                bucket = 2 * plane + (plane > 0 and self.at(i - 1) == 0) if width else 0
                inputs.append(0)
            inputs.append(256)
            sets = self.by_bucket[bucket], self.by_node[node]
            z = [one.mix(inputs) for one in sets]
            mean = sum(z) >> 1
            q = plane & 3 if width else self.at(i - 1) & 3
            key = q, node, (mean + 2112) >> 7
            correction = self.correction.get(key, SQUASH[min(128 * key[2], 4095)])
            p = min(max((3 * SQUASH[mean + 2048] + correction) >> 2, 16), 65520)
            bit = known >> (7 - number) & 1 if coder is None else coder.bit(p)
            self.correction[key] = correction + (((bit * 65535 - correction) * 2) >> 7)
            for cell in cells:
                cell.learn(bit, 255 if width else 127)
            if expected is not None:
                self.matches[bucket].learn(int(bit == expected), 255)
            for one, its in zip(sets, z, strict=True):
                one.refine(inputs, its, bit, 2 if width else 6)
            node = 2 * node + bit
        self.history.append(node & 255)
        if not width:
            self._follow(i, node & 255)

    def _follow(self, i: int, byte: int) -> None:
        letter = ord("a") <= byte | 32 <= ord("z")
        self.word = (self.word * 0x2F0B4C47 + byte + 1) % WORD if letter else 0
        if self.m and self.at(self.candidate) == byte:
            self.m, self.candidate = min(self.m + 1, 65535), self.candidate + 1
        else:
            self.m = 0
        if i >= 5:
            key = 0
            for b in range(5):
                key = (key * 271 + self.at(i - b) + 1) % WORD
            key = hash_(key, 12) % (1 << 16)
            if not self.m and self.table.get(key, 0):
                c = self.candidate = self.table[key]
                while self.m < 32 and self.m < c and self.at(c - 1 - self.m) == self.at(i - self.m):
                    self.m += 1
            self.table[key] = i + 1


def bytes_by_mixing(coder: RangeDecoder, count: int, width: int, row: int, before: bytes = b"") -> bytes:
    model = BytesModel(width, row, len(before) + count)
    for byte in before:
        model.byte(None, byte)
    for _ in range(count):
        model.byte(coder)
    return bytes(model.history[len(before) :])


class Tables:
    """The frequencies of bytes in 16 contexts."""

    def __init__(self, alphabet: list[int], bits: int, centre: int, columns: int) -> None:
        self.alphabet = alphabet
        m = 1 << (bits - 1)
        self.size = [
            sum(abs(((byte >> shift) - centre + m & 2 * m - 1) - m) for shift in range(0, 8, bits))
            for byte in range(256)
        ]
        self.count = [[0] * 256 for _ in range(16)]
        self.shared = [0] * 256
        self.start: list[dict[int, int]] = [{} for _ in range(16)]
        self.frequency: list[dict[int, int]] = [{} for _ in range(16)]
        self.next = [0] * 16
        self.near, self.column, self.j = 0, [0] * columns, 0

    def context(self) -> int:
        mean = (self.near + self.column[self.j]) >> 3 if self.column else self.near >> 2
        if mean < 8:
            c = 0
        else:
            length = mean.bit_length() - 1
            c = min(2 * length + (mean >> (length - 1) & 1) - 5, 15)
        seen = sum(self.count[c])
        if seen == self.next[c]:
            self._make(c, seen)
            self.next[c] = seen + min(max(seen, 16), 4096)
        return c

    def _make(self, c: int, own: int) -> None:
        k = len(self.alphabet)
        g = 2 if c == 0 else ((5 + 2 * ((c + 5) & 1)) << ((c + 5) >> 1)) >> 2
        fall = [1 << 24]
        for _ in range(128):
            fall.append(fall[-1] * g // (g + 16))
        share = (24576 << 32) // (1 + sum(fall[self.size[b]] for b in self.alphabet))
        pooled = (16 << 32) // (sum(self.shared) + 8)
        scale = ((32768 - k) << 32) // ((own + 112) << 8)
        frequency = {}
        for b in self.alphabet:
            weight = (self.count[c][b] << 8) + (fall[self.size[b]] * share >> 32)
            weight += ((self.shared[b] << 8) + 2048 // k) * pooled >> 32
            frequency[b] = 1 + (weight * scale >> 32)
        frequency[max(self.alphabet, key=lambda b: (frequency[b], -b))] += 32768 - sum(frequency.values())
        self.frequency[c], at = frequency, 0
        for b in self.alphabet:
            self.start[c][b] = at
            at += frequency[b]

    def saw(self, c: int, byte: int) -> None:
        self.count[c][byte] += 1
        self.shared[byte] += 1
        self.near += ((self.size[byte] << 6) - self.near) >> 3
        if self.column:
            self.column[self.j] += ((self.size[byte] << 6) - self.column[self.j]) >> 2
            self.j = (self.j + 1) % len(self.column)


def stream_of_bytes(blobs: Bytes, n: int, bits: int = 8, row: int = 0) -> bytes:
    if n == 0:
        return b""
    (kind,) = blobs.take(1)
    if kind == 0:
        value = blobs.take(1)
        blobs.take(n >> 16)
        return value * n
    if kind == 1:
        return blobs.take(n)
    centre, k = blobs.take(1)[0], blobs.take(1)[0] + 1
    if kind == 3:
        (first,) = blobs.take(1)
        alphabet = sorted((first + i) % 256 for i in range(k))
    elif k < 31:
        alphabet = list(blobs.take(k))
    else:
        members = blobs.take(32)
        alphabet = [b for b in range(256) if members[b >> 3] >> (b & 7) & 1]
    tables = Tables(alphabet, bits, centre, min(row, n))
    found = bytearray()
    while len(found) < n:
        words = blobs.varint()
        states = [int.from_bytes(blobs.take(8), "little") for _ in range(4 if n >= 16384 else 1)]
        block = Bytes(blobs.take(4 * words))
        for i in range(min(131072, n - len(found))):
            c = tables.context()
            state = states[i % len(states)]
            slot = state & 32767
            (byte,) = (b for b in alphabet if 0 <= slot - tables.start[c][b] < tables.frequency[c][b])
            state = tables.frequency[c][byte] * (state >> 15) + slot - tables.start[c][byte]
            if state < 1 << 31:
                state = state << 32 | int.from_bytes(block.take(4), "little")
            states[i % len(states)] = state
            tables.saw(c, byte)
            found.append(byte)
        assert block.at == 4 * words
        assert set(states) == {1 << 31}
    return bytes(found)


def planes_in_blobs(blobs: Bytes, count: int, width: int, row: int) -> list[int]:
    """Return numbers."""
    highest = stream_of_bytes(blobs, count, 8, row)
    numbers = [byte << 8 * (width - 1) for byte in highest]
    groups = [[i for i in range(count) if highest[i]], [i for i in range(count) if not highest[i]]]
    for group in groups if all(groups) else [list(range(count))]:
        for plane in range(1, width):
            for i, byte in zip(group, stream_of_bytes(blobs, len(group)), strict=True):
                numbers[i] |= byte << 8 * (width - 1 - plane)
    return numbers


@dataclass
class Tensor:
    dims: list[int] = field(default_factory=list)
    type: int = 0
    location: int = 0
    external: dict[bytes, bytes] = field(default_factory=dict)


@dataclass
class Walk:
    """A walk through the structure."""

    structure: Bytes
    removed: int = 0
    payloads: list[tuple[int, int, Tensor]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    INTO: ClassVar[dict[str, dict[int, str]]] = {
        "model": {7: "graph", 14: "entry", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "function": {7: "node", 11: "attribute"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {13: "pair"},
    }

    def message(self, kind: str, end: int | None = None, tensor: Tensor | None = None) -> None:
        if kind == "tensor":
            tensor = Tensor()
            self.tensors.append(tensor)
        pair = {1: b"", 2: b""}
        while self.structure.at < len(self.structure.data) if end is None else self.structure.at + self.removed < end:
            key = self.structure.varint()
            number, wire = key >> 3, key & 7
            if wire == 0:
                value = self.structure.varint()
                if tensor and kind == "tensor":
                    tensor.dims += [value] if number == 1 else []
                    tensor.type = value if number == 2 else tensor.type
                    tensor.location = value if number == 14 else tensor.location
            elif wire == 2:
                length = self.structure.varint()
                if length >= 32 and (
                    (kind == "tensor" and number in {4, 5, 7, 9, 10, 11})
                    or (kind == "entry" and number == 2 and pair[1] == b"lowbit.plan")
                ):
                    self.payloads.append((self.structure.at, length, tensor or Tensor()))
                    self.removed += length
                elif number in self.INTO.get(kind, {}) and (kind != "node" or length >= 19):
                    self.message(self.INTO[kind][number], self.structure.at + self.removed + length, tensor)
                else:
                    text = self.structure.take(length)
                    pair[number] = text
                    if tensor and kind == "tensor" and number == 1:
                        packed = Bytes(text)
                        while packed.at < length:
                            tensor.dims.append(packed.varint())
            else:
                self.structure.take({1: 8, 5: 4}[wire])
        if kind == "pair" and tensor:
            tensor.external[pair[1]] = pair[2]


def shape_of(tensor: Tensor) -> tuple[int, int]:
    """Return `inner` and `row`."""
    if len(tensor.dims) < 2 or not 0 < math.prod(tensor.dims) <= 1 << 40:
        return 1, 1
    return math.prod(tensor.dims[2:]), math.prod(tensor.dims[1:])


def little_endian(numbers: list[int], width: int) -> bytes:
    return b"".join(number.to_bytes(width, "little") for number in numbers)


def payload(coder: RangeDecoder, blobs: Bytes, n: int, tensor: Tensor) -> bytes:
    mode = coder.uniform(1)
    model, bits = mode & 3, WIDTHS[mode >> 2 & 7]
    levels, rotated, columns = mode >> 5 & 1, mode >> 6 & 1, mode >> 7
    inner, row = shape_of(tensor)
    width, count = bits // 8, 8 * n // bits
    if model == 3:
        return blobs.take(n) if bits == 8 else base64.b64encode(blobs.take(blobs.varint()))

    def unrotated(numbers: list[int]) -> list[int]:
        return [x >> 1 | (x & 1) << (bits - 1) for x in numbers] if rotated else numbers

    if model == 0:
        if bits <= 8:
            row = row * bits // 8 if row * bits % 8 == 0 else 0
            return stream_of_bytes(blobs, n, bits, row * columns)
        if not levels:
            return little_endian(unrotated(planes_in_blobs(blobs, count, width, row * columns)), width)
        k = blobs.take(1)[0] + 1
        listed = [blobs.take(width) for _ in range(k)]
        return b"".join(listed[place] for place in stream_of_bytes(blobs, count, 8, row * columns))
    if model == 1 and not levels:
        codes = codes_by_mixing(coder, count, inner, row)
        lanes = 8 // bits
        return bytes(sum(codes[lanes * i + lane] << bits * lane for lane in range(lanes)) for i in range(n))
    if model == 1:
        k = coder.uniform(1) + 1
        turned = bytes_by_mixing(coder, k * width, width, 1)
        listed = [turned[width * i : width * i + width][::-1] for i in range(k)]
        return b"".join(listed[place] for place in codes_by_mixing(coder, count, inner, row))
    turned = bytes_by_mixing(coder, n, width, row)
    numbers = [int.from_bytes(turned[i : i + width], "big") for i in range(0, n, width)]
    return little_endian(unrotated(numbers), width)


def pieces(tensors: list[Tensor], size: int) -> list[tuple[int, Tensor]]:
    """Return the lengths of the payloads of a data file, and what they are."""
    places = []
    for tensor in tensors:
        default = -(-math.prod(tensor.dims) * TYPE_BITS.get(tensor.type, 8) // 8)
        offset = int(tensor.external.get(b"offset", b"0"))
        places.append((offset, int(tensor.external.get(b"length", default)), tensor))
    found, at = [], 0
    for offset, length, tensor in sorted(places, key=lambda place: place[:2]):
        if offset >= at and offset + length <= size and length:
            found += [(offset - at, Tensor())] * (offset > at) + [(length, tensor)]
            at = offset + length
    return found + [(size - at, Tensor())] * (size > at)


def decode(packed: bytes, dictionary: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Return a model and its data files."""
    assert packed[:4] == b"LBZ\2"
    assert zlib.crc32(packed[:-4]) == int.from_bytes(packed[-4:], "little")
    file = Bytes(packed[4:-4])
    head, length = file.varint(), file.varint()
    stream = file.take(length or len(file.data) - file.at)
    coder, blobs = RangeDecoder(stream), Bytes(file.data[file.at :])

    def checked(data: bytes) -> bytes:
        size = 2 if len(data) < 65536 else 4
        assert coder.uniform(size) == zlib.crc32(data) % 256**size
        return data

    if head & 1:
        structure = lzma.decompress(blobs.take(blobs.varint()), format=lzma.FORMAT_ALONE)
        assert len(structure) == head >> 1
    else:
        structure = bytes_by_mixing(coder, head >> 1, 0, 1, dictionary)
    checked(structure)
    walk = Walk(Bytes(structure))
    walk.message("model")
    outside: dict[str, list[Tensor]] = {}
    for tensor in walk.tensors:
        if tensor.location == 1:
            outside.setdefault(tensor.external[b"location"].decode(), []).append(tensor)
    sizes = {name: coder.uniform(7) for name in outside}
    model, at = b"", 0
    for place, size, tensor in walk.payloads:
        model += structure[at:place] + checked(payload(coder, blobs, size, tensor))
        at = place
    files = {
        name: b"".join(checked(payload(coder, blobs, size, one)) for size, one in pieces(tensors, sizes[name]))
        for name, tensors in outside.items()
    }
    assert blobs.at == len(blobs.data)
    return model + structure[at:], files
