"""Magika of the package magika: the type of a file from its first and last bytes, on this interpreter's own files."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np

from benchmarks.engine import open_session, run_all
from benchmarks.zoo.assets import package_file
from benchmarks.zoo.case import Case, Feed, ZooError
from benchmarks.zoo.metrics import agreement

__all__ = ["features", "load_magika"]

SIDE = 1024
BLOCK = 4096
PADDING = 256
PER_SUFFIX = 60
TEST = 400


def features(content: bytes) -> Feed:
    """Return `bytes [1, 2048] int32`: the first and the last 1024 bytes without outer white space, padded with 256."""
    first = content[:BLOCK].lstrip()[:SIDE]
    last = content[-BLOCK:].rstrip()[-SIDE:]
    row = np.full((1, 2 * SIDE), PADDING, np.int32)
    row[0, : len(first)] = np.frombuffer(first, np.uint8)
    row[0, 2 * SIDE - len(last) :] = np.frombuffer(last, np.uint8)
    return {"bytes": row}


def load_magika(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 100 files to calibrate, 400 to test, agreement of the type with float."""
    model = package_file("magika", "models/standard_v3_3/model.onnx", requirement="magika==1.0.3")
    feeds = [features(file.read_bytes()) for file in _files()]
    if len(feeds) < TEST + 100:
        raise ZooError(
            f"only {len(feeds)} files of known types below the interpreter's library, {TEST + 100} are needed"
        )
    test = feeds[100 : 100 + TEST]
    return Case(
        name="magika",
        model=model,
        calibration=feeds[:100],
        test=test,
        metric=agreement(run_all(open_session(model), test)),
        metric_name="top-1 as float",
        latency_feed=test[-1],
    )


def _files() -> list[Path]:
    """Return files of the interpreter's library and packages, at most 60 of each suffix, shuffled."""
    kinds: dict[str, list[Path]] = {}
    for root in sorted({sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("include")}):
        for file in Path(root).rglob("*"):
            if file.is_file() and not file.is_symlink() and 64 < file.stat().st_size < 4_000_000:
                kinds.setdefault(file.suffix.lower(), []).append(file)
    rng = np.random.default_rng(0)
    chosen: list[Path] = []
    for suffix in sorted(kinds):
        members = sorted(set(kinds[suffix]))
        chosen += [members[i] for i in rng.permutation(len(members))[:PER_SUFFIX]]
    return [chosen[i] for i in rng.permutation(len(chosen))]
