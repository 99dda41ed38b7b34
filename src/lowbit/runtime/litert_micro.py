"""LiteRT for Microcontrollers, in a process of its own: its interpreter writes to stderr and may end its process."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["MicroRun", "micro_is_installed", "run_micro", "run_micro_each"]

_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
# Far more than any microcontroller has.
_LARGEST_ARENA = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroRun:
    """What the microcontroller's interpreter did.

    Attributes:
        arena: Bytes of tensor arena that the model took.
        outputs: For every sample, its outputs in the file's order.
    """

    arena: int
    outputs: tuple[list[NDArray[Any]], ...]


def micro_is_installed() -> bool:
    """Whether the package `tflite-micro` is there."""
    return importlib.util.find_spec("tflite_micro") is not None


def run_micro(model: bytes, feeds: Sequence[Sequence[NDArray[Any]]] = (), *, arena: int | None = None) -> MicroRun:
    """Load a `.tflite` file in the microcontroller's interpreter, measure its arena, and run samples.

    Args:
        model: The file's bytes.
        feeds: Samples, one array per input.
        arena: Bytes that the interpreter gets; more than enough by default.

    Raises:
        EngineError: The package is not installed, or the interpreter refuses the model or a sample.
    """
    return run_micro_each([model], [feeds], arena=arena)[0]


def run_micro_each(
    models: Sequence[bytes], feeds: Sequence[Sequence[Sequence[NDArray[Any]]]], *, arena: int | None = None
) -> tuple[MicroRun, ...]:
    """Do the same with several files in one process, each with samples of its own; arguments as of `run_micro`."""
    if not micro_is_installed():
        raise EngineError("tflite-micro is not installed", remedy='pip install "lowbit[litert]" on Linux and x86')
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        root = Path(folder)
        for number, (model, samples) in enumerate(zip(models, feeds, strict=True)):
            (root / f"{number}.tflite").write_bytes(model)
            for sample, feed in enumerate(samples):
                np.savez(root / f"{number}.{sample}.feed.npz", *feed)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__, folder, str(arena or _LARGEST_ARENA)]
        command += [str(len(samples)) for samples in feeds]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - ours
        totals = _TOTAL.findall(done.stderr)
        if done.returncode != 0 or len(totals) != len(models):
            lines = [line for line in done.stderr.strip().splitlines() if not line.startswith(("Traceback", " ", "["))]
            raise EngineError(
                "tflite-micro refuses the model",
                cause=" ".join(lines[:2]) if lines else f"its process ended with {done.returncode}",
            )
        return tuple(
            MicroRun(
                arena=int(total),
                outputs=tuple(_arrays(root / f"{number}.{sample}.out.npz") for sample in range(len(samples))),
            )
            for number, (total, samples) in enumerate(zip(totals, feeds, strict=True))
        )


def _arrays(path: Path) -> list[NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files]


def _main(folder: str, arena: str, *counts: str) -> None:
    """Do the work of `run_micro_each` in this process."""
    from tflite_micro.python.tflite_micro import runtime
    from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

    root = Path(folder)
    for number, count in enumerate(counts):
        model = (root / f"{number}.tflite").read_bytes()
        outputs = schema.Model.GetRootAs(model, 0).Subgraphs(0).OutputsLength()
        interpreter = runtime.Interpreter.from_bytes(model, arena_size=int(arena))
        interpreter.print_allocations()
        for sample in range(int(count)):
            for index, array in enumerate(_arrays(root / f"{number}.{sample}.feed.npz")):
                interpreter.set_input(array, index)
            interpreter.invoke()
            found = [np.array(interpreter.get_output(index)) for index in range(outputs)]
            np.savez(root / f"{number}.{sample}.out.npz", *found)


if __name__ == "__main__":
    _main(*sys.argv[1:])
