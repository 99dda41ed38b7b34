"""A LiteRT model as a C header: an aligned array for the firmware, its length, and the arena that it needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.exporters.litert.tensors import Program, Tensor

__all__ = ["c_identifier", "render_c_array"]

_COLUMNS = 16
_ALIGNMENT = 16


def c_identifier(name: str) -> str:
    """Return a name as a C identifier: `net.int8` becomes `net_int8`."""
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_") or "model"
    return f"model_{cleaned}" if cleaned[0].isdigit() else cleaned


def render_c_array(flatbuffer: bytes, program: Program, *, name: str, arena: int | None) -> bytes:
    """Return a C and C++ header that holds a LiteRT model.

    Args:
        flatbuffer: The `.tflite` file.
        program: What it was made of.
        name: Name of the model.
        arena: Bytes of tensor arena that `tflite-micro` used on this machine; `None` if it was not measured.
    """
    identifier = c_identifier(name)
    macro = identifier.upper()
    kinds = sorted({operator.kind for operator in program.operators})
    lines = [
        f"// {identifier}: a LiteRT model of {len(flatbuffer)} bytes, written by lowbit.",
        "//",
        *(f"// input  {_described(label, tensor)}" for label, tensor in program.inputs),
        *(f"// output {_described(label, tensor)}" for label, tensor in program.outputs),
        f"// kernels: {', '.join(kinds)}",
        f"#ifndef {macro}_H_",
        f"#define {macro}_H_",
        "",
    ]
    if arena is None:
        lines += ["// The arena was not measured: the package tflite-micro is not installed."]
    else:
        lines += [
            "// Bytes of tensor arena, measured with tflite-micro on a 64-bit machine, reference kernels. Pointers are",
            "// half as long on a microcontroller; optimized kernels may ask for scratch memory of their own.",
            f"#define {macro}_ARENA_SIZE {arena}",
        ]
    lines += [
        f"#define {macro}_OPERATORS {len(kinds)}  // kinds of kernels, for MicroMutableOpResolver",
        "",
        "#ifdef __cplusplus",
        f"#define {macro}_ALIGN alignas({_ALIGNMENT})",
        "#else",
        f"#define {macro}_ALIGN _Alignas({_ALIGNMENT})",
        "#endif",
        "",
        f"{macro}_ALIGN static const unsigned char {identifier}[] = {{",
    ]
    for start in range(0, len(flatbuffer), _COLUMNS):
        lines.append("  " + " ".join(f"0x{byte:02x}," for byte in flatbuffer[start : start + _COLUMNS]))
    lines += [
        "};",
        f"static const unsigned int {identifier}_len = {len(flatbuffer)};",
        "",
        f"#endif  // {macro}_H_",
        "",
    ]
    return "\n".join(lines).encode()


def _described(name: str, tensor: Tensor) -> str:
    shape = ", ".join(str(size) for size in tensor.shape)
    grid = ""
    if tensor.scale is not None:
        grid = f", real = (code - ({tensor.zero_point})) * {float(tensor.scale[0])!r}"
    printable = name.encode("ascii", "replace").decode().replace("\\", "/")
    return f"{printable}: {tensor.dtype}[{shape}]{grid}"
