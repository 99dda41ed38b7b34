"""`lowbit diagnose`: why layers are bad, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_files, data_source, duration, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.cli.outputs import Outputs

__all__ = ["diagnose"]

_DATA, _HOW, _FILES, _RUN = "Data", "What to start from", "Files", "Trying and printing"


@click.command(cls=Command, short_help="Why layers are bad, what helps, and the recipe for it.")
@click.argument("model", type=FILE)
@option(_DATA, "--data", required=True, metavar="PATH", help="Calibration samples, as for `lowbit quantize`.")
@option(_DATA, "--test-data", metavar="PATH", help="Other samples for before and after, instead of a part of --data.")
@option(_DATA, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_DATA, "--samples", type=int, metavar="N", help="Calibrate on at most so many samples.  [300]")
@option(_HOW, "--target", metavar="NAME", help="Where the model will run; `lowbit targets` lists them.  [host]")
@option(_HOW, "--weights", metavar="FORMAT", help="As in `lowbit quantize`.  [the target's]")
@option(_HOW, "--activations", metavar="FORMAT", help="As in `lowbit quantize`.  [the target's]")
@option(_HOW, "--method", metavar="auto|static|dynamic|weight-only", help="As in `lowbit quantize`.  [auto]")
@option(
    _HOW,
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave operators in float: a name with * and ?, re:EXPRESSION or op:TYPE. May be repeated.",
)
@option(_HOW, "--seed", type=int, metavar="N", help="Seed of everything random.  [0]")
@option(_HOW, "--recipe", type=FILE, metavar="FILE", help="All of this as YAML; options given here win over it.")
@option(_FILES, "-o", "--output", type=FILE, metavar="OUT", help="Write the repaired artifact.")
@option(_FILES, "--save-recipe", type=FILE, metavar="FILE", help="Write the recipe that gives it, as YAML.")
@option(
    _RUN,
    "--time",
    "seconds",
    callback=duration,
    default="5m",
    metavar="TIME",
    help="How long all may take, about, e.g. 90s or 5m; 0 explains and tries nothing.  [5m]",
)
@option(_RUN, "--details", is_flag=True, help="Print every layer.")
@click.pass_obj
def diagnose(
    outputs: Outputs,
    /,
    model: Path,
    data: str,
    test_data: str | None,
    preprocess: str | None,
    recipe: Path | None,
    output: Path | None,
    save_recipe: Path | None,
    seconds: float,
    details: bool,
    **options: Any,
) -> None:
    """Explain which layers of the quantized MODEL (ONNX) are bad and why, try remedies, and keep what helps.

    Remedies are judged by the signal to noise ratio at the output, on calibration samples held out from them; before
    and after are measured on test samples. Without -o nothing is written.
    """
    check_model(model)
    inputs = (model, recipe, *data_files(data, test_data))
    for path in (output, save_recipe):
        if path is not None:
            outputs.reserve(path, inputs=inputs)
    transform = preprocessing(preprocess)

    from lowbit.methods.diagnose import diagnose as run

    found = run(
        model,
        data_source(data),
        test_data=data_source(test_data),
        preprocessing=transform,
        recipe=recipe,
        seconds=seconds,
        stages=stages(quiet=False),
        **{key: value for key, value in options.items() if value is not None and value != ()},
    )
    if output is not None:
        found.save(output)
    if save_recipe is not None:
        from lowbit.plan.text_files import write_text

        write_text(save_recipe, found.recipe_yaml)
    show(found.renderables(details=details))
    click.echo(f"\n{found.recipe_lines}")
    wrote = ", ".join(str(path) for path in (output, save_recipe) if path is not None)
    if wrote:
        click.echo(f"\n wrote {wrote}")
