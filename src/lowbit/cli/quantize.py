"""`lowbit quantize`: an ONNX model and some data in, a verified artifact out."""

from __future__ import annotations

import dataclasses
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
    from lowbit.plan.plan import Plan
    from lowbit.plan.recipe import Recipe

__all__ = ["quantize"]

_DATA, _HOW, _FILES, _RUN = "Data and quality", "What becomes of the model", "Files", "Measuring and printing"
_MEASURE_SECONDS = 2.0
_DECIDED = (
    "target",
    "weights",
    "activations",
    "method",
    "optimize",
    "min_sqnr",
    "max_sqnr_loss",
    "max_drop",
    "calibration",
    "percentile",
    "weight_range",
    "rounding",
    "rounding_inputs",
    "reestimate",
    "equalize",
    "absorb_bias",
    "rotate",
    "smooth",
    "outliers",
    "low_rank",
    "exclude",
    "io",
)


@click.command(cls=Command, short_help="An ONNX model in, a verified small one out.")
@click.argument("model", type=FILE)
@option(
    _DATA,
    "--data",
    metavar="PATH",
    help="Samples to calibrate on: .npz (one array per input, first axis = samples), .npy, a folder of these or of "
    "pictures, or a .zip. `random` tries without any. A fifth is kept back to verify on.",
)
@option(_DATA, "--test-data", metavar="PATH", help="Other samples to verify on, instead of a part of --data.")
@quality_options(_DATA)
@option(_DATA, "--samples", type=int, metavar="N", help="Calibrate on at most so many samples.  [300]")
@option(_HOW, "--target", metavar="NAME", help="Where the model will run; `lowbit targets` lists them.  [host]")
@option(
    _HOW,
    "--weights",
    metavar="FORMAT",
    help="int8, int4, int2, float16, nf4, codebook16 …, then :per-tensor, :per-channel or :block=32.  [the target's]",
)
@option(_HOW, "--activations", metavar="FORMAT", help="uint8, int8, int16, none or dynamic.  [the target's]")
@option(_HOW, "--method", metavar="auto|best|static|dynamic|weight-only", help="How; `best` also learns.  [auto]")
@option(_HOW, "--optimize", metavar="latency|size|accuracy", help="What comes first.  [latency]")
@option(
    _HOW,
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Integers only as far as the noise at the output stays so many decibel below the signal.",
)
@option(
    _HOW,
    "--max-sqnr-loss",
    type=float,
    metavar="DB",
    help="The same limit, relative to the same weights computed in float.",
)
@option(
    _HOW,
    "--max-drop",
    type=float,
    metavar="AMOUNT",
    help="The fastest plan that loses at most so much of the metric, in its own unit: 0.01 is a point of top-1.",
)
@option(
    _HOW,
    "--calibration",
    metavar="auto|minmax|moving-average|percentile|mse|entropy|output-mse",
    help="How ranges of activations are chosen.  [auto]",
)
@option(_HOW, "--weight-range", metavar="minmax|percentile|mse|entropy", help="How ranges of weights are.  [minmax]")
@option(
    _HOW,
    "--rounding",
    metavar="nearest|compensated|gptq|adaround|learned",
    help="How weights are rounded; each is slower and better than the one before.  [compensated]",
)
@option(
    _HOW,
    "--rounding-inputs",
    metavar="float|quantized",
    help="Round weights for what layers read in float, or for what the quantized layers before give.  [float]",
)
@option(
    _HOW,
    "--reestimate",
    is_flag=True,
    default=None,
    help="Restore mean and spread of every layer's outputs by its scales and biases, where it helps.",
)
@option(_HOW, "--equalize", is_flag=True, default=None, help="Make the ranges of neighbouring layers' channels alike.")
@option(
    _HOW,
    "--absorb-bias",
    is_flag=True,
    default=None,
    help="Move high biases in front of a Relu or Clip into the layer behind it, where it helps.",
)
@option(
    _HOW,
    "--rotate",
    metavar="none|offline|online",
    help="Rotate channels so that outliers spread over all; `online` may add MatMuls.  [none]",
)
@option(
    _HOW,
    "--smooth",
    metavar="none|smoothquant|awq",
    help="Move scales from activations to the weights that read them.  [none]",
)
@option(_HOW, "--percentile", type=float, metavar="PERCENT", help="What --calibration percentile keeps.  [99.99]")
@option(
    _HOW,
    "--outliers",
    type=float,
    metavar="FRACTION",
    help="Keep so many of the weights that are only stored apart at 16 bits, e.g. 0.005, where it helps.  [0]",
)
@option(
    _HOW,
    "--low-rank",
    type=int,
    metavar="RANK",
    help="Add a product of two thin matrices to weights that are only stored, where it helps.  [0]",
)
@option(
    _HOW,
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave operators in float: a name with * and ?, re:EXPRESSION or op:TYPE. May be repeated.",
)
@option(_HOW, "--io", metavar="float|int8", help="Whether inputs and outputs stay float or carry codes.  [float]")
@option(_HOW, "--seed", type=int, metavar="N", help="Seed of everything random.  [0]")
@option(_HOW, "--recipe", type=FILE, metavar="FILE", help="All of this as YAML; options given here win over it.")
@option(_HOW, "--plan", type=FILE, metavar="FILE", help="Apply a saved plan as it is: the same bytes come out.")
@option(
    _FILES,
    "-o",
    "--output",
    type=FILE,
    metavar="OUT",
    help="The artifact; a file that exists is replaced in one step.  [beside MODEL, as STEM.int8.onnx]",
)
@option(_FILES, "--report", type=FILE, metavar="FILE", help="Write the report as one HTML file.")
@option(_FILES, "--save-plan", type=FILE, metavar="FILE", help="Write what was decided, and why, as YAML.")
@option(
    _RUN,
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="For costs, latency and memory.  [1]",
)
@option(
    _RUN,
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Samples at once, for costs and latency.  [1]",
)
@option(
    _RUN,
    "--costs",
    type=FILE,
    metavar="FILE",
    help="Plan by costs that `lowbit probe --save` measured on the device; `formulas` measures nothing.  "
    "[measure here]",
)
@option(_RUN, "--force", is_flag=True, help="Use a file of costs that does not fit the target.")
@option(
    _RUN,
    "--time",
    "seconds",
    type=DURATION,
    metavar="DURATION",
    help="How long latency is measured, 0 leaves it out; with `--method best` or `--rounding learned`, how long "
    "remedies and learning may take, e.g. 5m.  [2; learning: no limit]",
)
@option(_RUN, "--measure", type=DURATION, metavar="DURATION", help="How long latency is measured, in any case.  [2]")
@option(
    _RUN,
    "--checkpoint",
    type=FILE,
    metavar="FILE",
    help="Keep the state of calibration here, and what was learned in a folder beside it, so that the same command "
    "continues after an interruption.",
)
@option(_RUN, "--details", is_flag=True, help="Print every operator and layer.")
@option(_RUN, "--quiet", is_flag=True, help="Print warnings and errors only.")
@click.pass_obj
def quantize(
    outputs: Outputs,
    /,
    model: Path,
    data: str | None,
    test_data: str | None,
    preprocess: str | None,
    labels: Path | None,
    metric: str | None,
    recipe: Path | None,
    plan: Path | None,
    output: Path | None,
    report: Path | None,
    save_plan: Path | None,
    checkpoint: Path | None,
    costs: Path | None,
    force: bool,
    batch: int,
    threads: int,
    seconds: float | None,
    measure: float | None,
    details: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Make MODEL (ONNX) small and fast for a target, and measure what it cost.

    The artifact is loaded in the engine, compared with the float model on samples that calibration has not seen, and
    timed beside it. `--method auto` leaves in float what integers would make slower.
    """
    check_model(model)
    given = {key: value for key, value in options.items() if value is not None and value != ()}
    settings = _settings(recipe, given)
    if settings.resolved().learns and seconds is not None:
        settings, seconds = dataclasses.replace(settings, time=seconds), None
    fixed = _plan(plan, recipe, given)
    inputs = (model, labels, recipe, plan, *data_files(data, test_data))
    artifact = outputs.reserve(output or _default_output(model, settings, fixed), inputs=inputs)
    for path in (report, save_plan):
        if path is not None:
            outputs.reserve(path, inputs=inputs)
    scored = load_metric(metric)
    transform = preprocessing(preprocess)

    from lowbit.methods.quantize import quantize as run

    result = run(
        model,
        data_source(data),
        test_data=data_source(test_data),
        labels=labels,
        preprocessing=transform,
        recipe=settings,
        plan=fixed,
        metric=scored,
        checkpoint=checkpoint,
        costs=costs,
        force=force,
        threads=threads,
        batch=batch,
        measure_seconds=next(found for found in (measure, seconds, _MEASURE_SECONDS) if found is not None),
        stages=stages(quiet=quiet),
    )
    deliver(result, artifact, report=report, save_plan=save_plan, details=details, quiet=quiet)


def _settings(path: Path | None, given: dict[str, Any]) -> Recipe:
    """Return the recipe: the file's, with what was given on the command line in its place."""
    from lowbit.plan.recipe import Recipe

    base = Recipe.from_yaml(path) if path is not None else Recipe()
    return Recipe.from_dict({**base.to_dict(), **given})


def _plan(path: Path | None, recipe: Path | None, given: dict[str, Any]) -> Plan | None:
    """Read the plan, which leaves nothing to decide."""
    if path is None:
        return None
    contradicting = [f"--{key.replace('_', '-')}" for key in _DECIDED if key in given] + (
        ["--recipe"] if recipe is not None else []
    )
    if contradicting:
        raise click.UsageError(
            f"{', '.join(contradicting)} cannot change what --plan has decided; edit the plan instead"
        )
    from lowbit.plan.files import read_plan

    return read_plan(path)


def _default_output(model: Path, recipe: Recipe, plan: Plan | None) -> Path:
    """Name the artifact after its weights, beside the model: `net.onnx` gives `net.int8.onnx`."""
    from lowbit.formats import parse_format
    from lowbit.targets import find_target

    if plan is None:
        target = "host" if recipe.target == "fastest-here" else recipe.target
        texts = [recipe.weights or find_target(target).weights]
    else:
        texts = [site.weights for site in plan.sites if site.weights is not None]
    element = parse_format(max(texts, key=texts.count)).element.name if texts else "float"
    return named_after(model, element)
