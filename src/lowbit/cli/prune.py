"""`lowbit prune`: the weights that matter least become zero."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_source, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from lowbit.cli.outputs import Outputs

__all__ = ["prune"]

_WHAT, _FILES = "What is pruned", "Files and printing"


@click.command(cls=Command, short_help="The weights that matter least become zero.")
@click.argument("model", type=FILE)
@option(_WHAT, "--amount", type=float, default=0.5, metavar="FRACTION", help="Of the weights.  [0.5]")
@option(_WHAT, "--data", metavar="PATH", help="Calibration samples, as for `lowbit quantize`; without, by magnitude.")
@option(_WHAT, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_WHAT, "--criterion", metavar="magnitude|wanda|sparsegpt", help="[sparsegpt with data, magnitude without]")
@option(_WHAT, "--pattern", default="any", metavar="any|N:M|RxC", help="2:4, or blocks such as 4x1.  [any]")
@option(_WHAT, "--scope", default="global", metavar="global|layer", help="Whether layers compete.  [global]")
@option(
    _WHAT,
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave operators alone: a name with * and ?, re:EXPRESSION or op:TYPE. May be repeated.",
)
@option(_WHAT, "--seed", type=int, default=0, metavar="N", help="Of which rows of inputs are looked at.  [0]")
@option(_FILES, "-o", "--output", type=FILE, metavar="OUT", help="[beside MODEL, as STEM.pruned.onnx]")
@option(_FILES, "--quiet", is_flag=True, help="Print nothing.")
@click.pass_obj
def prune(
    outputs: Outputs,
    /,
    model: Path,
    data: str | None,
    preprocess: str | None,
    output: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Set the weights of MODEL (ONNX) that matter least to zero, and change the others to make up for it.

    Zeros pay in `lowbit pack`; training afterwards keeps them with `keep_zeros`.
    """
    check_model(model)
    inputs = (model, *(Path(text) for text in (data,) if text not in {None, "random"}))
    artifact = outputs.reserve(output or model.with_name(f"{model.stem}.pruned.onnx"), inputs=inputs)
    transform = preprocessing(preprocess)

    from lowbit.methods.prune import prune as run

    amount = options.pop("amount")
    found = run(model, amount, data_source(data), preprocessing=transform, stages=stages(quiet=quiet), **options)
    found.save(artifact)
    if not quiet:
        show([found.table()])
        click.echo(f"\n wrote {artifact}")
