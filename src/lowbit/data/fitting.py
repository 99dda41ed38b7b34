"""Whether data fit an input: shape, element type, and values that are finite; and what to do where they do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir

from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.data.inputs import Dim, InputSpec

__all__ = ["convert", "fits", "is_floating", "misfit"]


def fits(shape: Sequence[int], dims: Sequence[Dim], *, free: int | None = None) -> bool:
    """Return whether a shape obeys every static dimension, but for the axis `free`."""
    return len(shape) == len(dims) and all(
        axis == free or not isinstance(dim, int) or dim == size
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True))
    )


def misfit(shape: Sequence[int], dtype: np.dtype[Any], spec: InputSpec, where: str, *, axis: int | None) -> DataError:
    """Return the error that says why a shape does not fit an input, with the likely remedy."""
    return DataError(
        f"{where} {list(shape)} {dtype}, but the model's input {spec.name!r} wants {list(spec.shape)} {spec.dtype}",
        remedy=_remedy(tuple(shape), spec.shape, axis),
    )


def _remedy(shape: tuple[int, ...], dims: tuple[Dim, ...], axis: int | None) -> str:
    def fit(*candidate: int) -> bool:
        return fits(candidate, dims, free=axis)

    if len(shape) == len(dims) == 4:
        n, a, b, c = shape
        if fit(n, c, a, b):
            return "the data are NHWC and the model is NCHW: use layout=NCHW, or array.transpose(0, 3, 1, 2)"
        if fit(n, b, c, a):
            return "the data are NCHW and the model is NHWC: use layout=NHWC, or array.transpose(0, 2, 3, 1)"
    if len(shape) == 3 and len(dims) == 4:
        n, a, b = shape
        if fit(1, b, n, a):
            return "one sample in HWC order for a CHW model: use layout=NCHW, or array.transpose(2, 0, 1)"
        if fit(1, a, b, n):
            return "one sample in CHW order for an HWC model: use layout=NHWC, or array.transpose(1, 2, 0)"
    if len(shape) == len(dims) - 1:
        if fit(*shape, 1):
            return "add the last axis: array[..., None]"
        if len(shape) > 1 and fit(shape[0], 1, *shape[1:]):
            return "add the channel axis: array[:, None]"
    if len(shape) == len(dims):
        wrong = [
            f"axis {i} is {size}, not {dim}"
            for i, (size, dim) in enumerate(zip(shape, dims, strict=True))
            if i != axis and isinstance(dim, int) and dim != size
        ]
        return ", ".join(wrong) + "; resize or crop the samples to the model's shape"
    return (
        f"give samples of rank {len(dims)} with the batch axis, or {len(dims) + 1} as [samples, …]; these have rank "
        f"{len(shape)}"
    )


def convert(array: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    """Return a copy in the input's element type after checking that its values survive.

    The copy is contiguous and writable, so that a consumer may change a feed without changing the next pass.

    Precision of floating-point data may be rounded (float64 to float32); any other change of a value is refused.

    Raises:
        DataError: A value is NaN or infinite, or would change.
    """
    if array.dtype.kind == "V" and array.dtype.itemsize == spec.dtype.itemsize:
        array = array.view(spec.dtype)  # .npy files store bfloat16 and float8 as plain bytes
    floating = is_floating(array.dtype)
    if floating and not np.isfinite(array).all():
        bad = "NaN" if np.isnan(array).any() else "infinity"
        raise DataError(
            f"{where} holds {bad} for the input {spec.name!r}",
            cause="ranges and errors cannot be computed from it",
            remedy="remove the sample, or repair what produced it",
        )
    if array.dtype != spec.dtype:
        array = _cast(array, spec, where, floating=floating)
    return np.array(array, order="C")


def _cast(array: NDArray[Any], spec: InputSpec, where: str, *, floating: bool) -> NDArray[Any]:
    if spec.dtype == np.dtype(object) and array.dtype.kind == "U":  # ONNX strings
        return array.astype(object)
    if array.dtype.kind in "OSUMmcV" and not floating:
        raise _lossy(array, spec, where)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype)
        if floating and is_floating(spec.dtype):
            same = bool(np.isfinite(cast).all())
        else:
            same = bool((cast.astype(array.dtype) == array).all())
    if not same:
        raise _lossy(array, spec, where)
    return cast


def _lossy(array: NDArray[Any], spec: InputSpec, where: str) -> DataError:
    return DataError(
        f"{where} is {array.dtype} and the model's input {spec.name!r} wants {spec.dtype}",
        cause="converting it would change its values",
        remedy=f"convert the data yourself, with array.astype({str(spec.dtype)!r}) after scaling where that is needed",
    )


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is a floating-point type, those of `ml_dtypes` included."""
    if dtype.kind != "V":
        return dtype.kind == "f"
    try:
        return onnx_ir.DataType.from_numpy(dtype).is_floating_point()
    except TypeError:
        return False
