"""Pictures in a folder or in a zip file: found, labelled, and decoded one at a time."""

from __future__ import annotations

import csv
import io
import zipfile
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lowbit.data.fitting import convert, fits, misfit
from lowbit.data.inputs import batch_layout
from lowbit.data.lazy_array import reading
from lowbit.data.source import Notes, Source
from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from lowbit.data.cutting import Feed
    from lowbit.data.inputs import InputSpec
    from lowbit.data.preprocessing import Preprocessing

__all__ = ["PICTURE_SUFFIXES", "PictureSource", "is_picture", "load_picture"]

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_LARGEST_MEMBER = 1 << 29
_LABEL_FILE = "labels.csv"


@final
class PictureSource(Source):
    """Pictures in the alphabetical order of their paths, for a model with one input.

    Labels come from `labels`, or a `labels.csv` beside the pictures (columns `file` and `label`), or the names of the
    folders that hold the pictures, numbered in alphabetical order.

    Args:
        path: A folder, or a zip file that is read without unpacking.
        spec: The model's input.
        preprocessing: How a picture becomes that input.
        inside: Only pictures below this folder of the zip file.
        labels: A file like `labels.csv` somewhere else.

    Raises:
        DataError: There are no pictures, or labels and pictures do not belong together.
    """

    counts_at_open = True

    def __init__(
        self,
        path: Path,
        spec: InputSpec,
        preprocessing: Preprocessing,
        *,
        inside: str = "",
        labels: Path | None = None,
    ) -> None:
        self.name = str(path / inside) if inside else str(path)
        self.notes = Notes()
        self._root = path
        self._prefix = f"{inside}/" if inside else ""
        self._zipped = path.is_file()
        self._spec = spec
        self._free = batch_layout([spec]).axes[spec.name]
        self._preprocessing = preprocessing
        files = self._list()
        self._files = sorted(name for name in files if is_picture(name))
        if not self._files:
            raise DataError(
                f"{self.name!r} holds no pictures", remedy=f"pictures end in {', '.join(sorted(PICTURE_SUFFIXES))}"
            )
        if labels is not None:
            with reading(labels):
                text = labels.read_text(encoding="utf-8-sig")
            self._labels: NDArray[Any] | None = self._listed_labels(text, str(labels))
        elif _LABEL_FILE in files:
            text = self._read_text(_LABEL_FILE)
            self._labels = self._listed_labels(text, f"{self.name}/{_LABEL_FILE}")
        else:
            self._labels = self._folder_labels()

    def count(self) -> int:
        """Return the number of samples."""
        return len(self._files)

    def labels(self) -> NDArray[Any] | None:
        """Return one label per sample, or None."""
        return self._labels

    def read(self, indices: Sequence[int] | None) -> Iterator[Feed]:
        """Yield the samples at ascending `indices`, or all."""
        with ExitStack() as stack:
            archive = None
            if self._zipped:
                with reading(self._root):
                    archive = stack.enter_context(zipfile.ZipFile(self._root))
            for index in range(self.count()) if indices is None else indices:
                file = self._files[index]
                where = f"{self.name}/{file}"
                with reading(where):
                    content = (self._root / file).read_bytes() if archive is None else self._member(archive, file)
                array = load_picture(content, self._preprocessing, where)
                what = f"the preprocessed picture {where!r}"
                if not fits(array.shape, self._spec.shape, free=self._free):
                    raise misfit(array.shape, array.dtype, self._spec, f"{what} is", axis=self._free)
                yield {self._spec.name: convert(array, self._spec, what)}

    def close(self) -> None:
        """Nothing is held open."""

    def _list(self) -> set[str]:
        """Return the paths of all files relative to the source, but for hidden ones."""
        if self._zipped:
            with reading(self._root), zipfile.ZipFile(self._root) as archive:
                names = [info.filename for info in archive.infolist() if not info.is_dir()]
            found = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        else:
            found = [path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if path.is_file()]
        return {name for name in found if not any(part.startswith((".", "__")) for part in name.split("/"))}

    def _member(self, archive: zipfile.ZipFile, file: str) -> bytes:
        info = archive.getinfo(self._prefix + file)
        if info.file_size > _LARGEST_MEMBER:
            raise ValueError(f"{info.file_size} bytes are too many for a picture")
        return archive.read(info)

    def _read_text(self, file: str) -> str:
        with reading(f"{self.name}/{file}"):
            if not self._zipped:
                return (self._root / file).read_text(encoding="utf-8-sig")
            with zipfile.ZipFile(self._root) as archive:
                return self._member(archive, file).decode("utf-8-sig")

    def _listed_labels(self, text: str, where: str) -> NDArray[Any]:
        rows = csv.DictReader(io.StringIO(text))
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise DataError(
                f"{where!r} has the columns {list(rows.fieldnames or ())}", remedy="name two of them 'file' and 'label'"
            )
        given = {str(row["file"]): str(row["label"]).strip() for row in rows}
        missing = [file for file in self._files if file not in given]
        strangers = sorted(set(given) - set(self._files))
        if missing or strangers:
            raise DataError(
                f"{where!r} does not match the pictures of {self.name!r}: {len(missing)} pictures have no label "
                f"{missing[:3]}, {len(strangers)} rows name no picture {strangers[:3]}",
                remedy="list every picture once, by its path relative to the folder",
            )
        values = [given[file] for file in self._files]
        try:
            return np.array([int(value) for value in values], np.int64)
        except ValueError:
            return self._numbered(values, f"the labels in {where!r}")

    def _folder_labels(self) -> NDArray[Any] | None:
        folders = [PurePosixPath(file).parent.name for file in self._files]
        if len(set(folders)) < 2:
            return None
        if "" in folders:
            self.notes.add(
                f"{self.name!r} holds pictures both beside and in folders: the folders are not used as labels"
            )
            return None
        return self._numbered(folders, f"the folders of {self.name!r}")

    def _numbered(self, values: list[str], where: str) -> NDArray[Any]:
        classes = sorted(set(values))
        self.notes.add(
            f"{where} are the classes 0 … {len(classes) - 1} in alphabetical order: {', '.join(classes[:5])}"
            + (", …" if len(classes) > 5 else "")
        )
        number = {name: index for index, name in enumerate(classes)}
        return np.array([number[value] for value in values], np.int64)


