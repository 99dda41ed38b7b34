"""How a picture becomes a model's input: declared once, checked when it is built, the same in calibration and test."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from lowbit.exceptions import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Preprocessing", "parse_preprocessing"]

Resize = Literal["stretch", "shorter-side", "none"]
Layout = Literal["NCHW", "NHWC"]
Color = Literal["RGB", "BGR", "GRAY"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "area"]

_EXAMPLE = "size=256,crop=224,mean=127,std=128,layout=NCHW,color=RGB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What is done to a picture, in this order: resize, crop, `(pixel * scale - mean) / std`, lay out.

    Pixels are 0 … 255 before `scale`. EfficientNet-Lite0, for example, is `Preprocessing(crop=(224, 224), mean=(127,),
    std=(128,))`; torchvision's ImageNet models are `Preprocessing(size=(256, 256), crop=(224, 224), scale=1 / 255,
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))`.

    Attributes:
        size: Height and width to resize to, None to keep the picture's.
        resize: "stretch" gives exactly `size`; "shorter-side" keeps the aspect ratio and covers `size`; "none" keeps
            the picture's size. Default: "shorter-side" if there is a crop, else "stretch".
        crop: Height and width of the centre crop, None for none.
        mean: Subtracted after `scale`; one number, or one per channel in the order of `color`.
        std: Divided by after that; one number, or one per channel.
        scale: Multiplied first, e.g. 1/255.
        layout: Axis order of the result.
        color: Channels of the result.
        interpolation: Of the resize, with antialiasing as Pillow does it.

    Raises:
        RecipeError: A value is out of its range.
    """

    size: tuple[int, int] | None = None
    resize: Resize | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    layout: Layout = "NCHW"
    color: Color = "RGB"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.resize is None:
            chosen = "none" if self.size is None else "shorter-side" if self.crop else "stretch"
            object.__setattr__(self, "resize", chosen)
        for key, kind in (("resize", Resize), ("layout", Layout), ("color", Color), ("interpolation", Interpolation)):
            if getattr(self, key) not in get_args(kind):
                raise RecipeError(
                    f"preprocessing has {key}={getattr(self, key)!r}", remedy=f"use one of {', '.join(get_args(kind))}"
                )
        for key in ("size", "crop"):
            value = getattr(self, key)
            if value is not None and (len(value) != 2 or min(value) < 1):
                raise RecipeError(f"preprocessing has {key}={value!r}", remedy="give (height, width) in pixels")
        if self.size is None and self.resize != "none":
            raise RecipeError(f"preprocessing has resize={self.resize!r} without a size", remedy="add size=224, say")
        channels = 1 if self.color == "GRAY" else 3
        for key in ("mean", "std"):
            value = getattr(self, key)
            if len(value) not in (1, channels) or not np.isfinite(value).all():
                raise RecipeError(
                    f"preprocessing has {key}={value!r} for {self.color}",
                    remedy=f"give one finite number, or one for each of the {channels} channels",
                )
        if 0 in self.std or not np.isfinite(self.scale) or self.scale == 0:
            raise RecipeError(
                f"preprocessing has std={self.std!r} and scale={self.scale!r}",
                remedy="both must be finite and not zero",
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Build it from plain values; one number may stand for a square size, and for all channels.

        Raises:
            RecipeError: A key is unknown, or a value is out of its range or of the wrong kind.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise RecipeError(f"preprocessing has the unknown keys {unknown}", remedy=f"known are {', '.join(known)}")
        return cls(**{key: _coerce(key, value) for key, value in values.items()})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Preprocessing:
        """Read it from a YAML file that holds a mapping.

        Raises:
            RecipeError: The file cannot be read, or is not such a mapping.
        """
        import yaml

        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RecipeError(f"the preprocessing file {str(path)!r} cannot be read", cause=str(error)) from error
        if not isinstance(values, dict):
            raise RecipeError(
                f"the preprocessing file {str(path)!r} is not a mapping", remedy="write lines `key: value`"
            )
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` takes back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def normalize(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the model's input for a resized and cropped picture.

        Args:
            pixels: [height, width, 3] RGB, or [height, width] grey, uint8.

        Returns:
            [1, channels, height, width] or [1, height, width, channels] float32.
        """
        channels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.color == "BGR":
            channels = channels[..., ::-1]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (channels.astype(np.float32) * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1) if self.layout == "NCHW" else values)[None]


def parse_preprocessing(text: str) -> Preprocessing:
    """Read the command line's form, e.g. `size=256,crop=224,mean=123.7,116.3,103.5,std=58,layout=NCHW`.

    A list goes on after the comma until the next `key=`; numbers may be fractions such as `1/255`, sizes `240x320`
    (height x width).

    Raises:
        RecipeError: The text is not of this form, or `from_dict` refuses it.
    """
    values: dict[str, list[str]] = {}
    key = ""
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if equals:
            key = name.strip()
            if key in values:
                raise RecipeError(f"preprocessing gives {key!r} twice in {text!r}")
            values[key] = [value.strip()]
        elif key and part.strip():
            values[key].append(part.strip())
        else:
            raise RecipeError(f"preprocessing {text!r} is not a list of key=value", remedy=f"write e.g. {_EXAMPLE}")
    return Preprocessing.from_dict({name: parts if len(parts) > 1 else parts[0] for name, parts in values.items()})


def _coerce(key: str, value: Any) -> Any:
    """Return a plain value in the type of its field."""
    if value is None or key in {"resize", "layout", "color", "interpolation"}:
        if isinstance(value, str):
            return {"layout": str.upper, "color": str.upper}.get(key, str.lower)(value)
        return value
    try:
        if key == "scale":
            return _number(value)
        parts = value.lower().split("x") if key in {"size", "crop"} and isinstance(value, str) else value
        numbers = tuple(_number(part) for part in (parts if isinstance(parts, list | tuple) else [parts]))
        if key in {"mean", "std"}:
            return numbers
        whole = tuple(int(number) for number in numbers)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise RecipeError(f"preprocessing has {key}={value!r}, which is not a number or a list of them") from error
    if whole != numbers:
        raise RecipeError(f"preprocessing has {key}={value!r}", remedy="give whole pixels")
    return cast("Any", whole * 2 if len(whole) == 1 else whole)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a truth value is not a number")
    if isinstance(value, str):
        numerator, slash, denominator = value.partition("/")
        return float(numerator) / float(denominator) if slash else float(numerator)
    return float(value)
