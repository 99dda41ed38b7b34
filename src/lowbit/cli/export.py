"""`lowbit export`: a quantized model as a file of another runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_source, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.cli.outputs import Outputs

__all__ = ["export"]

_FILE, _CHECK = "The file", "Checking and printing"


@click.command(cls=Command, short_help="A quantized model for another runtime: LiteRT, C, OpenVINO, QONNX, PyTorch.")
@click.argument("model", type=FILE)
@option(
    _FILE,
    "-o",
    "--output",
    type=FILE,
    required=True,
    metavar="OUT",
    help="The file; its suffix says the format: .tflite is LiteRT, .h a C array of it, .xml OpenVINO, "
    ".qonnx.onnx QONNX, .pt2 torch.export, .pte ExecuTorch.",
)
@option(
    _FILE,
    "--format",
    "format_",
    metavar="NAME",
    help="The format, where the suffix does not say: litert, c-array, openvino, qonnx, torch, executorch.",
)
@option(
    _FILE,
    "--layout",
    metavar="nhwc|keep",
    help="LiteRT: pictures go in and out with the channels last, or as in MODEL.  [nhwc]",
)
@option(_FILE, "--io", metavar="int8|float", help="LiteRT: inputs and outputs are codes, or float32.  [int8]")
@option(
    _CHECK,
    "--data",
    metavar="PATH",
    help="Samples to compare on; the first one says sizes that MODEL leaves open.  [random codes]",
)
@option(_CHECK, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_CHECK, "--samples", type=click.IntRange(min=1), default=8, metavar="N", help="How many samples.  [8]")
@option(_CHECK, "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.pass_obj
def export(
    outputs: Outputs,
    /,
    model: Path,
    output: Path,
    format_: str | None,
    layout: str | None,
    io: str | None,
    data: str | None,
    preprocess: str | None,
    samples: int,
    quiet: bool,
) -> None:
    """Write MODEL (ONNX with Q/DQ pairs) for another runtime, with the codes and scales that it has.

    Best made with the target of that runtime: `lowbit quantize --target litert`. What a format cannot hold is refused
    by name, before anything is written; the file runs in its runtime beside MODEL first.
    """
    check_model(model)
    from lowbit.exporters import find_format

    for file in find_format(output, format_).files(output):
        outputs.reserve(file, inputs=(model,))
    transform = preprocessing(preprocess)

    from lowbit.methods.export import export as run

    exported = run(
        model,
        output,
        format=format_,
        layout=layout,
        io=io,
        data=data_source(data),
        preprocessing=transform,
        samples=samples,
        stages=stages(quiet=quiet),
    )
    if quiet:
        for note in exported.notes:
            click.echo(note, err=True)
        return
    from rich.text import Text

    first, *others = str(exported).splitlines()
    show([Text(first, style="bold"), *(Text(line) for line in others)])
