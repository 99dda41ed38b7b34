"""Rendered text: lines and pages of which the exact words are known."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.zoo.case import Array, ZooError

__all__ = ["draw_page", "line_text", "render_line"]

FONT_FOLDER = Path("/usr/share/fonts/truetype")
FONTS = (
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSans-Bold.ttf",
    "dejavu/DejaVuSerif.ttf",
    "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSans-Italic.ttf",
    "liberation/LiberationSerif-Regular.ttf",
    "liberation/LiberationSerif-Bold.ttf",
    "liberation/LiberationMono-Regular.ttf",
)
WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())


@cache
def _font(name: str, size: int) -> Any:
    from PIL import ImageFont

    path = FONT_FOLDER / name
    if not path.exists():
        raise ZooError(f"{path} is missing; run: apt-get install fonts-dejavu fonts-liberation")
    return ImageFont.truetype(str(path), size)


def line_text(rng: np.random.Generator, *, longest: int) -> str:
    """Write a line of words, numbers, dates, prices and codes, at most `longest` characters."""
    parts: list[str] = []
    while True:
        part = _part(rng)
        if len(" ".join([*parts, part])) > longest:
            break
        parts.append(part)
    return " ".join(parts) or "total"


def _part(rng: np.random.Generator) -> str:
    kind = rng.integers(10)
    number = rng.integers(0, 10, size=8)
    digits = "".join(str(d) for d in number)
    if kind == 0:
        return f"{rng.integers(1, 29)}/{rng.integers(1, 13):02d}/{rng.integers(1990, 2030)}"
    if kind == 1:
        return f"${rng.integers(1, 2000)}.{digits[:2]}"
    if kind == 2:
        return digits[: rng.integers(2, 8)]
    if kind == 3:
        return "".join(chr(ord("A") + int(i)) for i in rng.integers(0, 26, size=2)) + "-" + digits[:4]
    word = str(WORDS[rng.integers(len(WORDS))])
    return (word, word, word.capitalize(), word.upper())[rng.integers(4)]


def render_line(rng: np.random.Generator, *, width: int, height: int = 48) -> tuple[Array, int, str]:
    """Render one line of text as a scanner or a camera would see it: any font, contrast, blur and noise.

    Args:
        rng: Source of everything random.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        Image `[height, width, 3] uint8` RGB, the number of columns that the line takes, and its text.
    """
    from PIL import Image, ImageDraw, ImageFilter

    font = _font(str(rng.choice(FONTS)), int(rng.integers(22, 35)))
    longest = int(rng.integers(4, 24))
    text = line_text(rng, longest=longest)
    while font.getlength(text) > width - 12:
        text = text[:-1].rstrip()
    left, top, right, bottom = font.getbbox(text)
    columns = min(width, int(right - left) + 12)
    dark, light = rng.integers(0, 90), rng.integers(150, 256)
    ink, paper = (dark, light) if rng.random() < 0.8 else (light, dark)
    tint = rng.integers(-25, 26, size=3)
    image = Image.new("RGB", (columns, height), tuple(int(v) for v in np.clip(paper + tint, 0, 255)))
    at = ((columns - (right - left)) / 2 - left, (height - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(at, text, fill=(int(ink), int(ink), int(ink)), font=font)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.0, 1.8))))
    pixels: Array = np.asarray(image, dtype=np.float64)
    pixels = pixels + rng.normal(0.0, rng.uniform(0.0, 18.0), size=pixels.shape)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[:, :columns] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return canvas, columns, text


def draw_page(rng: np.random.Generator, background: Array) -> Array:
    """Write 6 to 14 lines of text over a background.

    Args:
        rng: Source of everything random.
        background: `[H, W, 3] uint8` RGB, paper or a photograph.

    Returns:
        Page `[H, W, 3] uint8` RGB.
    """
    from PIL import Image, ImageDraw

    image = Image.fromarray(background)
    draw = ImageDraw.Draw(image)
    width, height = image.size
    bright = background.mean() > 110
    for row in range(int(rng.integers(6, 15))):
        size = int(rng.integers(14, 40))
        text = line_text(rng, longest=int(rng.integers(6, 36)))
        value = int(rng.integers(0, 60) if bright else rng.integers(200, 256))
        at = (int(rng.integers(5, width // 3)), 10 + row * (height - 20) // 14)
        draw.text(at, text, fill=(value, value, value), font=_font(str(rng.choice(FONTS)), size))
    return np.asarray(image)
