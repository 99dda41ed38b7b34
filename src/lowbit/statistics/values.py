"""What every observer accepts: any real tensor, as finite float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lowbit.exceptions import DataError

__all__ = ["finite_bounds", "flat_float32"]


def flat_float32(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the values of a real tensor as one contiguous float32 vector, without a copy where possible.

    Args:
        values: Any shape; any float, integer or boolean dtype (float16, bfloat16 and float64 are converted).
            A float64 value beyond the range of float32 becomes infinite and is then refused by `finite_bounds`.

    Returns:
        `[n] float32`.

    Raises:
        DataError: The dtype is not real (complex, text, objects).
    """
    array = np.asarray(values)
    if array.dtype.kind in "cOSUMm":
        raise DataError(f"a tensor of dtype {array.dtype} cannot be observed", remedy="observe real tensors only")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32).reshape(-1)


def finite_bounds(vector: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return the smallest and largest value of a nonempty `[n] float32` vector.

    Raises:
        DataError: Some values are NaN or infinite as float32; the message says how many. The caller, who knows it,
            adds the name of the tensor.
    """
    # The two extremes already show every non-finite value, so that the clean case pays for no further pass.
    with np.errstate(invalid="ignore"):
        low, high = float(vector.min()), float(vector.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(vector.size - np.count_nonzero(np.isfinite(vector)))
        raise DataError(
            f"{bad} of {vector.size} observed values are NaN or infinite",
            cause="the calibration data, or the float model on them, overflow float32 or are undefined",
            remedy="check the preprocessing of the calibration data, or exclude this tensor",
        )
    return low + 0.0, high + 0.0
