"""The codes of a weight that is only stored small, exactly as its entry in the plan says."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError, RecipeError
from lowbit.formats import Format, Parameters
from lowbit.methods.kept_beside import kept_beside
from lowbit.methods.weights import encode_weight, rerounded
from lowbit.plan.packed import pack_arrays, unpack_arrays, unpack_floats

if TYPE_CHECKING:
    from lowbit.methods.weights import EncodedWeight
    from lowbit.plan.plan import SitePlan
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod

__all__ = ["pack_codebook", "planned_weight"]


def planned_weight(site: Site, fmt: Format, entry: SitePlan, method: RangeMethod) -> EncodedWeight:
    """Encode the weight of a site that runs weight-only.

    Args:
        site: The site.
        fmt: Its weight format.
        entry: Its entry: how codes are rounded, which levels they are, and what is kept beside them.
        method: How ranges are chosen.

    Raises:
        RecipeError: What the plan holds cannot be read or belongs to another weight.
    """
    weight = site.weight_array()
    beside = kept_beside(entry, weight)
    rest = weight if beside is None else beside.without_outliers(weight)
    parameters = None if entry.codebook is None else _codebook(entry, fmt)
    try:
        encoded = encode_weight(
            site,
            fmt,
            saturates=False,
            method=method,
            weight=rest,
            parameters=parameters,
            scale=None if entry.scale is None else unpack_floats(entry.scale),
        )
    except FormatError as error:
        if parameters is None:
            raise
        raise _foreign(entry) from error
    encoded = rerounded(site, encoded, entry.rounding)
    return encoded if beside is None else dataclasses.replace(encoded, beside=beside)


def pack_codebook(parameters: Parameters) -> str:
    """Return learned levels and their scales for `SitePlan.codebook`."""
    assert parameters.levels is not None
    return pack_arrays(parameters.levels, parameters.scale)


def _codebook(entry: SitePlan, fmt: Format) -> Parameters:
    assert entry.codebook is not None
    levels, scale = unpack_arrays(entry.codebook, 2)
    try:
        return Parameters(scale, np.zeros(scale.shape, dtype=fmt.element.dtype), levels)
    except FormatError as error:
        raise _foreign(entry) from error


def _foreign(entry: SitePlan) -> RecipeError:
    return RecipeError(
        f"the codebook of {entry.node!r} in the plan belongs to another weight",
        remedy="make the plan again with --save-plan",
    )
