"""`lowbit compress`: prune, share, quantize and code, in one chain that learns from the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_files, data_source, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from lowbit.cli.outputs import Outputs

__all__ = ["compress"]

_WHAT, _LEARNING, _FILES = "What is done", "How it learns", "Files and printing"


@click.command(cls=Command, short_help="Prune, share, quantize and code: files tens of times smaller.")
@click.argument("model", type=FILE)
@option(_WHAT, "--data", metavar="PATH", required=True, help="Samples to learn from, as for `lowbit quantize`.")
@option(_WHAT, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(_WHAT, "--recipe", type=FILE, metavar="FILE.yaml", help="The steps with all their values, instead of these.")
@option(_WHAT, "--prune", "amount", type=float, metavar="FRACTION", help="Of the weights become 0; 0: none.  [0.8]")
@option(_WHAT, "--share", "entries", type=int, metavar="N", help="Values that a weight tensor has.  [any]")
@option(_WHAT, "--weights", metavar="FORMAT", help="Format of the weights, or none.  [int4:per-tensor]")
@option(_WHAT, "--activations", metavar="FORMAT", help="Format of the activations, or none.  [uint8]")
@option(_LEARNING, "--epochs", type=int, metavar="N", help="Passes over the data for every step.  [10]")
@option(_LEARNING, "--batch", type=int, metavar="N", help="Samples that a training step looks at.  [64]")
@option(_LEARNING, "--lr", "rate", type=float, metavar="RATE", help="In units of every tensor's own size.  [0.02]")
@option(_LEARNING, "--seed", type=int, metavar="N", help="Of everything random.  [0]")
@option(
    _LEARNING,
    "--checkpoint",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Where an interrupted call goes on.",
)
@option(_FILES, "-o", "--output", type=FILE, metavar="OUT", help="[beside MODEL, as STEM.lbz]")
@option(_FILES, "--onnx", type=FILE, metavar="OUT", help="Write the ONNX file too, as `lowbit unpack` makes it.")
@option(_FILES, "--quiet", is_flag=True, help="Print nothing.")
@click.pass_obj
def compress(
    outputs: Outputs,
    /,
    model: Path,
    data: str,
    preprocess: str | None,
    recipe: Path | None,
    checkpoint: Path | None,
    output: Path | None,
    onnx: Path | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Make MODEL (ONNX) tens of times smaller: a packed file, from which `lowbit unpack` makes an ONNX file again.

    Weights are pruned, may share values, and get few bits; after each step the model learns from its float self on the
    data, so that no labels are needed. Then the file is coded.
    """
    given = {name: value for name, value in options.items() if value is not None}
    steps = _steps(given, recipe)
    check_model(model)
    inputs = (model, *data_files(data))
    packed = outputs.reserve(output or model.with_suffix(".lbz"), inputs=inputs)
    plain = None if onnx is None else outputs.reserve(onnx, inputs=inputs)
    transform = preprocessing(preprocess)

    from lowbit.methods.compress import compress as run

    found = run(
        model,
        data_source(data),
        recipe=recipe,
        preprocessing=transform,
        checkpoint=checkpoint,
        progress=False if quiet else None,
        stages=stages(quiet=quiet),
        **steps,
        **given,
    )
    for path in (packed, plain):
        if path is not None:
            found.save(path)
    if not quiet:
        show(found.renderables())
        click.echo(f"\n wrote {packed}, {found.ratio:.1f} times smaller")


def _steps(given: dict[str, Any], recipe: Path | None) -> dict[str, Any]:
    """Take what makes steps out of the options, and return it as a recipe has it."""
    names = ("amount", "entries", "weights", "activations", "epochs")
    said = {name: given.pop(name) for name in names if name in given}
    if recipe is not None:
        if said:
            named = {"amount": "prune", "entries": "share"}
            first = next(iter(said))
            raise click.UsageError(f"--{named.get(first, first)} does not go with --recipe: write it there")
        return {}
    learning = {"epochs": said["epochs"]} if "epochs" in said else {}
    steps: list[Any] = []
    if said.get("amount", 1.0) > 0:
        steps.append({"prune": {**learning, **({"amount": said["amount"]} if "amount" in said else {})}})
    if "entries" in said:
        steps.append({"share": {"entries": said["entries"]}})
    if said.get("weights") != "none":
        formats = {name: said[name] for name in ("weights", "activations") if name in said}
        steps.append({"quantize": {**learning, **formats}})
    return {"steps": [*steps, "code"]}
