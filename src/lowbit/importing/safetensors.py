"""The `safetensors` file format: a length, a JSON header, and the tensors' bytes. Nothing in it can run."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from lowbit.exceptions import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

__all__ = ["read_safetensors"]

_LONGEST_HEADER = 100_000_000
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by their names.

    Raises:
        ModelError: The file is cut off, is no safetensors file, or holds a type that PyTorch does not have.
    """
    import torch

    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_LONGEST_HEADER, len(data) - 8):
        raise ModelError(f"{path} is not a safetensors file, or is cut off", remedy="Download or save it again")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        entries = {str(name): entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {}
        for name, entry in entries.items():
            begin, end = (int(offset) + 8 + length for offset in entry["data_offsets"])
            shape = [int(size) for size in entry["shape"]]
            if entry["dtype"] not in _TYPES:
                raise ModelError(
                    f"tensor {name!r} of {path} has the type {entry['dtype']}", cause="it is not known here"
                )
            dtype = getattr(torch, _TYPES[entry["dtype"]])
            if not 8 + length <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
                raise ModelError(f"tensor {name!r} of {path} lies outside the file", remedy="Download or save it again")
            count = math.prod(shape)
            whole = (
                torch.frombuffer(data, dtype=torch.uint8, count=end - begin, offset=begin).clone() if count else None
            )
            tensors[name] = torch.empty(shape, dtype=dtype) if whole is None else whole.view(dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is not a safetensors file",
            cause=f"{type(error).__name__}: {error}",
            remedy="Download or save it again",
        ) from error
    return tensors
