"""The samples that calibrate and those that judge, cut apart in the same way by every verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.data import Dataset, Preprocessing, input_specs, open_data, split_calibration
from lowbit.exceptions import DataError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from lowbit.plan.recipe import Recipe

__all__ = ["calibration_and_test"]

# Share of the samples that calibrate when no test data are given.
_CALIBRATION_SHARE = 0.8


def calibration_and_test(
    model: ir.Model,
    data: Any,
    test_data: Any,
    recipe: Recipe,
    *,
    labels: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    needed: str = "",
) -> tuple[Dataset | None, Dataset]:
    """Return calibration and test data, cut apart if only one set was given.

    Args:
        model: The cleaned model, which says what a sample is.
        data: Calibration data; `None` is random numbers to try with, or nothing to calibrate on beside `test_data`.
        test_data: Held-out data; by default a fifth of `data`.
        recipe: Says how many samples calibrate at most, and the seed of the cut.
        labels: A file of labels.
        preprocessing: What to do to images.
        needed: Why there must be data, in words; empty if there need not be any.

    Raises:
        DataError: Data are needed and missing, or do not fit the model.
        ModelError: The model has no inputs.
    """
    specs = input_specs(model)
    if not specs:
        raise ModelError("the model has no inputs", remedy="give a model that computes something from data")
    if data is None and (test_data is None or needed):
        if needed:
            raise DataError(
                "no data were given",
                cause=needed,
                remedy="give a folder, .npz or iterable of 100 samples or more; or the word 'random' to try without",
            )
        data = "random"

    def opened(source: Any, limit: int | None) -> Dataset:
        return open_data(source, specs, preprocessing=preprocessing, limit=limit, seed=recipe.seed, labels=labels)

    if test_data is not None:
        return (opened(data, recipe.samples) if data is not None else None), opened(test_data, None)
    dataset = opened(data, None)
    count = dataset.count()
    wanted = min(recipe.samples, max(round(count * _CALIBRATION_SHARE), 1)) / count
    return split_calibration(dataset, calibration=min(wanted, _CALIBRATION_SHARE), seed=recipe.seed)
