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
from lowbit.methods.output_error import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.data import Preprocessing

__all__ = ["model_row", "output_judge", "own_bytes", "packed_row"]

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


def output_judge(
    source: Path, samples: Any, preprocessing: Preprocessing | None, seed: int
) -> Callable[[Path], float | None]:
    """Return what says how far the outputs of a file are from those of the float model.

    Args:
        source: The float model.
        samples: Calibration samples, of which a few are looked at; `None` measures nothing.
        preprocessing: What to do to pictures.
        seed: Chooses samples.
    """
    if samples is None:
        return lambda _: None
    specs = input_specs(load_model(source))
    return OutputError(source, open_data(samples, specs, preprocessing=preprocessing, limit=_SAMPLES, seed=seed)).of
