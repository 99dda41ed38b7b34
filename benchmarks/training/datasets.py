"""Small labelled sets of pictures, whole and in memory, with their split and normalization."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.zoo import DEFAULT_CACHE
from benchmarks.zoo.assets import data_folder, data_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["DATASETS", "Pictures", "load_pictures"]

_MNIST_TRAIN = 8_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pictures:
    """A labelled set.

    Attributes:
        name: Its name.
        train: Codes from 0 to 255, `[N, C, H, W]`.
        train_labels: Their classes, `[N]`.
        test: As `train`; nothing is chosen by them.
        test_labels: Their classes.
        test_indices: Where the test pictures stand in the file, or in the list of its names.
        mean: What is subtracted from codes divided by 255, by channel.
        std: What that is divided by.
        classes: Number of classes.
    """

    name: str
    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    test_indices: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    def normalized(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return what the networks read, `[N, C, H, W]`."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        return ((codes.astype(np.float32) / 255 - mean) / std).astype(np.float32)


def load_pictures(name: str, *, cache: Path = DEFAULT_CACHE) -> Pictures:
    """Load a set.

    Args:
        name: One of `DATASETS`.
        cache: Folder for decoded pictures.

    Raises:
        ZooError: The data are not there.
    """
    return DATASETS[name](data_folder(), cache)


def _mnist(data: Path, cache: Path) -> Pictures:  # noqa: ARG001 - every loader has one signature
    with np.load(data_path(data, "mnist10k.npz")) as file:
        codes, labels = file["x"], file["y"]
    order = np.random.default_rng(0).permutation(len(codes))
    codes = codes.reshape(-1, 1, 28, 28)
    train, test = order[:_MNIST_TRAIN], order[_MNIST_TRAIN:]
    return Pictures(
        name="mnist",
        train=codes[train],
        train_labels=labels[train].astype(np.int64),
        test=codes[test],
        test_labels=labels[test].astype(np.int64),
        test_indices=tuple(int(index) for index in test),
        mean=(0.1307,),
        std=(0.3081,),
        classes=10,
    )


def _cifar10(data: Path, cache: Path) -> Pictures:
    kept = cache / "cifar10-jpeg.npz"
    if not kept.exists():
        with zipfile.ZipFile(data_path(data, "cifar10-jpeg.zip")) as archive:
            parts = {part: _decoded(archive, part) for part in ("train", "test")}
        cache.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".part.npz")
        np.savez(temporary, **{f"{part}_{key}": value for part, both in parts.items() for key, value in both.items()})
        temporary.replace(kept)
    with np.load(kept) as file:
        arrays = {key: file[key] for key in file.files}
    return Pictures(
        name="cifar10-jpeg",
        train=arrays["train_x"],
        train_labels=arrays["train_y"],
        test=arrays["test_x"],
        test_labels=arrays["test_y"],
        test_indices=tuple(range(len(arrays["test_y"]))),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=10,
    )


def _decoded(archive: zipfile.ZipFile, part: str) -> dict[str, NDArray]:
    names = sorted(
        name for name in archive.namelist() if f"/{part}/" in f"/{name}" and name.endswith((".jpg", ".jpeg"))
    )
    classes = sorted({name.split("/")[-2] for name in names})
    contents = [archive.read(name) for name in names]

    def decode(content: bytes) -> NDArray[np.uint8]:
        with Image.open(io.BytesIO(content)) as picture:
            return np.asarray(picture.convert("RGB"), np.uint8).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        pictures = np.stack(list(pool.map(decode, contents)))
    return {"x": pictures, "y": np.array([classes.index(name.split("/")[-2]) for name in names], np.int64)}


def _pneumonia(data: Path, cache: Path) -> Pictures:  # noqa: ARG001
    with np.load(data_path(data, "pneumoniamnist.npz")) as file:
        arrays = {key: file[key] for key in file.files}

    def codes(part: str) -> NDArray[np.uint8]:
        return arrays[f"{part}_images"].reshape(-1, 1, 28, 28)

    def labels(part: str) -> NDArray[np.int64]:
        return arrays[f"{part}_labels"].reshape(-1).astype(np.int64)

    return Pictures(
        name="pneumoniamnist",
        train=np.concatenate([codes("train"), codes("val")]),
        train_labels=np.concatenate([labels("train"), labels("val")]),
        test=codes("test"),
        test_labels=labels("test"),
        test_indices=tuple(range(len(arrays["test_labels"]))),
        mean=(0.5719,),
        std=(0.1684,),
        classes=2,
    )


DATASETS: dict[str, Callable[[Path, Path], Pictures]] = {
    "mnist": _mnist,
    "cifar10": _cifar10,
    "pneumoniamnist": _pneumonia,
}
