"""How small `lowbit pack` makes models, beside the entropy of their codes, and how fast it packs and unpacks them.

Every file is packed and unpacked, and has to come back bit for bit. `python -m benchmarks.codec FILE.onnx …`; without
files, the models of the zoo, and with `--formats` artifacts of them, which `--keep` leaves in a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case
from lowbit.container import pack, unpack
from lowbit.container.numbers import kind_of, symbols
from lowbit.container.wire import split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from lowbit.container.numbers import Kind

_FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"method": "static"},
    "int4": {"method": "weight-only", "weights": "int4:block=32"},
    "int4-per-channel": {"method": "weight-only", "weights": "int4:per-channel"},
    "codebook16": {"method": "weight-only", "weights": "codebook16:per-channel"},
}
_LARGE = 1 << 12
"""Bytes of a tensor from which on its entropy says what a code can reach: a hundred different numbers have one of less
than seven bits each, whatever they are."""
_QUICK = 0.2
"""Seconds of processor time below which a run is repeated, and the shortest taken."""


def entropy_bytes(symbols_: NDArray[Any]) -> float:
    """Return the size of symbols that are coded one by one with an ideal code, which is itself not counted."""
    if not symbols_.size:
        return 0.0
    counts = np.unique(symbols_, return_counts=True)[1] if symbols_.dtype != np.uint8 else np.bincount(symbols_)
    shares = counts[counts > 0] / symbols_.size
    return float(-(shares * np.log2(shares)).sum() * symbols_.size / 8)


def least_entropy(data: NDArray[np.uint8], kind: Kind) -> float:
    """Return the least of what an ideal code of order 0 makes of a tensor's numbers.

    Codes of up to 8 bits are symbols. Of wider numbers it is whichever is least: byte by byte, each byte of a number
    with a code of its own; the same of those that are not zero, and which are; or number by number with the list of
    those that occur.
    """
    bits = kind.bits_in(len(data))
    if bits <= 8:
        return entropy_bytes(symbols(data, bits))
    width = bits // 8
    numbers = data.view(f"<u{width}")
    some = numbers != 0

    def planes(chosen: NDArray[np.uint8]) -> float:
        return sum(entropy_bytes(np.ascontiguousarray(chosen[:, place])) for place in range(width))

    found = [planes(data.reshape(-1, width))]
    if not some.all():
        found.append(entropy_bytes(some.astype(np.uint8)) + planes(data.reshape(-1, width)[some]))
    if np.unique(numbers[:4096]).size <= 256:
        found.append(entropy_bytes(numbers) + width * np.unique(numbers).size)
    return min(found)


def row(path: Path, *, smallest: bool, xz: bool) -> list[str]:
    """Pack and unpack one file; return its row of the table."""
    model = path.read_bytes()

    def data_file(location: str) -> bytes:
        return (path.parent / location).read_bytes()

    seconds_in, (packed, parts) = _timed(lambda: pack(model, data_file, smallest=smallest))
    seconds_out, found = _timed(lambda: unpack(packed))
    if found.model != model or any(data != data_file(location) for location, data in found.files.items()):
        raise AssertionError(f"{path} does not come back")
    total = len(model) + sum(map(len, found.files.values()))
    taken = split(model)
    entropies = [
        least_entropy(np.frombuffer(content, dtype=np.uint8), kind_of(item.tensor.data_type, item.bits))
        for item, content in zip(taken.payloads, taken.numbers, strict=True)
    ]
    coded = sum(part.packed for part in parts)
    inside = parts[: len(entropies)]

    def excess(least: int) -> str:
        """Return how much larger numbers are than their entropy, in tensors of at least so many bytes."""
        chosen = [(part.packed, one) for part, one in zip(inside, entropies, strict=True) if part.bytes >= least]
        bound = sum(one for _, one in chosen)
        return f"{sum(size for size, _ in chosen) / bound:.3f}" if bound else ""

    cells = [
        path.stem,
        f"{total:,}",
        f"{len(packed):,}",
        f"{total / len(packed):.2f}",
        f"{len(packed) - coded:,}",
        excess(_LARGE),
        excess(0),
        f"{total / 1e6 / seconds_in:.1f}",
        f"{total / 1e6 / seconds_out:.1f}",
        "yes",
    ]
    return [*cells, f"{len(lzma.compress(model, preset=9 | lzma.PRESET_EXTREME)):,}"] if xz else cells


def _timed(run: Any) -> tuple[float, Any]:
    """Return the processor time of a run, and what it gave."""
    best = spent = float("inf")
    for count in range(5):
        started = time.process_time()
        found = run()
        spent = time.process_time() - started
        best = min(best, spent)
        if spent > _QUICK and count > 0:
            break
    return best, found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files instead of the zoo")
    parser.add_argument("--formats", nargs="*", default=[], choices=_FORMATS, metavar="NAME")
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--xz", action="store_true", help="beside xz -9e, which takes long")
    parser.add_argument("--keep", type=Path, help="folder for the artifacts; those that are there are not made again")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    arguments = parser.parse_args()
    console = Console(width=160)
    titles = ["model", "bytes", "packed", "ratio", "structure", "/ entropy", "all", "MB/s in", "MB/s out", "bit-exact"]
    table = Table(*titles, *(["xz -9e"] if arguments.xz else []))
    with contextlib.ExitStack() as opened:
        folder = arguments.keep or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for path in arguments.files or _zoo(arguments.formats, folder, arguments.cache, console):
            cells = row(path, smallest=arguments.smallest, xz=arguments.xz)
            table.add_row(*cells)
            console.log(*cells)
    console.print(table)


def _zoo(formats: list[str], folder: Path, cache: Path, console: Console) -> Iterator[Path]:
    for name in LOADERS:
        try:
            case = load_case(name, cache=cache)
        except ZooError as error:
            console.print(f"{name}: not run: {error}")
            continue
        yield case.model
        for kind in formats:
            path = folder / f"{case.name}.{kind}.onnx"
            yield path if path.exists() else artifact(case, kind, folder)


def artifact(case: Any, kind: str, folder: Path) -> Path:
    """Return an artifact of a case, built in `folder`."""
    import lowbit

    data = list(case.calibration)[:16]
    path = folder / f"{case.name}.{kind}.onnx"
    lowbit.quantize(case.model, data, test_data=data[:2], measure_seconds=0.0, **_FORMATS[kind]).save(path)
    return path


if __name__ == "__main__":
    main()
