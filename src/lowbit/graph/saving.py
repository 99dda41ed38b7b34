"""Write a model so that a finished file is never half-written, whatever its size."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import IO, TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from lowbit.exceptions import ModelError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["model_size", "save_files", "save_model", "serialize"]

# Protobuf ends at 2 GiB; the rest of the room is for the graph itself.
_EMBEDDED_LIMIT = 1_900_000_000
# Shapes and scales stay in the protobuf, where shape inference sees them.
_EXTERNAL_FROM = 1024
# One cache line, so that mapped weights are aligned for vector loads.
_ALIGNMENT = 64


def save_model(model: ir.Model, path: str | Path, *, external_data: bool | None = None) -> list[Path]:
    """Write a model under a temporary name beside its destination, sync it to disk and only then rename it.

    The same model always gives the same bytes. Tensors of `model` that are mapped from a data file which this call
    replaces are invalidated: reading them afterwards raises instead of returning wrong numbers.

    Args:
        model: Left unchanged.
        path: Destination. A file that exists there is replaced.
        external_data: Whether the weights go to `<name>.data` beside the model. None: only if the protobuf would
            exceed about 1.9 GB.

    Returns:
        The files written: the model, then its data file if there is one.

    Raises:
        OutputError: The files cannot be written. Nothing half-written is left and what stood there is untouched.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file", remedy="Choose a file name for the model")
    copy = model.clone()
    if external_data is None:
        external_data = _embedded_bytes(copy) > _EMBEDDED_LIMIT
    data_path = path.with_name(path.name + ".data")
    replaced = [tensor for tensor in _external_tensors(model) if _same_file(tensor.path, data_path)]
    with _written(path) as staged:
        if external_data:
            staged.write(data_path, lambda file: _write_weights(copy, file, data_path.name))
        staged.write(path, lambda file: file.write(serialize(copy)))
    if external_data:
        for tensor in replaced:
            tensor.invalidate()
        return [path, data_path]
    return [path]


def save_files(path: str | Path, content: bytes, beside: Mapping[Path, bytes] | None = None) -> list[Path]:
    """Write a file, and those that belong to it, all of them or none, as `save_model` does.

    Args:
        path: Destination. A file that exists there is replaced.
        content: Its bytes.
        beside: The bytes of the other files, by their destinations.

    Returns:
        The files written, `path` first.

    Raises:
        OutputError: The files cannot be written. Nothing half-written is left and what stood there is untouched.
    """
    path = Path(path)
    files = {**(beside or {}), path: content}
    for final in files:
        if final.exists() and not final.is_file():
            raise OutputError(f"{final} is not a regular file", remedy="Choose another file name or folder")
    with _written(path) as staged:
        for final, data in files.items():
            staged.write(final, lambda file, data=data: file.write(data))  # type: ignore[misc]
    return [path, *(beside or {})]


def serialize(model: ir.Model) -> bytes:
    """Return the model as the bytes of one protobuf, with external tensors embedded; the same bytes every time.

    Args:
        model: Left unchanged. Tensors that `save_model` has just moved to a data file stay outside.

    Raises:
        OutputError: The model does not fit in one protobuf (2 GB).
    """
    copy = model.clone()
    for graph in copy.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and not isinstance(value.const_value, _Placed):
                value.const_value = ir.Tensor(value.const_value.numpy(), dtype=value.const_value.dtype, name=value.name)
    try:
        return bytes(ir.to_proto(copy).SerializeToString(deterministic=True))
    except (EncodeError, ValueError, ir.serde.SerdeError) as error:
        raise OutputError(
            "The model does not fit in one protobuf of 2 GB",
            cause=str(error).splitlines()[0],
            remedy="Save it with external_data=True",
        ) from error


def model_size(path: str | Path) -> int:
    """Return the size of a model on disk in bytes, the external data files that it names included.

    Args:
        path: An `.onnx` file.

    Raises:
        ModelError: The file cannot be read, is not ONNX, or a data file is missing.
    """
    path = Path(path)
    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
        files = {path.parent / name for name in _locations(proto.graph)}
        return path.stat().st_size + sum(file.stat().st_size for file in files)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut off") from error
    except OSError as error:
        raise ModelError(f"{error.filename or path} cannot be read", cause=error.strerror or str(error)) from error


class _Placed(ir.ExternalTensor):
    """A tensor whose bytes this save has already placed in the data file."""


class _Staged:
    """Files written under temporary names, to be renamed together."""

    def __init__(self) -> None:
        self.files: list[tuple[Path, Path]] = []

    def write(self, final: Path, fill: Callable[[IO[bytes]], object]) -> None:
        temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
            self.files.append((temporary, final))
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if final.exists():
            temporary.chmod(final.stat().st_mode & 0o7777)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[_Staged]:
    """Commit all staged files at the end, or none of them: a model and its data must never be of different ages."""
    staged = _Staged()
    backups: list[tuple[Path, Path]] = []
    committed: list[Path] = []
    try:
        yield staged
        for temporary, final in staged.files:
            if final != path and final.exists():
                backup = final.with_name(f".{final.name}.{secrets.token_hex(4)}.old")
                final.replace(backup)
                backups.append((backup, final))
            temporary.replace(final)
            committed.append(final)
    except BaseException as error:
        for final in committed:
            if final != path:
                final.unlink(missing_ok=True)
        for backup, final in backups:
            backup.replace(final)
        backups.clear()
        if isinstance(error, OSError):
            raise _output_error(path, error) from error
        raise
    finally:
        for temporary, _ in staged.files:
            temporary.unlink(missing_ok=True)
        for backup, _ in backups:
            backup.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _write_weights(model: ir.Model, file: IO[bytes], location: str) -> None:
    """Move the large initializers of the main graph into `file` and leave their places in the graph."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _EXTERNAL_FROM or tensor.dtype == ir.DataType.STRING:
            continue
        file.write(bytes(-file.tell() % _ALIGNMENT))
        offset = file.tell()
        _write_tensor(tensor, file)
        value.const_value = _Placed(
            location, offset, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=value.name or ""
        )


def _write_tensor(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(file)  # in chunks
    else:
        file.write(tensor.tobytes())


def _sync_folder(folder: Path) -> None:
    """Make the renames survive a power failure, where the system can: the files themselves are complete already."""
    with contextlib.suppress(OSError):  # Windows cannot open a folder, and some network file systems not sync one
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _output_error(path: Path, error: OSError) -> OutputError:
    remedies = {
        errno.ENOSPC: "Free some space or choose another disk",
        errno.EDQUOT: "Free some space or choose another disk",
        errno.ENOENT: f"Create the folder {path.parent}",
        errno.ENOTDIR: f"{path.parent} is not a folder: choose another destination",
    }
    remedy = remedies.get(error.errno or 0, "Choose a folder that you may write to")
    return OutputError(f"{path} cannot be written", cause=error.strerror or str(error), remedy=remedy)


def _embedded_bytes(model: ir.Model) -> int:
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _same_file(first: str | Path, second: Path) -> bool:
    return Path(first).exists() and second.exists() and Path(first).samefile(second)


def _locations(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the external file of each tensor of a graph and of its subgraphs."""
    tensors = list(graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _locations(attribute.g)
            for child in attribute.graphs:
                yield from _locations(child)
            tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield from (entry.value for entry in tensor.external_data if entry.key == "location")
