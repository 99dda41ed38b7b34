"""What a chain notes of the model after every step: bytes, zeros, distinct values, and how far its outputs are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import input_specs, open_data
from lowbit.graph import load_model
from lowbit.graph.constants import constant_array
from lowbit.methods.compression import CompressionStep
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.data import Feed, Preprocessing

__all__ = ["Faithfulness", "model_row", "own_bytes", "packed_row"]

_SAMPLES = 64


def own_bytes(model: Any) -> int | None:
    """Return the size of the user's file and its data files; `None` if there is none."""
    if not isinstance(model, (str, Path)):
        return None
    own = Path(model)
    tensors = (value.const_value for value in load_model(own).graph.initializers.values())
    outside = {own.parent / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return sum(path.stat().st_size for path in (own, *outside))


def model_row(
    name: str, path: Path, seconds: float, *, measure: Callable[[Path], float] | None, error: float | None
) -> CompressionStep:
    """Return the account of a model.

    Args:
        name: The step that made it.
        path: Its file.
        seconds: How long the step took.
        measure: The user's measure of a file.
        error: Of its outputs, beside those of the float model.
    """
    model = load_model(path)
    arrays = [constant_array(value) for value in model.graph.initializers.values()]
    weights = [array for array in arrays if array is not None and array.ndim > 1 and array.size > 1]
    return CompressionStep(
        name=name,
        bytes=path.stat().st_size,
        zeros=sum(int(np.count_nonzero(array == 0)) for array in weights) / max(sum(a.size for a in weights), 1),
        distinct=max((len(np.unique(array)) for array in weights), default=0),
        seconds=seconds,
        score=None if measure is None else measure(path),
        error=error,
    )


def packed_row(last: CompressionStep, size: int, seconds: float) -> CompressionStep:
    """Return the account of a packed file, which holds the model of the step before."""
    return dataclasses.replace(last, name="code", bytes=size, seconds=seconds)


class Faithfulness:
    """How far the outputs of models are from those of the float model, on some samples.

    Args:
        source: The float model.
        samples: Calibration samples; `None` measures nothing.
        preprocessing: What to do to pictures.
        seed: Chooses samples.
    """

    def __init__(self, source: Path, samples: Any, preprocessing: Preprocessing | None, seed: int) -> None:
        self._feeds: list[Feed] = []
        if samples is None:
            return
        specs = input_specs(load_model(source))
        self._feeds = list(open_data(samples, specs, preprocessing=preprocessing, limit=_SAMPLES, seed=seed))
        session = open_session(source)
        self._wanted = [session.run(feed) for feed in self._feeds]

    def of(self, path: Path) -> float | None:
        """Return the root of the squared error of all float outputs over their squares; `None` without samples."""
        if not self._feeds:
            return None
        session = open_session(path)
        lost = power = 0.0
        for feed, wanted in zip(self._feeds, self._wanted, strict=True):
            for exact, found in zip(wanted, session.run(feed), strict=True):
                if exact.dtype.kind == "f":
                    lost += float(np.square(found.astype(np.float64) - exact).sum())
                    power += float(np.square(exact.astype(np.float64)).sum())
        return float(np.sqrt(lost / max(power, 1e-30)))
