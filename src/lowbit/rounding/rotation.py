"""Rotations that spread outliers over all channels, `x W = (x R) (Rᵀ W)` for any orthogonal `R`.

Hadamard matrices with random signs, as in QuIP# (Tseng et al., 2024) and QuaRot (Ashkboos et al., 2024): of all
rotations they leave least of a single large channel in any one place. A rotation passes through nothing that acts on
channels one by one, so that graphs allow it in few places only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exceptions import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["hadamard_rotation", "mean_keeping_rotation", "random_rotation"]


def hadamard_rotation(channels: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a Hadamard matrix with random signs; in blocks, where no power of two is the number of channels.

    Args:
        channels: How many channels there are; blocks are as large as its largest factor that is a power of two.
        seed: Seed of the signs.

    Returns:
        `[C, C]` float64, orthogonal.

    Raises:
        FormatError: There is no channel.
    """
    if channels < 1:
        raise FormatError(f"There is no rotation of {channels} channels", remedy="Pass at least one")
    size = channels & -channels
    block = np.ones((1, 1))
    while len(block) < size:  # Sylvester's construction
        block = np.block([[block, block], [block, -block]])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], channels)
    rotation: NDArray[np.float64] = np.kron(np.eye(channels // size), block / np.sqrt(size)) * signs[:, None]
    return rotation


def mean_keeping_rotation(channels: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a Hadamard rotation that keeps the mean of the channels, so that a LayerNormalization commutes with it.

    It is `hadamard_rotation`, followed by the reflection (Householder, 1958) that takes the image of the vector of
    ones back.

    Args:
        channels: How many channels there are.
        seed: Seed of the signs.

    Returns:
        `[C, C]` float64, orthogonal, with rows and columns that sum to one.

    Raises:
        FormatError: There is no channel.
    """
    rotation = hadamard_rotation(channels, seed=seed)
    ones = np.full(channels, channels**-0.5)
    normal = ones @ rotation - ones
    length = float(normal @ normal)
    if length < np.finfo(np.float64).eps:
        return rotation
    return rotation - 2 / length * np.outer(rotation @ normal, normal)


def random_rotation(channels: int, *, seed: int = 0) -> NDArray[np.float64]:
    """Return a rotation drawn evenly from all (Stewart, The Efficient Generation of Random Orthogonal Matrices, 1980).

    Args:
        channels: How many channels there are.
        seed: Seed of the draw.

    Returns:
        `[C, C]` float64, orthogonal.

    Raises:
        FormatError: There is no channel.
    """
    if channels < 1:
        raise FormatError(f"There is no rotation of {channels} channels", remedy="Pass at least one")
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((channels, channels)))
    # Without the signs of the diagonal the draw is not even.
    rotation: NDArray[np.float64] = q * np.sign(np.diagonal(r))
    return rotation
