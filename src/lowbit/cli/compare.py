"""`lowbit compare`: an artifact beside its float model."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import TYPE_CHECKING

import click

from lowbit.cli.metrics import load_metric
from lowbit.cli.parameters import FILE, Command, check_model, data_source, option, preprocessing, quality_options
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from lowbit.cli.outputs import Outputs
    from lowbit.plan.verification import Verification

__all__ = ["compare"]

_WORST_LAYERS = 5

_DATA, _RUN = "Data and quality", "Measuring and printing"


@click.command(cls=Command, short_help="Quality, speed and size of two files, side by side.")
@click.argument("float_model", type=FILE, metavar="FLOAT")
@click.argument("artifact", type=FILE)
@option(_DATA, "--data", required=True, metavar="PATH", help="Test samples, in any form that `lowbit quantize` takes.")
@quality_options(_DATA)
@option(_DATA, "--samples", type=click.IntRange(min=1), metavar="N", help="Use at most so many samples.  [all]")
@option(_DATA, "--seed", type=int, default=0, metavar="N", help="Chooses them.  [0]")
@option(_RUN, "--report", type=FILE, metavar="FILE", help="Write the report as one HTML file.")
@option(_RUN, "--threads", type=click.IntRange(min=1), default=1, metavar="N", help="For latency and memory.  [1]")
@option(
    _RUN,
    "--time",
    "seconds",
    type=click.FloatRange(min=0),
    default=2.0,
    metavar="SECONDS",
    help="How long latency is measured; 0 leaves it out.  [2]",
)
@option(_RUN, "--details", is_flag=True, help="Print every operator, layer and kernel.")
@option(_RUN, "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.pass_obj
def compare(
    outputs: Outputs,
    /,
    float_model: Path,
    artifact: Path,
    data: str,
    preprocess: str | None,
    labels: Path | None,
    metric: str | None,
    samples: int | None,
    seed: int,
    report: Path | None,
    threads: int,
    seconds: float,
    details: bool,
    quiet: bool,
) -> None:
    """Measure ARTIFACT beside FLOAT (both ONNX): quality, latency, size and memory. Any tool may have written it.

    Layers are compared where both files have a tensor of the same name.
    """
    check_model(float_model)
    check_model(artifact)
    if report is not None:
        outputs.reserve(report, inputs=(float_model, artifact, labels))
    scored = load_metric(metric)
    transform = preprocessing(preprocess)

    from lowbit.methods.compare import compare as run
    from lowbit.methods.inspect import inspect
    from lowbit.report.html import write_report
    from lowbit.report.terminal import kernels_table, layers_table, sites_table, summary_table

    verification = run(
        float_model,
        artifact,
        data_source(data),
        labels=labels,
        preprocessing=transform,
        metric=scored,
        samples=samples,
        seed=seed,
        threads=threads,
        measure_seconds=seconds,
        stages=stages(quiet=quiet),
    )
    plan = inspect(artifact, engine=False).as_plan()
    if report is not None:
        now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        write_report(
            report,
            title=artifact.name,
            plan=plan,
            verification=verification,
            histograms=(),
            provenance={
                "engine": verification.engine,
                "float model": str(float_model),
                "artifact": str(artifact),
                "data": data,
                "written": now,
            },
        )
    if quiet:
        for warning in verification.warnings:
            click.echo(f"warning: {warning}", err=True)
        return
    parts: list[object] = [summary_table(plan, verification, title=f"{artifact.name} beside {float_model.name}")]
    if details:
        parts += [sites_table(plan), layers_table(verification), kernels_table(verification)]
    elif verification.layers:
        parts += _worst(verification)
    show(parts)


def _worst(verification: Verification) -> list[RenderableType]:
    """Return the few layers that are furthest from float."""
    from rich.padding import Padding
    from rich.text import Text

    from lowbit.report.terminal import layers_table
    from lowbit.report.verdict import layer_db

    kept = sorted(verification.layers, key=layer_db)[:_WORST_LAYERS]
    shown = tuple(layer for layer in verification.layers if layer in kept)
    said = f"The {len(shown)} of {len(verification.layers)} layers furthest from float; --details shows all."
    table = layers_table(dataclasses.replace(verification, layers=shown))
    return [Text(), table, Padding(Text(said, style="#767676"), (0, 1))]
