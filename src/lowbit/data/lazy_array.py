"""Arrays that are read sample by sample: from memory, from a mapped `.npy` file, or from a member of an `.npz` file.

NumPy cannot map a member of a zip archive, so `ZippedArray` reads its stream slice by slice: a 4 GB archive costs the
memory of one sample. Nothing here unpickles.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["LazyArray", "MemoryArray", "ZippedArray", "open_npy", "open_npz", "reading", "refuse_objects"]


class LazyArray(ABC):
    """An array of known shape and dtype whose content is read when it is asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def take(self, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield `self[i]` for ascending `i` along axis 0."""

    @abstractmethod
    def whole(self) -> NDArray[Any]:
        """Return all of it."""


class MemoryArray(LazyArray):
    """An array in memory, or mapped into it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def take(self, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield `self[i]` for ascending `i`."""
        for index in indices:
            yield np.asarray(self.array[index])

    def whole(self) -> NDArray[Any]:
        """Return all of it."""
        return np.asarray(self.array)


class ZippedArray(LazyArray):
    """One member of an `.npz` file, read as a stream; holds no open file between reads."""

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.member = member
        with self._open() as stream:
            self.shape, self.fortran, self.dtype = _read_header(stream, f"{path}:{member}")
            header = stream.tell()
        with reading(path), zipfile.ZipFile(path) as archive:
            held = archive.getinfo(member).file_size - header
        wanted = math.prod(self.shape) * self.dtype.itemsize
        if held != wanted:
            raise DataError(
                f"{str(path)!r} is damaged: its array {member.removesuffix('.npy')!r} holds {held} bytes, "
                f"not {wanted} for {list(self.shape)} {self.dtype}",
                remedy="write the file again with numpy.savez",
            )

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
            yield stream

    def take(self, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield `self[i]` for ascending `i`."""
        if self.fortran:  # samples are scattered over the whole stream
            array = self.whole()
            yield from (array[index] for index in indices)
            return
        shape = self.shape[1:]
        size = math.prod(shape) * self.dtype.itemsize
        with self._open() as stream:
            _read_header(stream, str(self.path))
            position = 0
            for index in indices:
                stream.seek((index - position) * size, 1)
                yield np.frombuffer(_read(stream, size), self.dtype).reshape(shape)
                position = index + 1

    def whole(self) -> NDArray[Any]:
        """Return all of it."""
        with self._open() as stream:
            _read_header(stream, str(self.path))
            data = _read(stream, math.prod(self.shape) * self.dtype.itemsize)
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.fortran else "C")


def open_npz(path: Path) -> dict[str, LazyArray]:
    """Return the arrays of an `.npz` file by name, without reading more than their headers.

    Raises:
        DataError: The file cannot be read, is damaged, or holds Python objects.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/")]
    strangers = [name for name in members if not name.endswith(".npy")]
    if strangers or not members:
        raise DataError(
            f"{str(path)!r} is not an .npz file of arrays: it holds {strangers[:3] or 'nothing'}",
            remedy="write it with numpy.savez(path, name=array, ...)",
        )
    return {name.removesuffix(".npy"): ZippedArray(path, name) for name in members}


def open_npy(path: Path) -> LazyArray:
    """Return the array of a `.npy` file, mapped into memory.

    Raises:
        DataError: The file cannot be read, is damaged, or holds Python objects.
    """
    with reading(path), path.open("rb") as stream:
        _read_header(stream, str(path))
    with reading(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return MemoryArray(array)


def refuse_objects(dtype: np.dtype[Any], where: str) -> None:
    """Raise if an array holds Python objects instead of numbers.

    Raises:
        DataError: It does.
    """
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects, not numbers",
            cause="arrays of unequal shapes were put into one, or text was stored; lowbit never unpickles data",
            remedy="store one numeric array whose samples all have the same shape",
        )


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turn what can go wrong while reading a data file into one `DataError` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"there is no data file {str(path)!r}", remedy="check the path") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"the data file {str(path)!r} cannot be read",
            cause=f"it is damaged, incomplete or not what its name says ({error})",
            remedy="write or download it again",
        ) from error


def _read_header(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with reading(where):
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    refuse_objects(dtype, repr(where))
    return tuple(shape), bool(fortran), dtype


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{size} bytes wanted, {len(data)} left")
    return data
