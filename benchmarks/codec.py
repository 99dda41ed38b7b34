"""How small `lowbit pack` makes models, beside xz and the entropy of their codes, and how fast it gives them back.

Every file is packed and unpacked, and has to come back bit for bit. `python -m benchmarks.codec FILE.onnx …`; without
files, the models of the zoo themselves, and with `--formats` artifacts of them.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.zoo import DEFAULT_CACHE, LOADERS, ZooError, load_case
from lowbit.container import pack, unpack
from lowbit.container.wire import split

_FORMATS: dict[str, dict[str, Any]] = {
    "int8": {"method": "static"},
    "int4": {"method": "weight-only", "weights": "int4:block=32"},
    "int4-per-channel": {"method": "weight-only", "weights": "int4:per-channel"},
    "codebook16": {"method": "weight-only", "weights": "codebook16:per-channel"},
}


def entropy_bytes(data: memoryview) -> float:
    """Return the size of bytes that are coded one by one with an ideal code, which is itself not counted."""
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    shares = counts[counts > 0] / len(data)
    return float(-(shares * np.log2(shares)).sum() * len(data) / 8)


def row(path: Path, *, smallest: bool) -> list[str]:
    """Pack and unpack one file; return its row of the table."""
    model = path.read_bytes()
    _, numbers = split(model)
    packed, parts = pack(model, lambda location: (path.parent / location).read_bytes(), smallest=smallest)
    started = time.process_time()
    found = unpack(packed)
    seconds = time.process_time() - started
    if found.model != model:
        raise AssertionError(f"{path} does not come back")
    coded = sum(part.packed for part in parts)
    entropy = sum(entropy_bytes(content) for content in numbers)
    return [
        path.name,
        f"{len(model):,}",
        f"{len(packed):,}",
        f"{len(model) / len(packed):.2f}",
        f"{len(lzma.compress(model, preset=9 | lzma.PRESET_EXTREME)):,}",
        f"{len(packed) - coded:,}",
        f"{coded / entropy:.3f}" if entropy else "",
        f"{len(model) / 1e6 / seconds:.1f}",
    ]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files instead of the zoo")
    parser.add_argument("--formats", nargs="*", default=[], choices=_FORMATS, metavar="NAME")
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder for models built on first use")
    arguments = parser.parse_args()
    console = Console(width=160)
    table = Table("model", "bytes", "packed", "ratio", "xz -9e", "structure", "numbers / entropy of bytes", "MB/s back")
    with tempfile.TemporaryDirectory() as folder:
        files = list(arguments.files)
        for name in () if files else LOADERS:
            try:
                case = load_case(name, cache=arguments.cache)
            except ZooError as error:
                console.print(f"{name}: not run: {error}")
                continue
            files.append(case.model)
            files += [artifact(case, kind, Path(folder)) for kind in arguments.formats]
        for path in files:
            cells = row(path, smallest=arguments.smallest)
            table.add_row(*cells)
            console.log(*cells)
    console.print(table)


def artifact(case: Any, kind: str, folder: Path) -> Path:
    """Return an artifact of a case, built in `folder`."""
    import lowbit

    data = list(case.calibration)[:16]
    path = folder / f"{case.name}.{kind}.onnx"
    lowbit.quantize(case.model, data, test_data=data[:2], measure_seconds=0.0, **_FORMATS[kind]).save(path)
    return path


if __name__ == "__main__":
    main()
