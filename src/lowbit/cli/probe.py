"""`lowbit probe`: what this machine does, and what the operators of a model cost on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_source, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.cli.outputs import Outputs

__all__ = ["probe"]

_GROUP = "Options"


@click.command(cls=Command, short_help="Measure this machine, and what a model's operators cost on it.")
@click.argument("model", type=FILE, required=False)
@option(_GROUP, "--target", default="host", metavar="NAME", help="A target that this machine is.  [host]")
@option(_GROUP, "--data", metavar="PATH", help="A sample, where the model leaves its shapes open.  [random]")
@option(_GROUP, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_GROUP, "--threads", type=click.IntRange(min=1), default=1, metavar="N", help="Threads of the engine.  [1]")
@option(_GROUP, "--batch", type=click.IntRange(min=1), default=1, metavar="N", help="Samples at once.  [1]")
@option(
    _GROUP,
    "--time",
    "seconds",
    type=click.FloatRange(min=0.1),
    default=3.0,
    metavar="SECONDS",
    help="How long to measure; longer on a loaded machine.  [3]",
)
@option(_GROUP, "--save", type=FILE, metavar="FILE.json", help="Write the costs, for `--costs` on another computer.")
@option(_GROUP, "--fresh", is_flag=True, help="Measure again what is in the cache.")
@option(_GROUP, "--details", is_flag=True, help="Print every operator.")
@option(_GROUP, "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.pass_obj
def probe(
    outputs: Outputs,
    /,
    model: Path | None,
    target: str,
    data: str | None,
    preprocess: str | None,
    threads: int,
    batch: int,
    seconds: float,
    save: Path | None,
    fresh: bool,
    details: bool,
    quiet: bool,
) -> None:
    """Measure this machine: instruction set, whether 8-bit products saturate, and what kernels cost.

    With MODEL (ONNX), time every operator of the model in the engine, in float and in each format that the target
    allows, and the conversions between them. Costs are kept in a cache, by engine version, processor and threads.
    """
    if model is not None:
        check_model(model)
    transform = preprocessing(preprocess)
    if save is not None:
        outputs.reserve(save, inputs=(model,))

    from lowbit.methods.probe_cache import recall_probe, remember_probe
    from lowbit.plan.cost_table import write_table
    from lowbit.report.probe import probe_parts
    from lowbit.targets import find_target

    source = data_source(data)
    shapes_are_known = model is not None and source in {None, "random"}
    found = None
    if model is not None and shapes_are_known and not fresh:
        found = recall_probe(model, find_target(target), threads=threads, batch=batch)
    if found is None:
        from lowbit.methods.probing import probe as run

        found = run(
            model,
            target=target,
            data=source,
            preprocessing=transform,
            threads=threads,
            batch=batch,
            seconds=seconds,
            fresh=fresh,
            stages=stages(quiet=quiet),
        )
        if model is not None and shapes_are_known:
            remember_probe(model, found, batch=batch)
    if save is not None:
        write_table(found.table, save)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    if not quiet:
        show([*probe_parts(found, details=details), *([f"wrote {save}"] if save is not None else [])])
