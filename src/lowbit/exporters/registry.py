"""The formats that a quantized model can leave as: by name, or by the suffix of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from lowbit.exceptions import RecipeError

__all__ = ["FORMATS", "ExportFormat", "ExportOptions", "find_format"]

Layout = Literal["nhwc", "keep"]
Interface = Literal["int8", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How a model leaves.

    Attributes:
        layout: `nhwc`: pictures go in and out as the kernels have them, channels last. `keep`: as the ONNX model has
            them, with a transposition where that differs.
        interface: Whether inputs and outputs carry int8 codes, or float32 with a conversion at the edge.
        name: Name of the model: a C identifier is made of it.

    Raises:
        RecipeError: An option has no such value.
    """

    layout: Layout = "nhwc"
    interface: Interface = "int8"
    name: str = "model"

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("layout", self.layout, get_args(Layout)),
            ("interface", self.interface, get_args(Interface)),
        ):
            if value not in allowed:
                raise RecipeError(f"there is no {option} {value!r}", remedy=f"use one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """A format that `lowbit export` writes.

    Attributes:
        name: As users type it behind `--format`.
        suffixes: Of files that are written in it unless a format is named.
        description: One line.
        beside: Suffix, in place of the file's own, of a second file that belongs to it.
        integer_kernels: Whether it holds the calls of integer kernels, with layout and interface to choose.
        for_microcontrollers: Whether the file is of use only where the microcontroller's interpreter runs it.
    """

    name: str
    suffixes: tuple[str, ...]
    description: str
    beside: str | None = None
    integer_kernels: bool = False
    for_microcontrollers: bool = False

    def files(self, path: Path) -> tuple[Path, ...]:
        """Return the files that are written for `path`, itself first.

        Raises:
            RecipeError: The second file would be the first one.
        """
        if self.beside is None:
            return (path,)
        second = path.with_suffix(self.beside)
        if second == path:
            raise RecipeError(
                f"'{path}' is also the name of the file with the weights", remedy=f"end the name in {self.suffixes[0]}"
            )
        return (path, second)


FORMATS: dict[str, ExportFormat] = {
    format_.name: format_
    for format_ in (
        ExportFormat(
            name="litert",
            suffixes=(".tflite",),
            description="LiteRT (TensorFlow Lite) flatbuffer, int8 from end to end",
            integer_kernels=True,
        ),
        ExportFormat(
            name="c-array",
            suffixes=(".h",),
            description="C header with the LiteRT flatbuffer as an array, for LiteRT for Microcontrollers",
            integer_kernels=True,
            for_microcontrollers=True,
        ),
        ExportFormat(
            name="openvino",
            suffixes=(".xml",),
            description="OpenVINO's saved IR: the graph, and its weights in a .bin beside it",
            beside=".bin",
        ),
        ExportFormat(
            name="qonnx",
            suffixes=(".qonnx.onnx", ".qonnx"),
            description="QONNX: Quant nodes of any width on float tensors, on the way to FINN and hls4ml",
        ),
        ExportFormat(
            name="torch",
            suffixes=(".pt2",),
            description="A program of torch.export, quantized in the form that PyTorch's own tools make and read",
        ),
        ExportFormat(
            name="executorch",
            suffixes=(".pte",),
            description="ExecuTorch, with XNNPACK's integer kernels, for phones",
        ),
    )
}


def find_format(path: str | Path, name: str | None = None) -> ExportFormat:
    """Return the format called `name`, or the one that the suffix of `path` stands for.

    Raises:
        RecipeError: There is no such format, or the suffix stands for none.
    """
    if name is not None:
        if name not in FORMATS:
            raise RecipeError(f"there is no export format {name!r}", remedy=f"use one of {', '.join(FORMATS)}")
        return FORMATS[name]
    file = Path(path).name.lower()
    for format_ in FORMATS.values():
        if file.endswith(format_.suffixes):
            return format_
    known = ", ".join(f"{suffix} ({format_.name})" for format_ in FORMATS.values() for suffix in format_.suffixes)
    raise RecipeError(
        f"the suffix of '{path}' says no format", remedy=f"end the name in {known}, or name one with --format"
    )
