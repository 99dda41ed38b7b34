"""Operators of a traced program as backends look for them: `linear` for products with a weight, plain average pools."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["use_idioms"]

_MATRIX = 2
_DECODED = ("quantized_decomposed.dequantize_per_tensor", "quantized_decomposed.dequantize_per_channel")


def use_idioms(module: torch.fx.GraphModule, store: Callable[[torch.Tensor], str]) -> None:
    """Rewrite a program, whose constants are folded, without changing what it computes.

    Args:
        module: The program; it is changed.
        store: Keeps a tensor in the module and returns its key.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        match str(node.target):
            case "aten.matmul.default" | "aten.mm.default":
                _linear(module, node, store)
            case "aten.div.Tensor":
                _average(module, node)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and str(node.target) == "aten.add.Tensor":
            _bias(module, node)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _constant(module: torch.fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return the tensor that a node reads from the module, `None` for any other node."""
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr":
        return None
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _linear(module: torch.fx.GraphModule, node: torch.fx.Node, store: Callable[[torch.Tensor], str]) -> None:
    """Make a `linear` of a product with a matrix of the model: `[in, out]`, or `[out, in]` transposed."""
    left, right = node.args[:2]
    if not isinstance(right, torch.fx.Node) or not isinstance(left, torch.fx.Node):
        return
    graph = module.graph
    if str(right.target) in {"aten.t.default", "aten.numpy_T.default"} and _weight(module, right.args[0]) is not None:
        weight = right.args[0]
    else:
        found = _weight(module, right)
        if found is None:
            return
        with graph.inserting_before(node):
            codes = graph.get_attr(store(found.t().contiguous()))
            weight = codes
            if right.op == "call_function":
                arguments = [codes, *right.args[1:]]
                if "per_channel" in str(right.target):
                    arguments[3] = 1 - int(right.args[3])
                weight = graph.call_function(right.target, tuple(arguments), dict(right.kwargs))
    with graph.inserting_before(node):
        node.replace_all_uses_with(graph.call_function(torch.ops.aten.linear.default, (left, weight)))


def _weight(module: torch.fx.GraphModule, node: object) -> torch.Tensor | None:
    """Return a stored matrix: float32, or the codes of a decoded one."""
    if isinstance(node, torch.fx.Node) and node.op == "call_function" and str(node.target).startswith(_DECODED):
        node = node.args[0]
    found = _constant(module, node)
    return found if found is not None and found.ndim == _MATRIX else None


def _bias(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Give a `linear` the vector that is added behind it."""
    for product, addend in (node.args[:2], node.args[1::-1]):
        vector = _constant(module, addend)
        if (
            isinstance(product, torch.fx.Node)
            and str(product.target) == "aten.linear.default"
            and len(product.args) == _MATRIX
            and len(product.users) == 1
            and vector is not None
            and vector.ndim == 1
            and vector.dtype == torch.float32
            and not node.kwargs
        ):
            with module.graph.inserting_before(node):
                whole = module.graph.call_function(product.target, (*product.args, addend))
            node.replace_all_uses_with(whole)
            return


def _average(module: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Make an average pool of a pool of sums that is divided by the size of its windows."""
    pool, divisor = node.args[:2]
    if not isinstance(pool, torch.fx.Node) or str(pool.target) != "aten.avg_pool2d.default" or len(pool.users) != 1:
        return
    arguments = list(pool.args)
    kernel = arguments[1]
    stored = _constant(module, divisor)
    if stored is not None and stored.numel() == 1:
        divisor = float(stored)
    plain = len(arguments) == 7 and arguments[6] == 1 and not arguments[4] and not any(arguments[3])
    if not plain or not isinstance(kernel, (list, tuple)) or divisor != math.prod(kernel):
        return
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.call_function(pool.target, tuple(arguments[:3])))
