"""Calibration and verification samples, cut apart: quality is measured on data that calibration has not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from lowbit.data.dataset import Dataset

__all__ = ["split_calibration"]


def split_calibration(dataset: Dataset, *, calibration: float = 128, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Cut calibration from verification samples at random, the same way for the same seed.

    Args:
        dataset: All samples.
        calibration: How many samples calibrate, or, below 1, which fraction. A number above half
            of the samples is cut to that half, with a warning.
        seed: Chooses which.

    Returns:
        The calibration and the verification samples: disjoint, and together all, each in the order of `dataset`. A
        single sample is in both, with a warning.

    Raises:
        RecipeError: `calibration` is not a positive whole number or a fraction below 1.
    """
    if calibration <= 0 or (calibration >= 1 and calibration != int(calibration)):
        raise RecipeError(
            f"{calibration} calibration samples were asked for", remedy="give a whole number, or a fraction below 1"
        )
    count = dataset.count()
    if count < 2 * dataset.unit:
        warned = dataset.warned("there is one batch of data: quality is measured on what calibrated the model")
        return warned, warned
    if calibration < 1:
        return dataset.split(calibration, seed=seed)
    wanted = int(calibration)
    size = min(wanted, count // 2)
    chosen, rest = dataset.split_at(size, seed=seed)
    if size < wanted:
        chosen = chosen.warned(f"{size} of {count} samples calibrate, not {wanted}: half are kept for verification")
    return chosen, rest
