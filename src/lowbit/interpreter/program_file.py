"""A graph as a `torch.export` program: traced, its constants folded, and saved to the same bytes every time."""

from __future__ import annotations

import io
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lowbit.exceptions import ModelError
from lowbit.interpreter.decomposed import as_decomposed, register_decomposed
from lowbit.interpreter.module import to_torch
from lowbit.interpreter.program_idioms import use_idioms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

__all__ = ["exported_program", "load_program", "serialize_program"]

# What tracing notes of where a node came from: this machine's paths, and nothing that computes.
_ORIGINS = ("from_node", "nn_module_stack", "source_fn_stack", "stack_trace", "torch_fn")
# What decodes weights, which stay codes in the file.
_KEPT = ("quantized_decomposed.dequantize_per_tensor", "quantized_decomposed.dequantize_per_channel")


def exported_program(
    model: ir.Model, inputs: Sequence[torch.Tensor], *, open_axes: Sequence[Sequence[int]]
) -> torch.export.ExportedProgram:
    """Trace a graph.

    Args:
        model: The graph.
        inputs: One example of every input, in order; at least 2 along an open axis.
        open_axes: For every input, the axes of any size. Where the graph fixes one, it is fixed.

    Returns:
        A program that takes the inputs in order and returns the outputs as a tuple. Q/DQ pairs of 8 bits are operators
        of `quantized_decomposed`; weights are their codes, biases float32.

    Raises:
        ModelError: An operator has no PyTorch form, or decides by values what is computed.
    """
    module = to_torch(model)
    if module.islands:
        raise ModelError(
            f"{len(module.islands)} operators of the model have no PyTorch form",
            cause=", ".join(module.islands[:5]),
            remedy="export to a format that keeps ONNX's operators, or leave them out of the model",
        )
    module.requires_grad_(requires_grad=False)
    example = tuple(inputs)
    with warnings.catch_warnings(), torch.no_grad(), as_decomposed():
        warnings.simplefilter("ignore")  # PyTorch's own, about what it deprecates in itself
        traced = _traced(module, example, {"inputs": _dimensions(open_axes)}).module()
        _fold(traced)
        use_idioms(traced, partial(_keep, traced))
        _drop_unread(traced)
        program = _traced(traced, example, _dimensions(open_axes))
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            for node in graph.graph.nodes:
                for key in _ORIGINS:
                    node.meta.pop(key, None)
    return program


def serialize_program(program: torch.export.ExportedProgram) -> bytes:
    """Return what `torch.export.save` writes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


def load_program(contents: bytes) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return a saved program as a function."""
    register_decomposed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Callable[..., tuple[torch.Tensor, ...]] = torch.export.load(io.BytesIO(contents)).module()
        return loaded


def _dimensions(open_axes: Sequence[Sequence[int]]) -> tuple[dict[int, Any], ...]:
    return tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in open_axes)


def _traced(
    module: torch.nn.Module, example: tuple[torch.Tensor, ...], dimensions: Any
) -> torch.export.ExportedProgram:
    try:
        program: torch.export.ExportedProgram = torch.export.export(module, example, dynamic_shapes=dimensions)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            "PyTorch cannot export the model",
            cause=first,
            remedy="fix its open sizes with --data, or use the module itself: lowbit.interpreter.to_torch",
        ) from error
    return program


def _fold(module: torch.fx.GraphModule) -> None:
    """Compute what depends on no input, but for decoded weights; scales of one number become plain numbers."""
    values: dict[torch.fx.Node, torch.Tensor] = {}
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "get_attr":
            values[node] = _attribute(module, str(node.target))
            continue
        if node.op != "call_function":
            continue
        name = str(node.target)
        if name.startswith("aten._assert"):
            graph.erase_node(node)
            continue
        if name == "aten.to.dtype" and node.meta["val"].dtype == node.args[0].meta["val"].dtype:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if name.endswith("_per_tensor.tensor") and node.args[1] in values and node.args[2] in values:
            plain = getattr(torch.ops.quantized_decomposed, name.split(".")[1]).default
            numbers = (float(values[node.args[1]]), int(values[node.args[2]]))
            node.target, node.args = plain, (node.args[0], *numbers, *node.args[3:])
            name = str(node.target)
        inputs = node.all_input_nodes
        if any(source not in values for source in inputs):
            continue
        if name.startswith(_KEPT):
            continue
        found = node.target(
            *torch.fx.map_arg(node.args, lambda source: values[source]),
            **torch.fx.map_arg(node.kwargs, lambda source: values[source]),
        )
        if isinstance(found, torch.Tensor):
            values[node] = found
    for node, value in values.items():
        if node.op == "call_function" and any(user not in values for user in node.users):
            _store(module, node, value)
    graph.eliminate_dead_code()
    module.recompile()


def _drop_unread(module: torch.fx.GraphModule) -> None:
    """Remove the tensors that no node reads any more."""
    module.delete_all_unused_submodules()
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for key in [key for key, _ in (*module.named_parameters(), *module.named_buffers()) if key not in used]:
        owner, _, leaf = key.rpartition(".")
        delattr(module.get_submodule(owner), leaf)


def _attribute(module: torch.fx.GraphModule, key: str) -> torch.Tensor:
    owner, _, leaf = key.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _store(module: torch.fx.GraphModule, node: torch.fx.Node, value: torch.Tensor) -> None:
    """Let what reads a node read a stored tensor."""
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.get_attr(_keep(module, value)))


def _keep(module: torch.fx.GraphModule, value: torch.Tensor) -> str:
    """Store a tensor in a module and return its key."""
    key = f"constant_{sum(1 for name, _ in module.named_buffers() if name.startswith('constant_'))}"
    module.register_buffer(key, value.detach().clone())
    return key
