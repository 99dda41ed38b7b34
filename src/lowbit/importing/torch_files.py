"""Files that PyTorch writes: exported programs, TorchScript, and weights that need their class."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import ModelError
from lowbit.graph import load_model
from lowbit.importing.agreement import ENOUGH_DB, agreement_db, run_graph
from lowbit.importing.capture import quiet
from lowbit.importing.dimensions import BATCH
from lowbit.importing.examples import examples_of
from lowbit.importing.imported import Imported
from lowbit.importing.safetensors import read_safetensors
from lowbit.importing.torch_module import from_module, from_program

if TYPE_CHECKING:
    import torch

__all__ = ["from_torch_file", "from_torchscript"]


def from_torch_file(
    path: Path,
    example_inputs: Any,
    architecture: Callable[[], torch.nn.Module] | torch.nn.Module | None,
    *,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Imported:
    """Return what a file of PyTorch holds as an ONNX graph.

    Args:
        path: `.pt2` (torch.export.save), TorchScript (torch.jit.save), or weights: `.safetensors`, or a state_dict of
            torch.save. Weights are read without running anything that is in the file.
        example_inputs: As for a module; an exported program has its own.
        architecture: For weights: the module, or what makes it when it is called, such as its class.
        dynamic: As for a module.

    Raises:
        ModelError: The file is missing, cut off, needs code to be run, or does not fit the architecture.
    """
    import torch

    if not path.is_file():
        raise ModelError(f"{path} does not exist", remedy="Check the path of the model")
    kind = _kind(path)
    if kind == "program":
        try:
            with quiet():
                program = torch.export.load(path)
        except Exception as error:  # a foreign file: PyTorch raises many types
            raise ModelError(
                f"{path} is not an exported program that this PyTorch reads",
                cause=_first_line(error),
                remedy=f"Save it again with torch.export.save under PyTorch {torch.__version__}",
            ) from error
        return from_program(program)
    if kind == "torchscript":
        try:
            with quiet():
                script = torch.jit.load(path, map_location="cpu")
        except Exception as error:
            raise ModelError(f"{path} is not a TorchScript file", cause=_first_line(error)) from error
        return from_torchscript(script, example_inputs)
    state = read_safetensors(path) if kind == "safetensors" else _pickled_state(path)
    if architecture is None:
        raise ModelError(
            f"{path} holds weights without the network that they belong to",
            cause=f"{len(state)} tensors, the first is {next(iter(state), 'none')!r}",
            remedy="Give the architecture: architecture=MyNetwork in Python, --architecture my_module:MyNetwork in a "
            "command",
        )
    return from_module(_with_weights(architecture, state, path), example_inputs, dynamic=dynamic)


def from_torchscript(script: torch.jit.ScriptModule, example_inputs: Any) -> Imported:
    """Return a TorchScript module as an ONNX graph; its control flow becomes `If` and `Loop`.

    Raises:
        ModelError: There are no example inputs, it does not run on them, or it cannot be expressed in ONNX.
    """
    import torch

    examples = examples_of(script, example_inputs)
    arguments = examples.positional
    names = [argument.name for argument in script.forward.schema.arguments[1:]]
    if examples.named:
        arguments = tuple(examples.named[name] for name in names if name in examples.named)
    names = names[: len(arguments)]
    modes = [(part, part.training) for part in script.modules()]
    script.eval()
    try:
        with torch.no_grad(), quiet(), tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
            expected = script(*arguments)
            path = Path(folder) / "script.onnx"
            torch.onnx.export(
                script,
                arguments,
                str(path),
                dynamo=False,
                input_names=names,
                dynamic_axes={name: {0: BATCH} for name, value in zip(names, arguments, strict=True) if value.ndim},
                opset_version=17,
                do_constant_folding=False,
            )
            import onnx

            model = load_model(onnx.load(path))
    except Exception as error:  # both the module and the exporter raise many types
        raise ModelError(
            "the TorchScript module cannot be expressed in ONNX",
            cause=_first_line(error),
            remedy="Import the module that it was made from instead: lowbit.quantize(module, example_inputs=…)",
        ) from error
    finally:
        for part, training in modes:
            part.train(training) if not list(part.children()) else None
    from lowbit.importing.torch_module import arrays_of

    feed = dict(zip((str(value.name) for value in model.graph.inputs), arrays_of(arguments), strict=True))
    agreed = agreement_db(arrays_of(expected), run_graph(model, [feed])[0])
    if agreed < ENOUGH_DB:
        raise ModelError(
            "the graph of the TorchScript module does not compute what it does",
            cause=f"their outputs lie {agreed:.0f} dB apart",
            remedy="Import the module that it was made from instead",
        )
    return Imported(model=model)


def _kind(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = [name.partition("/")[2] or name for name in archive.namelist()]
        if any(name.startswith("models/") or name == "serialized_exported_program.json" for name in inside):
            return "program"
        if any(name.startswith("code/") for name in inside):
            return "torchscript"
    return "pickle"


def _pickled_state(path: Path) -> dict[str, Any]:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on foreign files
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ModelError(
                f"{path} holds pickled Python objects, not only weights",
                cause="opening it would run code that is in the file, which lowbit never does",
                remedy="Where you trust it, load it yourself and give the module: lowbit.quantize(torch.load(path, "
                "weights_only=False), …); or save module.state_dict() instead of the module",
            ) from error
        raise ModelError(f"{path} is not a file of PyTorch, or is cut off", cause=_first_line(error)) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ModelError(
            f"{path} holds no state_dict",
            cause=f"it holds {type(found).__name__}",
            remedy="Save module.state_dict() with torch.save",
        )
    return {str(name): value for name, value in found.items()}


def _with_weights(architecture: Any, state: dict[str, Any], path: Path) -> torch.nn.Module:
    import torch

    try:
        module = architecture if isinstance(architecture, torch.nn.Module) else architecture()
    except TypeError as error:
        raise ModelError(
            f"{getattr(architecture, '__name__', architecture)} cannot be made without arguments",
            cause=str(error),
            remedy="Give a function that returns the module: architecture=lambda: MyNetwork(classes=10)",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"the architecture made {type(module).__name__}, which is no torch.nn.Module",
            remedy="Give a class of modules, or a function that returns a module",
        )
    bare = {name.removeprefix("module."): value for name, value in state.items()}  # as DataParallel saves it
    names = set(module.state_dict())
    if not set(state) & names and set(bare) & names:
        state = bare
    try:
        faults = module.load_state_dict(state, strict=False, assign=any(p.is_meta for p in module.parameters()))
    except RuntimeError as error:
        raise ModelError(
            f"the weights of {path} do not fit {type(module).__name__}",
            cause=" ".join(str(error).split())[:300],
            remedy="Give the architecture as it was trained",
        ) from error
    missing = [name for name in faults.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or faults.unexpected_keys:
        raise ModelError(
            f"the weights of {path} do not fit {type(module).__name__}",
            cause=f"missing: {', '.join(missing[:4]) or 'none'}; unknown: "
            f"{', '.join(faults.unexpected_keys[:4]) or 'none'}",
            remedy="Give the architecture as it was trained",
        )
    return module


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
