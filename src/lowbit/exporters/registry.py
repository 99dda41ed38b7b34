"""The formats that a quantized model can leave as: by name, or by the suffix of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lowbit.exceptions import RecipeError
from lowbit.exporters.c_array import render_c_array
from lowbit.exporters.litert import render_litert

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.exporters.litert.tensors import Program

__all__ = ["FORMATS", "ExportFormat", "ExportOptions", "Rendered", "find_format"]

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """A model in a format, not yet written.

    Attributes:
        flatbuffer: The LiteRT model.
        program: Its operators and tensors.
    """

    flatbuffer: bytes
    program: Program


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFormat:
    """A format that `lowbit export` writes.

    Attributes:
        name: As users type it behind `--format`.
        suffixes: Of files that are written in it unless a format is named.
        description: One line.
        for_microcontrollers: Whether the file is of use only where the microcontroller's interpreter runs it.
        render: From the quantized graph to the model; raises `ModelError` for what the format cannot hold.
        contents: From the model to the file's bytes, given its options and the arena that was measured (bytes).
    """

    name: str
    suffixes: tuple[str, ...]
    description: str
    render: Callable[[ir.Model, ExportOptions], Rendered]
    contents: Callable[[Rendered, ExportOptions, int | None], bytes]
    for_microcontrollers: bool = False


def _render(model: ir.Model, options: ExportOptions) -> Rendered:
    program, flatbuffer = render_litert(model, layout=options.layout, interface=options.interface)
    return Rendered(flatbuffer=flatbuffer, program=program)


FORMATS: dict[str, ExportFormat] = {
    format_.name: format_
    for format_ in (
        ExportFormat(
            name="litert",
            suffixes=(".tflite",),
            description="LiteRT (TensorFlow Lite) flatbuffer, int8 from end to end",
            render=_render,
            contents=lambda rendered, _options, _arena: rendered.flatbuffer,
        ),
        ExportFormat(
            name="c-array",
            suffixes=(".h",),
            description="C header with the LiteRT flatbuffer as an array, for LiteRT for Microcontrollers",
            render=_render,
            contents=lambda rendered, options, arena: render_c_array(
                rendered.flatbuffer, rendered.program, name=options.name, arena=arena
            ),
            for_microcontrollers=True,
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
    suffix = Path(path).suffix.lower()
    for format_ in FORMATS.values():
        if suffix in format_.suffixes:
            return format_
    known = ", ".join(f"{suffix} ({format_.name})" for format_ in FORMATS.values() for suffix in format_.suffixes)
    raise RecipeError(
        f"the suffix of '{path}' says no format", remedy=f"end the name in {known}, or name one with --format"
    )