def is_picture(name: str) -> bool:
    """Return whether a file is taken for a picture, by its suffix."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def load_picture(content: bytes, preprocessing: Preprocessing, where: str) -> NDArray[np.float32]:
    """Decode a picture, upright as its EXIF orientation says, and preprocess it.

    Args:
        content: The bytes of a file.
        preprocessing: What to do to it.
        where: What error messages call it.

    Returns:
        [1, channels, height, width] or [1, height, width, channels] float32.

    Raises:
        DataError: It cannot be decoded, or is smaller than the crop.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(picture).convert("L" if preprocessing.color == "GRAY" else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"the picture {where!r} cannot be decoded",
            cause=f"it is damaged or not a picture ({error})",
            remedy="remove it or save it again",
        ) from error
    return preprocessing.normalize(np.asarray(_crop(_resize(upright, preprocessing), preprocessing, where)))


def _resize(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    from PIL import Image

    if preprocessing.size is None or preprocessing.resize == "none":
        return picture
    height, width = preprocessing.size
    if preprocessing.resize == "shorter-side":
        # Truncated, not rounded, as torchvision does it; the covering side is exact.
        if height * picture.width >= width * picture.height:
            width = int(height * picture.width / picture.height)
        else:
            height = int(width * picture.height / picture.width)
    methods = {
        "nearest": Image.Resampling.NEAREST,
        "bilinear": Image.Resampling.BILINEAR,
        "bicubic": Image.Resampling.BICUBIC,
        "lanczos": Image.Resampling.LANCZOS,
        "area": Image.Resampling.BOX,
    }
    if (width, height) == picture.size:
        return picture
    return picture.resize((width, height), methods[preprocessing.interpolation])


def _crop(picture: Image.Image, preprocessing: Preprocessing, where: str) -> Image.Image:
    if preprocessing.crop is None:
        return picture
    height, width = preprocessing.crop
    if picture.width < width or picture.height < height:
        raise DataError(
            f"the picture {where!r} is {picture.height} x {picture.width} pixels, smaller than the crop "
            f"{height} x {width}",
            remedy=f"resize it first: size={max(height, width)},resize=shorter-side",
        )
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))
