"""`lowbit pack` and `lowbit unpack`: a model as one small file, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.parameters import FILE, Command, option

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.cli.outputs import Outputs

__all__ = ["pack", "unpack"]


@click.command(cls=Command, short_help="A model as one small file, for download and storage.")
@click.argument("model", type=FILE)
@option("Options", "-o", "--output", type=FILE, metavar="FILE", help="The .lbz file [MODEL with the ending .lbz].")
@option("Options", "--smallest", is_flag=True, help="Code large models as slowly as small ones.")
@option("Options", "--quiet", is_flag=True, help="Print nothing.")
@click.pass_obj
def pack(outputs: Outputs, model: Path, output: Path | None, smallest: bool, quiet: bool) -> None:
    """Pack MODEL (ONNX) and its data files into an .lbz file, from which `lowbit unpack` makes the same bytes."""
    from lowbit.cli.parameters import check_model
    from lowbit.cli.progress import stages
    from lowbit.methods.pack import pack as run
    from lowbit.report.units import bytes_text

    check_model(model)
    output = outputs.reserve(output or model.with_suffix(".lbz"), inputs=(model,))
    found = run(model, output, smallest=smallest, stages=stages(quiet=quiet))
    if not quiet:
        click.echo(
            f"{output}: {bytes_text(found.packed)}, {found.bytes / found.packed:.2f}× smaller than "
            f"{bytes_text(found.bytes)}; {bytes_text(found.structure)} are the graph, its names and metadata."
        )


@click.command(cls=Command, short_help="A packed model as the ONNX file that it was.")
@click.argument("packed", type=FILE)
@option("Options", "-o", "--output", type=FILE, metavar="FILE", help="The ONNX file [PACKED with the ending .onnx].")
@option("Options", "--quiet", is_flag=True, help="Print nothing.")
@click.pass_obj
def unpack(outputs: Outputs, packed: Path, output: Path | None, quiet: bool) -> None:
    """Unpack PACKED (.lbz) to the ONNX file that it was made of, bit for bit, and its data files beside it."""
    from lowbit.cli.progress import stages
    from lowbit.methods.pack import unpack as run
    from lowbit.report.units import bytes_text

    output = outputs.reserve(output or packed.with_suffix(".onnx"), inputs=(packed,))
    written = run(packed, output, stages=stages(quiet=quiet))
    if not quiet:
        for path in written:
            click.echo(f"{path}: {bytes_text(path.stat().st_size)}")
