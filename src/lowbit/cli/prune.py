"""`lowbit prune`: channels removed, or weights set to zero."""

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

_WHAT, _DATA, _FILES = "What to remove", "Data", "Files"


@click.command(cls=Command, short_help="Remove channels, or set weights to zero.")
@click.argument("model", type=FILE)
@option(_WHAT, "--amount", type=float, metavar="SHARE", help="Share that goes, in [0, 1).  [0.5]")
@option(_WHAT, "--weights", is_flag=True, help="Set single weights to zero instead of removing channels.")
@option(
    _WHAT,
    "--criterion",
    metavar="NAME",
    help="l1, l2, batch-norm, taylor or fisher; for weights magnitude, wanda or sparse-gpt.  [l2; magnitude]",
)
@option(_WHAT, "--allocation", metavar="uniform|global", help="The same share everywhere, or what matters least.")
@option(_WHAT, "--round-to", type=int, metavar="N", help="Channels left are a multiple of this.  [8]")
@option(_WHAT, "--target-macs", type=float, metavar="SHARE", help="Until this share of multiplications is left.")
@option(_WHAT, "--target-weights", type=float, metavar="SHARE", help="Until this share of weights is left.")
@option(_WHAT, "--pattern", metavar="N:M|RxC", help="For weights: n of every m stay, or whole blocks go.")
@option(_WHAT, "--exclude", multiple=True, metavar="PATTERN", help="Leave operators alone: a name with * and ?.")
@option(_DATA, "--data", metavar="PATH", help="Calibration samples, as for `lowbit quantize`.")
@option(_DATA, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_DATA, "--samples", type=int, metavar="N", help="Use at most so many samples.  [64]")
@option(_DATA, "--no-compensation", is_flag=True, help="Do not refit what reads removed channels.")
@option(_DATA, "--seed", type=int, metavar="N", help="Seed of everything random.  [0]")
@option(_FILES, "-o", "--output", type=FILE, required=True, metavar="OUT", help="Where the pruned model goes.")
@click.pass_obj
def prune(
    outputs: Outputs,
    /,
    model: Path,
    data: str | None,
    preprocess: str | None,
    output: Path,
    weights: bool,
    no_compensation: bool,
    exclude: tuple[str, ...],
    **options: Any,
) -> None:
    """Prune the float MODEL (ONNX): fine-tune or quantize the result afterwards."""
    check_model(model)
    inputs = (model, *(Path(text) for text in (data,) if text not in {None, "random"}))
    outputs.reserve(output, inputs=inputs)  # type: ignore[arg-type]
    transform = preprocessing(preprocess)

    from lowbit.methods.prune import prune as run

    found = run(
        model,
        structured=not weights,
        compensate=not no_compensation,
        exclude=exclude,
        data=data_source(data),
        preprocessing=transform,
        stages=stages(quiet=False),
        **{key: value for key, value in options.items() if value is not None},
    )
    found.save(output)
    show(found.renderables())
    click.echo(f"\n wrote {output}")
