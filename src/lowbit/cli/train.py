"""`lowbit train`: an ONNX model and samples without labels in, a model that has learned to live with few bits out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.delivery import deliver, named_after
from lowbit.cli.duration import DURATION
from lowbit.cli.metrics import load_metric
from lowbit.cli.parameters import (
    FILE,
    Command,
    check_model,
    data_files,
    data_source,
    option,
    preprocessing,
    quality_options,
)
from lowbit.cli.progress import stages

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.cli.outputs import Outputs
    from lowbit.methods.qat import Training

__all__ = ["train"]

_DATA, _HOW, _LEARNING, _FILES, _RUN = (
    "Data and quality",
    "What becomes of the model",
    "How it learns",
    "Files",
    "Measuring and printing",
)


class _Rate(click.ParamType[float | str]):
    """A positive number, or `auto`."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Return the number or the word."""
        if value == "auto":
            return "auto"
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no learning rate: give a number, or auto", param, ctx)


@click.command(cls=Command, short_help="A model learns to live with few bits, from its float self.")
@click.argument("model", type=FILE)
@option(
    _DATA,
    "--data",
    metavar="PATH",
    required=True,
    help="Samples to learn from, as for `lowbit quantize`; no labels are needed. A fifth is kept back to choose the "
    "best epoch and to verify on.",
)
@option(_DATA, "--test-data", metavar="PATH", help="Other samples to verify on, instead of a part of --data.")
@quality_options(_DATA)
@option(_DATA, "--samples", type=click.IntRange(min=1), metavar="N", help="Learn from at most so many samples.  [all]")
@option(_HOW, "--target", metavar="NAME", help="Where the model will run; `lowbit targets` lists them.  [host]")
@option(_HOW, "--weights", metavar="FORMAT", help="int8, int4, int2, ternary, binary, nf4 …  [the target's]")
@option(_HOW, "--activations", metavar="FORMAT", help="uint8, uint4, uint2 or none.  [the target's]")
@option(
    _HOW,
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave operators in float: a name with * and ?, re:EXPRESSION or op:TYPE. May be repeated.",
)
@option(_HOW, "--no-edges", is_flag=True, help="Let the first and the last layers have few bits too.")
@option(_HOW, "--keep-zeros", is_flag=True, help="Weights that are 0 stay 0, as pruning left them.")
@option(_HOW, "--keep-clusters", is_flag=True, help="Weights of the same value keep having the same.")
@option(_HOW, "--recipe", type=FILE, metavar="FILE", help="Formats, rules and exclusions as YAML; options here win.")
@option(
    _LEARNING, "--epochs", type=click.IntRange(min=1), metavar="N", help="Passes over the data.  [300 steps' worth]"
)
@option(_LEARNING, "--batch", type=click.IntRange(min=1), default=32, metavar="N", help="Samples a step.  [32]")
@option(
    _LEARNING,
    "--lr",
    type=_Rate(),
    default="auto",
    metavar="RATE|auto",
    help="In units of every tensor's own size, 0.005 is usual; `auto` looks for one.  [auto]",
)
@option(_LEARNING, "--optimizer", metavar="adamw|sgd", default="adamw", help="[adamw]")
@option(_LEARNING, "--teacher", type=FILE, metavar="FILE", help="Learn from this ONNX model.  [MODEL in float]")
@option(_LEARNING, "--temperature", type=float, default=2.0, metavar="T", help="Of the teacher's classes.  [2]")
@option(_LEARNING, "--blocks", is_flag=True, help="Compare the ends of blocks with the teacher's too.")
@option(
    _LEARNING,
    "--label-weight",
    type=float,
    default=0.0,
    metavar="FRACTION",
    help="Of the labels beside the teacher in the loss; 0 only judges by them.  [0]",
)
@option(_LEARNING, "--layers", multiple=True, metavar="NAME|hurt", help="Only these learn; may be repeated.  [all]")
@option(_LEARNING, "--patience", type=int, default=0, metavar="N", help="End after so many epochs without gain.  [0]")
@option(_LEARNING, "--seed", type=int, default=0, metavar="N", help="Of everything random.  [0]")
@option(_FILES, "-o", "--output", type=FILE, metavar="OUT", help="[beside MODEL, as STEM.int4.onnx and the like]")
@option(_FILES, "--report", type=FILE, metavar="FILE", help="Write the report as one HTML file.")
@option(_FILES, "--save-plan", type=FILE, metavar="FILE", help="Write formats and ranges as YAML.")
@option(_FILES, "--checkpoint", type=FILE, metavar="FILE", help="Where the same command continues, to the same bytes.")
@option(
    _FILES,
    "--checkpoint-every",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Steps between checkpoints; 0: after every epoch.  [0]",
)
@option(_FILES, "--log-dir", type=FILE, metavar="FOLDER", help="Write loss and metric for TensorBoard.")
@option(_RUN, "--threads", type=click.IntRange(min=1), default=1, metavar="N", help="For latency and memory.  [1]")
@option(_RUN, "--measure", type=DURATION, default=2.0, metavar="DURATION", help="How long latency is measured.  [2]")
@option(_RUN, "--details", is_flag=True, help="Print every operator and layer.")
@option(_RUN, "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.pass_obj
def train(
    outputs: Outputs,
    /,
    model: Path,
    data: str,
    test_data: str | None,
    preprocess: str | None,
    metric: str | None,
    labels: Path | None,
    recipe: Path | None,
    weights: str | None,
    no_edges: bool,
    teacher: Path | None,
    blocks: bool,
    layers: tuple[str, ...],
    output: Path | None,
    report: Path | None,
    save_plan: Path | None,
    measure: float,
    details: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train MODEL (ONNX) so that it computes well with few bits, and measure what came of it.

    The float model is the teacher: samples need no labels. What is trained is what the engine will compute. The
    artifact is then run in the engine beside the float model, on samples that training has not seen.
    """
    check_model(model)
    given = {key: value for key, value in options.items() if value not in (None, ())}
    if weights is not None:
        given["weights"] = weights
    inputs = (model, labels, recipe, teacher, *data_files(data, test_data))
    artifact = outputs.reserve(output or _default_output(model, recipe, weights, given.get("target")), inputs=inputs)
    for path in (report, save_plan):
        if path is not None:
            outputs.reserve(path, inputs=inputs)
    scored = load_metric(metric)
    transform = preprocessing(preprocess)

    from lowbit.methods.train import train_from_files

    trained = train_from_files(
        model,
        data_source(data),
        test_data=data_source(test_data),
        labels=labels,
        preprocessing=transform,
        metric=scored,
        teacher="float" if teacher is None else teacher,
        features="blocks" if blocks else (),
        layers=("hurt" if layers == ("hurt",) else layers) or None,
        recipe=recipe,
        edges=not no_edges,
        measure_seconds=measure,
        progress=False if quiet else None,
        stages=stages(quiet=quiet),
        **given,
    )
    result = trained.result
    assert result is not None
    if quiet and trained.stopped:
        click.echo(f"warning: {trained.stopped}", err=True)
    deliver(result, artifact, report=report, save_plan=save_plan, details=details, quiet=quiet, told=_told(trained))


def _told(trained: Training) -> str:
    """Return on a line or two what the training was."""
    first, last = trained.history[0], trained.history[-1]
    words = [
        f" {last.epoch} epochs, {last.steps} steps, learning rate {trained.lr:.2g}",
        f"loss {first.loss:.4g} → {last.loss:.4g}",
    ]
    chosen = [row for row in trained.history if row.metric is not None]
    if chosen:
        best = max(chosen, key=lambda row: row.metric if row.metric is not None else float("-inf"))
        words.append(f"best validation {best.metric:.4g} in epoch {best.epoch}")
    if trained.layers:
        words.append(f"{len(trained.layers)} operators learned")
    if trained.stopped:
        words.append(trained.stopped)
    return "; ".join(words)


def _default_output(model: Path, recipe: Path | None, weights: str | None, target: str | None) -> Path:
    """Name the artifact after its weights, beside the model: `net.onnx` gives `net.int4.onnx`."""
    from lowbit.plan.recipe import Recipe
    from lowbit.targets import find_target

    base = Recipe() if recipe is None else Recipe.from_yaml(recipe)
    text = weights or base.weights or find_target(target or base.target).weights
    return named_after(model, text)
