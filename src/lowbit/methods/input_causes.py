"""Data that do not look like what a model was trained on, as far as numbers can tell.

Only a suspicion can come of it: whether red and blue are swapped, or means of two data sets confused, is invisible
here. What shows is a wrong order of magnitude, because the first layer's biases, with a BatchNorm folded into them, are
about as large as what its products with normalized inputs give.
"""

from __future__ import annotations

import math

from lowbit.plan.diagnosis import Cause

__all__ = ["constant_input", "raw_pixels", "weak_input"]

# Inputs are off by a factor of 50 to 255 where pixels were not scaled; a sound model's ratio is 0.1 to 10.
_FAR = 50.0
_BRIGHT = 16.0
_PIXEL = 255.0


def constant_input(tensor: str, low: float, high: float, *, samples: int, repeated: bool = False) -> Cause | None:
    """Tell whether an input never changes.

    Args:
        tensor: The input.
        low: Its smallest value in all samples.
        high: Its largest.
        samples: How many there were.
        repeated: Whether every sample was the same as the first.
    """
    constant = low == high
    if not constant and not (repeated and samples > 1):
        return None
    said = f"is {low:g} everywhere" if constant else "is the same in every sample"
    return Cause(
        kind="constant input",
        node="",
        tensor=tensor,
        evidence={"low": low, "high": high, "samples": samples},
        text=f"the input {tensor} {said} ({samples} samples)",
        remedy="calibrate on real data that differ from each other",
    )


def raw_pixels(
    node: str, tensor: str, *, low: float, high: float, whole: bool, signal: float, bias: float
) -> Cause | None:
    """Tell whether pixels of 0 … 255 reach a model that seems to expect small numbers.

    Args:
        node: The first layer.
        tensor: The input.
        low: Smallest value of the input.
        high: Largest value.
        whole: Whether all values are whole numbers.
        signal: Root mean square of the first layer's output without its bias.
        bias: Root mean square of that bias.
    """
    pixels = whole and low >= 0.0 and _BRIGHT < high <= _PIXEL
    if not pixels or not bias or signal < _FAR * bias:
        return None
    return Cause(
        kind="preprocessing suspected",
        node=node,
        tensor=tensor,
        evidence={"low": low, "high": high, "signal": signal, "bias": bias, "ratio": signal / bias},
        text=(
            f"{tensor} holds whole numbers {low:g} … {high:g}, and the products of the first layer ({signal:.3g}) are "
            f"{signal / bias:.0f}× its biases ({bias:.3g})"
        ),
        remedy="check the preprocessing: scale and mean of the inputs as in training",
    )


def weak_input(node: str, tensor: str, *, low: float, high: float, signal: float, bias: float) -> Cause | None:
    """Tell whether inputs are so small that the first layer hardly answers to them.

    Args:
        node: The first layer.
        tensor: The input.
        low: Smallest value of the input.
        high: Largest value.
        signal: Root mean square of the first layer's output without its bias.
        bias: Root mean square of that bias.
    """
    if not bias or signal * _FAR > bias or not math.isfinite(signal):
        return None
    return Cause(
        kind="preprocessing suspected",
        node=node,
        tensor=tensor,
        evidence={"low": low, "high": high, "signal": signal, "bias": bias, "ratio": signal / bias},
        text=(
            f"{tensor} holds {low:.3g} … {high:.3g}, and the products of the first layer ({signal:.3g}) drown in its "
            f"biases ({bias:.3g})"
        ),
        remedy="check the preprocessing: inputs may have been scaled down twice, or be expected as 0 … 255",
    )
