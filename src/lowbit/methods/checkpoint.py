"""Calibration that survives an interruption: its state on disk, and what it belongs to."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import OutputError, RecipeError
from lowbit.statistics import (
    Histogram,
    Moments,
    MovingAverage,
    histogram_from_arrays,
    histogram_to_arrays,
    moments_from_arrays,
    moments_to_arrays,
    moving_average_from_arrays,
    moving_average_to_arrays,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Checkpoint", "Progressed", "learning_folder", "remove_blocks", "write_arrays"]

_EVERY_SECONDS = 5.0
_KINDS: dict[str, tuple[Any, Any]] = {
    "histograms": (histogram_to_arrays, histogram_from_arrays),
    "averages": (moving_average_to_arrays, moving_average_from_arrays),
    "means": (moments_to_arrays, moments_from_arrays),
}


@dataclass(slots=True, kw_only=True)
class Progressed:
    """The running state of a calibration: what every tensor looked like in the first `samples` samples."""

    samples: int
    histograms: dict[str, Histogram]
    averages: dict[str, MovingAverage]
    means: dict[str, Moments]


class Checkpoint:
    """Where one calibration stores its state, and continues from it.

    Args:
        path: The file, an `.npz`; it need not exist yet.
        identity: What the state depends on: model, data and tensors, as one string.

    Raises:
        RecipeError: The file belongs to another calibration, or is damaged.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self.identity = identity
        self._saved = time.monotonic()

    def load(self) -> Progressed | None:
        """Return the stored state, or `None` if there is none yet.

        Raises:
            RecipeError: The file belongs to another calibration, or is damaged.
        """
        if not self.path.exists():
            return None
        remedy = "delete the file to start over, or name another one"
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            identity, samples = str(arrays.pop("identity")), int(arrays.pop("samples"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RecipeError(
                f"the checkpoint '{self.path}' cannot be read", cause=str(error), remedy=remedy
            ) from error
        if identity != self.identity:
            raise RecipeError(
                f"the checkpoint '{self.path}' belongs to another calibration",
                cause="the model, the data or the tensors to watch differ",
                remedy=remedy,
            )
        grouped: dict[str, dict[str, dict[str, NDArray[Any]]]] = {kind: {} for kind in _KINDS}
        for name, array in arrays.items():
            kind, entry, tensor = name.split("|", 2)
            grouped[kind].setdefault(tensor, {})[entry] = array
        states = {
            kind: {tensor: from_arrays(entries) for tensor, entries in grouped[kind].items()}
            for kind, (_, from_arrays) in _KINDS.items()
        }
        return Progressed(samples=samples, **states)

    def save(self, state: Progressed, *, now: bool = False) -> None:
        """Store the state, if the last time was at least five seconds ago or it must be now.

        Raises:
            OutputError: The file cannot be written; the one before it is untouched.
        """
        if not now and time.monotonic() - self._saved < _EVERY_SECONDS:
            return
        arrays: dict[str, Any] = {"identity": np.asarray(self.identity), "samples": np.asarray(state.samples)}
        for kind, (to_arrays, _) in _KINDS.items():
            for tensor, value in getattr(state, kind).items():
                arrays.update({f"{kind}|{entry}|{tensor}": array for entry, array in to_arrays(value).items()})
        write_arrays(self.path, arrays)
        self._saved = time.monotonic()


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an `.npz`, whole or not at all.

    Raises:
        OutputError: The file cannot be written; the one before it is untouched.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"the checkpoint '{path}' cannot be written",
            cause=error.strerror or str(error),
            remedy="name a file in a folder that exists and has space",
        ) from error


def learning_folder(checkpoint: Path) -> Path:
    """Return the folder beside a checkpoint of calibration in which learned blocks are kept."""
    return checkpoint.with_name(f"{checkpoint.name}.learned")


def remove_blocks(folder: Path) -> None:
    """Delete the blocks that learning stored in a folder, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in (*folder.glob("block-*.npz"), *folder.glob("whole-*.npz")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
