"""`lowbit import`: a model of another framework in, ONNX out."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.parameters import FILE, Command, option
from lowbit.cli.progress import stages
from lowbit.cli.screen import show
from lowbit.exceptions import DataError, RecipeError

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.cli.outputs import Outputs

__all__ = ["import_"]

_TORCH, _TENSORFLOW, _FILES = "PyTorch", "TensorFlow and Keras", "Files"


@click.command("import", cls=Command, short_help="A model of another framework in, ONNX out.")
@click.argument("model", type=FILE)
@option(_FILES, "-o", "--output", type=FILE, metavar="OUT", help="The ONNX file.  [beside MODEL, as STEM.onnx]")
@option(_FILES, "--quiet", is_flag=True, help="Print errors only.")
@option(
    _TORCH,
    "--architecture",
    metavar="MODULE:NAME",
    help="The class of the network, or a function that makes it, for files of weights.",
)
@option(
    _TORCH,
    "--inputs",
    metavar="FILE.npz|SHAPE",
    help="Example inputs: one array per argument of forward, or the shape of the only one, e.g. 1x3x224x224.",
)
@option(
    _TENSORFLOW,
    "--python",
    type=FILE,
    metavar="PATH",
    help="The interpreter of an environment with TensorFlow and tf2onnx.  [this one, or $LOWBIT_TENSORFLOW_PYTHON]",
)
@option(_TENSORFLOW, "--opset", type=click.IntRange(13, 18), default=17, metavar="N", help="ONNX operator set.  [17]")
@click.pass_obj
def import_(
    outputs: Outputs,
    /,
    model: Path,
    output: Path | None,
    quiet: bool,
    architecture: str | None,
    inputs: str | None,
    python: Path | None,
    opset: int,
) -> None:
    """Bring MODEL in: .keras, .h5, .tflite, a SavedModel folder, .pt2, TorchScript, or weights of PyTorch."""
    from lowbit.importing import import_model

    target = outputs.reserve(output or model.with_suffix(".onnx"), inputs=(model,))
    with stages(quiet=quiet)(f"Import {model.name}", None):
        imported = import_model(
            model,
            _inputs(inputs),
            architecture=_architecture(architecture),
            python=python,
            opset=opset,
        )
        imported.save(target)
    if not quiet:
        from rich.text import Text

        graph = imported.model.graph
        sides = [", ".join(_shown(value) for value in values) for values in (graph.inputs, graph.outputs)]
        show([Text(line) for line in (*imported.notes, f"{target}: {' -> '.join(sides)}")])


def _shown(value: ir.Value) -> str:
    sizes = ", ".join(str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape or ())
    return f"{value.name} {value.dtype} [{sizes}]"


def _inputs(text: str | None) -> Any:
    """Return what `--inputs` says: the arrays of a file, or zeros of a shape."""
    if text is None:
        return None
    import numpy as np

    if text.lower().endswith(".npz"):
        try:
            with np.load(text, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError) as error:
            raise DataError(f"{text} cannot be read", cause=str(error)) from error
    try:
        shape = [int(size) for size in text.split("x")]
    except ValueError as error:
        raise RecipeError(
            f"the inputs are {text!r}",
            remedy="give a shape as 1x3x224x224, or an .npz file with one array per argument",
        ) from error
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _architecture(text: str | None) -> Any:
    """Return what `--architecture` names, from a module in the working folder or an installed one."""
    if text is None:
        return None
    name, _, inside = text.partition(":")
    if not inside:
        raise RecipeError(f"the architecture is {text!r}", remedy="write MODULE:NAME, e.g. my_network:MyNetwork")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(name), inside)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"the architecture {text!r} is not there", cause=str(error), remedy="name a module that Python finds here"
        ) from error
    finally:
        sys.path.remove(folder)
