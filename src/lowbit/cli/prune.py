"""`lowbit prune`: the weights that matter least become zero, or whole channels or residual branches go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.parameters import FILE, Command, check_model, data_files, data_source, option, preprocessing
from lowbit.cli.progress import stages
from lowbit.cli.screen import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lowbit.cli.outputs import Outputs

__all__ = ["prune"]

_WHAT, _CHANNELS, _FILES = "What is pruned", "Channels and branches", "Files and printing"
# Which kinds of pruning an option goes with, where not with all.
_KINDS = {
    "amount": ("weights", "channels"),
    "criterion": ("weights", "channels"),
    "pattern": ("weights",),
    "scope": ("weights",),
    "allocation": ("channels",),
    "round_to": ("channels",),
    "target_macs": ("channels",),
    "target_weights": ("channels",),
    "samples": ("channels", "branches"),
    "no_compensation": ("channels", "branches"),
}


@click.command(cls=Command, short_help="Weights become zero, or whole channels go.")
@click.argument("model", type=FILE)
@option(_WHAT, "--amount", type=float, metavar="FRACTION", help="Of the weights or channels.  [0.5]")
@option(_WHAT, "--data", metavar="PATH", help="Calibration samples, as for `lowbit quantize`; without, by magnitude.")
@option(_WHAT, "--preprocess", metavar="SPEC|FILE.yaml", help="How a picture becomes an input.")
@option(
    _WHAT,
    "--criterion",
    metavar="NAME",
    help="magnitude, wanda or sparsegpt; for channels l1, l2, batch-norm, taylor or fisher.  "
    "[sparsegpt with data, magnitude without; l2]",
)
@option(_WHAT, "--pattern", metavar="any|N:M|RxC", help="2:4, or blocks such as 4x1.  [any]")
@option(_WHAT, "--scope", metavar="global|layer", help="Whether layers compete.  [global]")
@option(
    _WHAT,
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave operators alone: a name with * and ?, re:EXPRESSION or op:TYPE. May be repeated.",
)
@option(_WHAT, "--seed", type=int, default=0, metavar="N", help="Of everything random.  [0]")
@option(_CHANNELS, "--channels", is_flag=True, help="Remove whole channels and attention heads: smaller and faster.")
@option(_CHANNELS, "--branches", type=int, metavar="N", help="Instead, leave N residual branches out; needs --data.")
@option(
    _CHANNELS, "--allocation", metavar="uniform|global", help="The same everywhere, or what matters least.  [uniform]"
)
@option(_CHANNELS, "--round-to", type=int, metavar="N", help="Channels left are a multiple of this.  [8]")
@option(_CHANNELS, "--target-macs", type=float, metavar="FRACTION", help="Until so many multiplications are left.")
@option(_CHANNELS, "--target-weights", type=float, metavar="FRACTION", help="Until so many weights are left.")
@option(_CHANNELS, "--samples", type=int, metavar="N", help="Look at so many samples at most.  [64]")
@option(_CHANNELS, "--no-compensation", is_flag=True, default=None, help="Do not refit what reads removed channels.")
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
    channels: bool,
    branches: int | None,
    **options: Any,
) -> None:
    """Set the weights of MODEL (ONNX) that matter least to zero, and change the others to make up for it.

    Zeros pay in `lowbit pack`; training afterwards keeps them with `keep_zeros`. With `--channels`, whole channels are
    removed instead, with `--branches` whole residual branches: the model becomes smaller, and faster in every engine.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if channels and branches is not None:
        raise click.UsageError("--branches does not go with --channels: prune one after the other")
    _check_kinds(given, "branches" if branches is not None else "channels" if channels else "weights")
    check_model(model)
    inputs = (model, *data_files(data))
    artifact = outputs.reserve(output or model.with_name(f"{model.stem}.pruned.onnx"), inputs=inputs)
    transform = preprocessing(preprocess)

    amount = given.pop("amount", 0.5)
    shared: dict[str, Any] = {"preprocessing": transform, "stages": stages(quiet=quiet)}
    if branches is not None:
        from lowbit.methods.prune_branches import prune_branches

        compensate = not given.pop("no_compensation", False)
        fewer = prune_branches(model, data_source(data), count=branches, compensate=compensate, **shared, **given)
        fewer.save(artifact)
        printed: Sequence[object] = fewer.renderables()
    elif channels:
        from lowbit.methods.prune_channels import prune_channels

        compensate = not given.pop("no_compensation", False)
        removed = prune_channels(model, amount, data_source(data), compensate=compensate, **shared, **given)
        removed.save(artifact)
        printed = removed.renderables()
    else:
        from lowbit.methods.prune import prune as run

        zeroed = run(model, amount, data_source(data), **shared, **given)
        zeroed.save(artifact)
        printed = [zeroed.table()]
    if not quiet:
        show(printed)
        click.echo(f"\n wrote {artifact}")


def _check_kinds(given: dict[str, Any], kind: str) -> None:
    """Refuse options that belong to another kind of pruning."""
    for name in given:
        kinds = _KINDS.get(name, (kind,))
        if kind in kinds:
            continue
        needed = " or ".join(f"--{one}" for one in kinds)
        why = f"needs {needed}" if kind == "weights" else f"does not go with --{kind}"
        raise click.UsageError(f"--{name.replace('_', '-')} {why}")
