"""Pictures of text lines whose words are known, as the PP-OCR recognizer takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["HEIGHT", "WIDTH", "as_input", "draw", "write"]

HEIGHT, WIDTH = 48, 320

_WORDS = (
    "total",
    "invoice",
    "bread",
    "butter",
    "coffee",
    "station",
    "platform",
    "ticket",
    "order",
    "amount",
    "customer",
    "street",
    "cash",
    "window",
    "garden",
    "morning",
    "evening",
    "silver",
)


def write(rng: np.random.Generator) -> str:
    """Write a line as it might stand on a receipt or a sign: words, a number, a price or a date."""
    words = [str(word) for word in rng.choice(_WORDS, size=2, replace=False)]
    tail = (
        f"${rng.integers(1, 900)}.{rng.integers(10, 100)}",
        f"{rng.integers(10, 99999)}",
        f"{rng.integers(1, 29)}/{rng.integers(1, 13)}/{rng.integers(1990, 2030)}",
    )[rng.integers(3)]
    return (words[0].capitalize(), " ".join(words), words[0].upper())[rng.integers(3)] + " " + tail


def draw(text: str, rng: np.random.Generator) -> Image.Image:
    """Draw a line in the font that Pillow carries: any size, ink and paper, and a little noise.

    Returns:
        A picture of `WIDTH` by `HEIGHT` pixels, RGB.
    """
    size = float(rng.uniform(28, 33))
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    if right - left > WIDTH - 16:
        font = ImageFont.load_default(size * (WIDTH - 16) / (right - left))
        left, top, right, bottom = font.getbbox(text)
    ink, paper = rng.integers(0, 70, size=3), rng.integers(190, 256, size=3)
    if rng.random() < 0.2:
        ink, paper = paper, ink
    picture = Image.new("RGB", (WIDTH, HEIGHT), tuple(paper.tolist()))
    at = ((WIDTH - left - right) / 2, (HEIGHT - top - bottom) / 2)
    ImageDraw.Draw(picture).text(at, text, font=font, fill=tuple(ink.tolist()))
    noise = rng.normal(0.0, rng.uniform(0.0, 8.0), size=(HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def as_input(picture: Image.Image) -> NDArray[np.float32]:
    """Turn a picture into the recognizer's input.

    Returns:
        `[1, 3, HEIGHT, WIDTH]` float32 in -1 … 1, channels in the order blue, green, red.
    """
    blue_first = np.asarray(picture, dtype=np.float32)[..., ::-1]
    return np.ascontiguousarray(((blue_first / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None])
