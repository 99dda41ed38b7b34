"""Pack a model into an `.lbz` file, and unpack it to the same bytes."""

from __future__ import annotations

import contextlib
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.exceptions import ModelError, OutputError
from lowbit.graph.saving import save_files
from lowbit.methods.stages import silent

if TYPE_CHECKING:
    from lowbit.container import Part
    from lowbit.methods.stages import Stages

__all__ = ["Packing", "pack", "unpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """What packing a model gave.

    Attributes:
        path: The `.lbz` file.
        bytes: Of the model, its data files included.
        packed: Of the `.lbz` file.
        parts: What became of each tensor's numbers.
    """

    path: Path
    bytes: int
    packed: int
    parts: tuple[Part, ...]

    @property
    def structure(self) -> int:
        """Bytes of the `.lbz` file that are no tensor's: the graph, the names and the metadata."""
        return self.packed - sum(part.packed for part in self.parts)


def pack(model: str | Path, output: str | Path, *, smallest: bool = False, stages: Stages = silent) -> Packing:
    """Pack an ONNX file and its data files into one small `.lbz` file; `unpack` gives back the same bytes.

    Codes that are few, sparse or alike in their neighbourhood become smallest, in the spirit of DeepCABAC (Wiedemann et
    al. 2020). The same model always gives the same bytes.

    Args:
        model: Path of an `.onnx` file.
        output: Path of the `.lbz` file; one that exists is replaced.
        smallest: Whether models of more than 64 kB too are mixed where that is smaller, at 0.2 to 2 MB/s; otherwise
            they are coded by tables, at tens of MB/s.
        stages: How progress is shown.

    Raises:
        ModelError: The model cannot be read, is not ONNX, or has data files that are missing or outside its folder.
        OutputError: The file cannot be written; whatever stood there is untouched.
    """
    from lowbit import container

    source, output = Path(model), Path(output)
    content = _read(source)
    total = len(content)
    with contextlib.ExitStack() as opened:

        def data_file(location: str) -> memoryview:
            nonlocal total
            view = _mapped(source.parent, location, opened)
            total += len(view)
            return view

        with stages("Pack", None):
            packed, parts = container.pack(content, data_file, smallest=smallest)
            # NOTE: what is written is what has been read back. A bug in a model of numbers must never cost anyone one.
            again = container.unpack(packed, "The packed model")
            same = again.model == content and all(
                memoryview(data) == _mapped(source.parent, location, opened) for location, data in again.files.items()
            )
            if not same:
                raise AssertionError("the packed model is not the model")
    save_files(output, packed)
    return Packing(path=output, bytes=total, packed=len(packed), parts=tuple(parts))


def unpack(packed: str | Path, output: str | Path, *, stages: Stages = silent) -> list[Path]:
    """Unpack an `.lbz` file to the ONNX file that it was made of, bit for bit.

    Data files are written beside the model under the names that it gives them, which must not leave its folder.

    Args:
        packed: Path of an `.lbz` file.
        output: Path of the `.onnx` file; one that exists is replaced.
        stages: How progress is shown.

    Returns:
        The files written: the model, then its data files.

    Raises:
        ModelError: The file cannot be read, or is damaged; the error says which tensor is. Nothing is written.
        OutputError: The files cannot be written; whatever stood there is untouched.
    """
    from lowbit import container

    source, output = Path(packed), Path(output)
    with stages("Unpack", None):
        found = container.unpack(_read(source), str(source))
    beside: dict[Path, bytes] = {}
    for location, data in found.files.items():
        path = output.parent / location
        resolved = path.resolve()
        taken = {output.resolve(), source.resolve(), *(other.resolve() for other in beside)}
        if not resolved.is_relative_to(output.parent.resolve()) or resolved in taken:
            raise OutputError(
                f"The data file {location!r} of {source} cannot be written",
                cause=f"Its place {resolved} is that of another file, or leaves the model's folder",
                remedy="Unpack into an empty folder",
            )
        beside[path] = data
    made: list[Path] = []
    try:
        for path in beside:
            _make_folder(path.parent, made)
        return save_files(output, found.model, beside)
    except BaseException as error:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else's files have come into it
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"{error.filename} cannot be made", cause=error.strerror or str(error)) from error
        raise


def _make_folder(folder: Path, made: list[Path]) -> None:
    """Make a folder and those that it is in; note each that was not there, the outermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir()
        made.append(place)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read", cause=error.strerror or str(error), remedy="Check the path and its permissions"
        ) from error


def _mapped(folder: Path, location: str, opened: contextlib.ExitStack) -> memoryview:
    """Return the bytes of a data file, which stay on the disk until they are read."""
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"The data file {location!r} leaves the model's folder", remedy="Copy the file itself there")
    try:
        if not path.is_file():
            raise ModelError(f"The data file {path} is missing", remedy="Put it beside the model")
        if path.stat().st_size == 0:
            return memoryview(b"")
        file = opened.enter_context(path.open("rb"))
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelError(f"The data file {path} cannot be read", cause=error.strerror or str(error)) from error
