"""`open_data`: from whatever the user hands over to a `Dataset`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.data.dataset import Dataset
from lowbit.data.item import Item, bind_arrays, bind_value
from lowbit.data.lazy_array import open_npy, open_npz, reading
from lowbit.data.pictures import PictureSource, is_picture
from lowbit.data.random_source import RandomSource
from lowbit.data.source import ItemSource, Source
from lowbit.data.stream_source import checked_calls, spooled
from lowbit.exceptions import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.data.inputs import InputSpec
    from lowbit.data.preprocessing import Preprocessing

__all__ = ["RANDOM", "open_data"]

RANDOM = "random"
_RANDOM_SAMPLES = 16
_KINDS = (
    "an .npz or .npy file, a folder of them, a folder or .zip of pictures, a Python iterable of dicts or arrays, a "
    f"function that returns one, or {RANDOM!r}"
)


def open_data(
    source: object,
    inputs: Sequence[InputSpec],
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 1,
    labels: str | Path | None = None,
) -> Dataset:
    """Open calibration or test data for a model.

    Args:
        source: A path: `.npz` (one array per input, axis 0 the samples; `y`, `label` or `labels` are labels), `.npy`,
            a folder of such files, a folder or `.zip` of pictures (`data.zip/folder` for a part of it). Or a dict of
            arrays, an array, any iterable of dicts, arrays or tuples of arrays such as a DataLoader, or a function
            that returns such an iterable for every pass. Or "random".
        inputs: What the model wants, from `input_specs`.
        preprocessing: How a picture becomes an input; needed for pictures, and only for them.
        limit: Use this many samples: chosen at random where the number of samples is known when opening (files and
            in-memory data may be sorted by class), else the first ones.
        seed: For `limit` and "random".
        batch_size: Samples a feed.
        labels: A file of labels apart from the data: `.npy` with one per sample, or for pictures a `.csv` with the
            columns `file` and `label`.

    Returns:
        A data set that gives the same feeds on every pass.

    Raises:
        DataError: The data cannot be read or do not fit the model. What a stream holds is checked as it is read.
        ModelError: The model has no inputs.
        RecipeError: An option makes no sense for this source.
    """
    if not inputs:
        raise ModelError("the model has no inputs", remedy="data are only needed for a model that has some")
    if limit is not None and limit < 1:
        raise RecipeError(f"the limit is {limit} samples", remedy="give at least 1")
    label_file = None if labels is None else Path(labels)
    if isinstance(source, str) and source == RANDOM:
        opened: Source = RandomSource(inputs, samples=limit or _RANDOM_SAMPLES, seed=seed)
    elif isinstance(source, str | Path):
        opened = _open_path(Path(source).expanduser(), inputs, preprocessing, label_file)
    else:
        opened = _open_value(source, inputs, limit, _read_labels(label_file))
    if not isinstance(opened, PictureSource):
        if preprocessing is not None:
            raise RecipeError(
                f"a preprocessing was given for {opened.name}, which are not pictures",
                remedy="arrays are fed as they are: preprocess them before, and leave this option out",
            )
        if label_file is not None and not isinstance(opened, ItemSource):
            raise RecipeError(f"a file of labels was given for {opened.name}", remedy="give (x, label) pairs instead")
    dataset = Dataset(opened, inputs, batch_size=batch_size)
    if limit is None or not opened.counts_at_open or isinstance(opened, RandomSource):
        return dataset
    return _limited(dataset, limit, seed)


def _limited(dataset: Dataset, limit: int, seed: int) -> Dataset:
    count = dataset.count()
    if count <= limit:
        return dataset
    return dataset.select(np.random.default_rng(seed).permutation(count)[:limit].tolist())


def _open_path(
    path: Path, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, labels: Path | None
) -> Source:
    archive, inside = _inside_zip(path)
    suffix = archive.suffix.lower()
    if archive.is_dir():
        files = sorted(file for file in archive.rglob("*") if file.is_file() and not file.name.startswith("."))
        arrays = [file for file in files if file.suffix.lower() in {".npy", ".npz"}]
        pictures = [file for file in files if is_picture(file.name)]
        if arrays and pictures:
            raise DataError(
                f"the folder {str(path)!r} holds both {len(arrays)} array files and {len(pictures)} pictures",
                remedy="put them in two folders and name one",
            )
        if arrays:
            return _open_arrays(arrays, inputs, str(path), labels)
        if not pictures:
            raise DataError(f"the folder {str(path)!r} holds no data", remedy=f"give {_KINDS}")
    elif not archive.exists():
        raise DataError(f"there is no data file or folder {str(path)!r}", remedy=f"check the path; data are {_KINDS}")
    elif suffix in {".npy", ".npz"}:
        return _open_arrays([archive], inputs, str(path), labels)
    elif suffix != ".zip":
        raise DataError(f"the data file {str(path)!r} is of no known kind", remedy=f"give {_KINDS}")
    return _open_pictures(archive, inside, inputs, preprocessing, labels)


def _inside_zip(path: Path) -> tuple[Path, str]:
    """Split `data.zip/train` into the zip file and the folder in it."""
    for parent in path.parents:
        if parent.suffix.lower() == ".zip" and parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


def _open_pictures(
    path: Path, inside: str, inputs: Sequence[InputSpec], preprocessing: Preprocessing | None, labels: Path | None
) -> PictureSource:
    if len(inputs) != 1:
        raise DataError(
            f"{str(path)!r} holds pictures, but the model has the inputs {[spec.name for spec in inputs]}",
            remedy="give an .npz file with one array per input",
        )
    if preprocessing is None:
        raise DataError(
            f"{str(path)!r} holds pictures, and nothing says how they become the model's input {inputs[0]}",
            cause="size, scale, mean and the order of channels differ from model to model, and guessing them wrong "
            "calibrates the wrong ranges",
            remedy="declare a preprocessing as the model was trained with, e.g. size=256,crop=224,scale=1/255,"
            "mean=0.485,0.456,0.406,std=0.229,0.224,0.225,layout=NCHW,color=RGB",
        )
    return PictureSource(path, inputs[0], preprocessing, inside=inside, labels=labels)


def _open_arrays(files: Sequence[Path], inputs: Sequence[InputSpec], name: str, labels: Path | None) -> ItemSource:
    given = _read_labels(labels)
    if given is not None and len(files) > 1:
        raise RecipeError(f"one file of labels was given for the {len(files)} array files of {name}")
    openers = [partial(_open_file, file, inputs, given) for file in files]
    return ItemSource(openers, inputs, name=name)


def _open_file(file: Path, inputs: Sequence[InputSpec], labels: NDArray[Any] | None) -> Item:
    if file.suffix.lower() == ".npz":
        item = bind_arrays(open_npz(file), inputs, str(file))
    else:
        item = bind_value(open_npy(file), inputs, str(file))
    return item if labels is None else replace(item, labels=labels)


def _read_labels(path: Path | None) -> NDArray[Any] | None:
    if path is None:
        return None
    if path.suffix.lower() == ".npy":
        return open_npy(path).whole()
    with reading(path):
        lines = path.read_text(encoding="utf-8-sig").split()
        try:
            return np.array([int(line) for line in lines], np.int64)
        except ValueError as error:
            raise DataError(
                f"the file of labels {str(path)!r} is not a list of whole numbers",
                cause=str(error),
                remedy="give a .npy file, or a text file with one number per line",
            ) from error


def _open_value(source: object, inputs: Sequence[InputSpec], limit: int | None, labels: NDArray[Any] | None) -> Source:
    foreign: Any = source
    if isinstance(source, Mapping) or _is_array(source):

        def bind_all() -> Item:
            item = bind_value(source, inputs, "the data")
            return item if labels is None else replace(item, labels=labels)

        return ItemSource([bind_all], inputs, name="the data")
    if labels is not None:
        raise RecipeError("a file of labels was given for a Python iterable", remedy="give (x, label) pairs instead")
    if isinstance(source, list | tuple):
        openers: list[Callable[[], Item]] = [
            partial(bind_value, value, inputs, f"element {i} of the data") for i, value in enumerate(source)
        ]
        return ItemSource(openers, inputs, name="the data")
    if isinstance(source, Iterable):
        return spooled(source, inputs, name="the data", limit=limit)
    if (
        hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, type)
    ):  # a map-style data set, as PyTorch's
        return spooled(_elements(foreign), inputs, name="the data", limit=limit)
    if callable(source):
        return checked_calls(foreign, inputs, name="the data", limit=limit)
    raise DataError(f"{type(source).__name__} is not a kind of data", remedy=f"give {_KINDS}")


def _is_array(source: object) -> bool:
    return isinstance(source, np.ndarray) or (hasattr(source, "shape") and hasattr(source, "dtype"))


def _elements(dataset: Any) -> Iterator[object]:
    return (dataset[index] for index in range(len(dataset)))
