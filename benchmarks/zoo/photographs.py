"""The 500 labelled ImageNet photographs of the development data."""

from __future__ import annotations

import csv
import io
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.zoo.assets import data_path

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.zoo.case import Array

__all__ = ["load_photographs"]


def load_photographs(data: Path, *, seed: int = 0) -> tuple[list[Array], list[int]]:
    """Return the photographs and their ImageNet class ids, shuffled.

    Args:
        data: Folder of the development data.
        seed: Seed of the shuffle.

    Returns:
        500 images `[256, 256, 3] uint8` RGB, and 500 classes in 0 … 999.
    """
    from PIL import Image

    with zipfile.ZipFile(data_path(data, "imagenet-sample-dev.zip")) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(row["file"]))).convert("RGB")) for row in rows]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [images[i] for i in order], [int(rows[i]["label"]) for i in order]
