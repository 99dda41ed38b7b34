"""Formats: an element, a granularity and a symmetry, with their text form."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.exceptions import FormatError
from lowbit.formats.element import ELEMENTS, Element, element
from lowbit.formats.granularity import Granularity, PerBlock, PerChannel, PerTensor

__all__ = ["Format", "parse_format"]

_GRAMMAR = "NAME[:per-tensor|:per-channel|:block=SIZE][:symmetric|:asymmetric][:narrow]"


@dataclass(frozen=True, slots=True)
class Format:
    """What values a tensor may take: `real = (code - zero_point) * scale`, or of a codebook `levels[code] * scale`.

    Attributes:
        element: Type of one code.
        granularity: Which elements share a scale and zero point.
        symmetric: Whether the zero point is fixed: 0 for signed integers, the middle code for unsigned ones. Floats
            and codebooks have no zero point, so that they are always symmetric whatever is passed.
        narrow: Whether the lowest code is left out, so that the codes mirror: -127 … 127. For weights only, because
            ONNX QuantizeLinear saturates at -128.

    Raises:
        FormatError: `narrow` is asked of anything but a symmetric signed integer.
    """

    element: Element
    granularity: Granularity = PerTensor()  # noqa: RUF009 -- a frozen value
    symmetric: bool = False
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.element.kind != "integer":
            object.__setattr__(self, "symmetric", True)
        if self.narrow and not (self.symmetric and self.element.signed and self.element.kind == "integer"):
            raise FormatError(
                f"A narrow range does not exist for {self.element.name}, {_symmetry(self.symmetric)}",
                cause="It leaves out the one code of a signed integer that has no opposite",
                remedy="Use a symmetric signed integer, or drop 'narrow'",
            )

    def code_range(self) -> tuple[float, float]:
        """Return the lowest and highest code (integers), finite value (floats) or level (codebooks) of `quantize`."""
        return (self.element.minimum + 1.0 if self.narrow else self.element.minimum), self.element.maximum

    def __str__(self) -> str:
        """Return the text that `parse_format` reads; the axis is the tensor's business and not part of it."""
        parts = [self.element.name]
        match self.granularity:
            case PerChannel():
                parts.append("per-channel")
            case PerBlock(size=size):
                parts.append(f"block={size}")
        if self.symmetric != self.element.signed:
            parts.append(_symmetry(self.symmetric))
        if self.narrow:
            parts.append("narrow")
        return ":".join(parts)


def parse_format(text: str, *, channel_axis: int = 0, block_axis: int | None = None) -> Format:
    """Read a format as users write it, e.g. `int8:per-channel` or `uint4:block=32:symmetric`.

    Args:
        text: An element, then any of `per-tensor` (the default), `per-channel` or `block=SIZE`; `symmetric` (the
            default of all but unsigned integers) or `asymmetric` (the default of unsigned ones); `narrow`.
        channel_axis: Axis of the channels, if the text says `per-channel`.
        block_axis: Axis that is cut into blocks, if the text says `block=`. By default the other one of the first two
            axes, which is the axis summed over in a `[out, in]` (channels 0) or `[in, out]` (channels 1) weight.

    Raises:
        FormatError: The text does not follow this grammar or contradicts itself.
    """
    name, *words = text.strip().split(":")
    which = element(name)
    if block_axis is None:
        block_axis = 1 if channel_axis == 0 else 0
    granularity: Granularity | None = None
    symmetric: bool | None = None
    narrow = False
    for word in words:
        if word in {"symmetric", "asymmetric"} and symmetric is None:
            symmetric = word == "symmetric"
        elif word == "narrow" and not narrow:
            narrow = True
        elif granularity is None:
            granularity = _granularity(word, text, channel_axis, block_axis)
        else:
            raise _malformed(text, word)
    if which.kind != "integer" and symmetric is False:
        cause = "Floats are symmetric" if which.kind == "float" else "Its levels lie as they lie"
        raise FormatError(f"{text!r} has no zero point", cause=cause, remedy="Drop ':asymmetric'")
    return Format(which, granularity or PerTensor(), which.signed if symmetric is None else symmetric, narrow)


def _granularity(word: str, text: str, channel_axis: int, block_axis: int) -> Granularity:
    if word == "per-tensor":
        return PerTensor()
    if word == "per-channel":
        return PerChannel(channel_axis)
    key, _, size = word.partition("=")
    if key == "block" and size.isdecimal():
        return PerBlock(block_axis, int(size))
    raise _malformed(text, word)


def _malformed(text: str, word: str) -> FormatError:
    return FormatError(
        f"{text!r} is not a format",
        cause=f"{word!r} is unknown, repeated or contradicts what stands before it",
        remedy=f"Write {_GRAMMAR} with one of {', '.join(ELEMENTS)}",
    )


def _symmetry(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"
