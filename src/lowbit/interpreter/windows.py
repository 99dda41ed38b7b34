"""Where the windows of convolutions and pools lie: padding, steps and the size of what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.nn import functional

from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["Windows", "extent", "padded", "windows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Windows over the spatial axes of a tensor, one entry an axis.

    Attributes:
        kernel: Number of taps.
        strides: Steps between windows.
        dilations: Steps between taps.
        before: Padding in front.
        after: Padding behind.
        sizes: Number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Return how far the last window reaches beyond the padding behind; negative where it ends earlier."""
        return tuple(
            (count - 1) * step + extent(taps, dilation)
            for count, step, taps, dilation in zip(self.sizes, self.strides, self.kernel, self.dilations, strict=True)
        )


def extent(taps: int, dilation: int) -> int:
    """Return the number of elements from a window's first tap to its last."""
    return (taps - 1) * dilation + 1


def windows(call: Call, space: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Return where an operator's windows lie.

    Args:
        call: The operator; `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode` are read.
        space: Sizes of the spatial axes.
        kernel: Numbers of taps.

    Raises:
        ModelError: `auto_pad` is none of ONNX's words.
    """
    rank = len(kernel)
    strides = tuple(call.get("strides") or [1] * rank)
    dilations = tuple(call.get("dilations") or [1] * rank)
    pads = list(call.get("pads") or [0] * (2 * rank))
    mode = call.get("auto_pad", "NOTSET")
    if mode not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}:
        raise ModelError(f"auto_pad is {mode!r}", remedy="write NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    before, after, sizes = [], [], []
    for axis in range(rank):
        size, step, span = space[axis], strides[axis], extent(kernel[axis], dilations[axis])
        first, last = (pads[axis], pads[axis + rank]) if mode == "NOTSET" else (0, 0)
        if mode.startswith("SAME"):
            total = max((-(-size // step) - 1) * step + span - size, 0)
            small, large = total // 2, total - total // 2
            first, last = (small, large) if mode == "SAME_UPPER" else (large, small)
        room = size + first + last - span
        count = room // step + 1
        if call.get("ceil_mode", 0) and mode == "NOTSET":
            count = -(-room // step) + 1
            # A window that would start behind the input is none.
            if (count - 1) * step >= size + first:
                count -= 1
        before.append(first)
        after.append(last)
        sizes.append(max(count, 0))
    return Windows(
        kernel=tuple(kernel),
        strides=strides,
        dilations=dilations,
        before=tuple(before),
        after=tuple(after),
        sizes=tuple(sizes),
    )


def padded(x: Tensor, place: Windows, value: float, *, whole: bool = False) -> Tensor:
    """Return `x` with its padding written out.

    Args:
        x: `[N, C, *space]`.
        place: The windows.
        value: What the padding holds.
        whole: Whether to pad, or cut, to where the last window ends, rather than to the padding behind.
    """
    space = x.shape[2:]
    after = place.after
    if whole:
        after = tuple(reach - size - first for reach, size, first in zip(place.reach, space, place.before, strict=True))
    if not any(place.before) and not any(after):
        return x
    sizes = [count for pair in zip(reversed(place.before), reversed(after), strict=True) for count in pair]
    return functional.pad(x, sizes, value=value)
