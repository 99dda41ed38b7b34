"""From a PyTorch module to an ONNX graph that has been run beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import EngineError, ModelError
from lowbit.graph import load_model
from lowbit.importing.agreement import ENOUGH_DB, agreement_db, run_graph
from lowbit.importing.capture import capture, capture_error, quiet
from lowbit.importing.dimensions import BATCH, OpenAxes, doubled, name_dimensions, open_axes
from lowbit.importing.evaluation import evaluating
from lowbit.importing.examples import Examples, examples_of
from lowbit.importing.exporter_idioms import settle_casts, settle_reshapes
from lowbit.importing.imported import Imported
from lowbit.importing.torch_names import forget_origin, name_operators, name_outputs, output_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from numpy.typing import NDArray

__all__ = ["arrays_of", "from_module", "from_program"]


def from_module(
    module: torch.nn.Module, example_inputs: Any, *, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> Imported:
    """Return a module as an ONNX graph.

    The module is looked at in evaluation mode and left as it was. Its parameters and buffers keep their names, so that
    a `state_dict` fits the graph's initializers. The graph is run beside the module, with other batch sizes too.

    Args:
        module: Any module that PyTorch can export.
        example_inputs: A tensor, a tuple of the arguments of `forward`, or a dict of its named arguments.
        dynamic: Open axes by the input's name, e.g. `{"x": {0: "batch", 2: "height"}}`; empty closes all. By default
            the batch is open, and the length of inputs of whole numbers.

    Raises:
        ModelError: The module cannot be captured or expressed in ONNX, holds no values, or computes something else than
            its graph.
    """
    _check_values(module)
    examples = examples_of(module, example_inputs)
    notes: list[str] = []
    was_training = module.training
    with evaluating(module) as hidden:
        expected = _called(module, examples)
        if was_training:
            notes.append("the module was in training mode; it was looked at in evaluation mode")
        if hidden:
            names = ", ".join(sorted(set(hidden)))
            notes.append(f"modules that are no submodules were in training mode and put into evaluation mode: {names}")
        axes = open_axes(examples) if dynamic is None else _asked_axes(module, examples, dynamic)
        refusals: list[str] = []
        last: Exception | None = None
        for attempt in _attempts(axes, fallback=dynamic is None):
            shown = doubled(examples, attempt)
            try:
                model = _converted(module, capture(module, shown, attempt))
            except ModelError:
                raise
            except Exception as error:  # noqa: BLE001 - PyTorch raises dozens of types here
                last = error
                refusals.append(str(capture_error(module, error)))
                continue
            name_dimensions(model, attempt.inputs)
            name_outputs(model, output_names(expected))
            wrong = _disagreement(module, model, examples, attempt)
            if wrong and attempt:
                refusals.append(wrong)
                continue
            if wrong:
                raise ModelError(
                    f"the graph of {type(module).__name__} does not compute what the module does",
                    cause=wrong,
                    remedy="Look for random numbers (dropout with training=True), or for numbers that forward takes "
                    "from tensors and that the exporter keeps as constants",
                )
            if refusals:
                closed = {name for own in axes.inputs for name in own.values()}
                left = {name for own in attempt.inputs for name in own.values()}
                what = " and ".join(sorted(closed - left)) or "nothing"
                notes.append(f"{what} stays as in the example inputs: {refusals[0]}")
            return Imported(model=load_model(model), notes=tuple(notes))
    assert last is not None
    raise capture_error(module, last) from last


def from_program(program: torch.export.ExportedProgram) -> Imported:
    """Return an exported program as an ONNX graph, with the open axes that it was exported with.

    Raises:
        ModelError: It cannot be expressed in ONNX.
    """
    model = _converted(None, program)
    name_dimensions(model, [{} for _ in model.graph.inputs])
    positional, named = program.example_inputs or ((), {})
    if positional or named:
        import torch

        module = program.module()
        examples = Examples(positional=tuple(positional), named=dict(named))
        with torch.no_grad():
            name_outputs(model, output_names(module(*positional, **named)))
        wrong = _disagreement(module, model, examples, OpenAxes(tuple({} for _ in examples.tensors())))
        if wrong:
            raise ModelError("the graph does not compute what the exported program does", cause=wrong)
    return Imported(model=load_model(model))


def _attempts(axes: OpenAxes, *, fallback: bool) -> Iterator[OpenAxes]:
    """Yield the axes to try: all, then the batch alone, then none."""
    yield axes
    if not fallback or not axes:
        return
    only_batch = OpenAxes(tuple({axis: name for axis, name in own.items() if name == BATCH} for own in axes.inputs))
    if only_batch != axes:
        yield only_batch
    yield OpenAxes(tuple({} for _ in axes.inputs))


def _asked_axes(module: torch.nn.Module, examples: Examples, dynamic: Mapping[str, Mapping[int, str]]) -> OpenAxes:
    import inspect

    import torch
    from torch.utils import _pytree as pytree

    bound = inspect.signature(module.forward).bind(*examples.positional, **examples.named)
    found: dict[int, dict[int, str]] = {}
    for name, own in dynamic.items():
        if name not in bound.arguments:
            raise ModelError(
                f"dynamic names the input {name!r}",
                cause=f"{type(module).__name__}.forward takes {', '.join(bound.arguments)}",
                remedy="Name one of these",
            )
        for leaf in pytree.tree_leaves(bound.arguments[name]):
            if isinstance(leaf, torch.Tensor):
                found[id(leaf)] = {int(axis): str(label) for axis, label in own.items()}
    return OpenAxes(tuple(found.get(id(tensor), {}) for tensor in examples.tensors()))


def _check_values(module: torch.nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise ModelError(
                f"the tensor {name!r} of {type(module).__name__} is on the meta device",
                cause="it has a shape and no values",
                remedy="Load the weights first: module.load_state_dict(state, assign=True)",
            )


def _called(module: torch.nn.Module, examples: Examples) -> Any:
    try:
        return module(*examples.positional, **examples.named)
    except Exception as error:  # the user's own code may raise anything
        text = " ".join(str(error).split())
        raise ModelError(
            f"{type(module).__name__} does not run on the example inputs",
            cause=f"{type(error).__name__}: {text[:300]}",
            remedy="Check that module(*example_inputs) runs",
        ) from error


def _converted(module: torch.nn.Module | None, program: torch.export.ExportedProgram) -> ir.Model:
    """Return a program in ONNX, each tensor under its own name and copied."""
    import torch

    from lowbit.importing.translations import translations

    try:
        with quiet():
            exported = torch.onnx.export(
                program, dynamo=True, verbose=False, optimize=False, custom_translation_table=translations()
            )
    except Exception as error:  # the exporter raises many types
        raise _translation_error(module, error) from error
    assert exported is not None
    model: ir.Model = exported.model
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            array = np.array(value.const_value.numpy())
            value.const_value = ir.Tensor(array, dtype=value.const_value.dtype, name=value.name)
    name_operators(model)
    settle_casts(model)
    settle_reshapes(model)
    forget_origin(model)
    return model


def _translation_error(module: torch.nn.Module | None, error: Exception) -> ModelError:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    name = "the program" if module is None else type(module).__name__
    return ModelError(
        f"{name} uses an operator that has no meaning in ONNX",
        cause=lines[0] if lines else type(root).__name__,
        remedy="Write it with other operators, or leave the part that has it outside of the module",
    )


def arrays_of(outputs: Any) -> list[NDArray[Any]]:
    """Return every tensor of nested outputs as an array; bfloat16 as float32."""
    import torch
    from torch.utils import _pytree as pytree

    return [
        (leaf.float() if leaf.dtype is torch.bfloat16 else leaf).detach().cpu().numpy()
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, torch.Tensor)
    ]


def _disagreement(module: torch.nn.Module, model: ir.Model, examples: Examples, axes: OpenAxes) -> str:
    """Return where the graph differs from the module, on the example inputs and on other batch sizes."""
    import torch

    names = [str(value.name) for value in model.graph.inputs]
    tensors = examples.tensors()
    if any(tensor.dtype is torch.bfloat16 for tensor in tensors) or len(names) != len(tensors):
        return "" if len(names) == len(tensors) else f"the graph has {len(names)} inputs for {len(tensors)} tensors"
    cases = [("the example inputs", examples)]
    places = axes.axis_of_batch()
    if any(place is not None for place in places):
        cases += [(f"a batch of {size}", _resized(examples, places, size)) for size in (1, 3)]
    feeds = [dict(zip(names, arrays_of(case.tensors()), strict=True)) for _, case in cases]
    try:
        found = run_graph(model, feeds)
    except EngineError as error:
        return str(error)
    with torch.no_grad():
        for (label, case), outputs in zip(cases, found, strict=True):
            try:
                expected = arrays_of(_called(module, case))
            except ModelError as error:
                return f"on {label} the module itself fails: {error.cause}"
            agreed = agreement_db(expected, outputs)
            if agreed < ENOUGH_DB:
                return f"on {label} the graph's outputs lie {agreed:.0f} dB from the module's"
    return ""


def _resized(examples: Examples, places: list[int | None], size: int) -> Examples:
    """Return the examples with `size` samples: the first ones, repeated as needed."""
    import torch

    following = iter(places)

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        axis = next(following)
        if axis is None:
            return tensor
        order = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        return tensor.index_select(axis, order)

    return replace(examples.map_tensors(cut))
