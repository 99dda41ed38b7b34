"""Taking channels out of a graph for real: smaller weights, smaller tensors, the same operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowbit.graph.channels.trace import Trace

__all__ = ["remove_channels", "without_inputs"]


def remove_channels(trace: Trace, removed: NDArray[np.int64]) -> ir.Model:
    """Return the traced model without some channels.

    Args:
        trace: What was traced; its model is left unchanged.
        removed: Units of groups that have no reason to stay.

    Returns:
        A model that computes what the traced one would if no weight read these channels.
    """
    model = trace.model.clone()
    gone = np.asarray(removed, np.int64)

    def keep(channels: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ~np.isin(trace.channels.roots(channels), gone)

    by_name: dict[str, list[tuple[int, NDArray[np.bool_]]]] = {}
    for (name, axis), channels in trace.parameters.items():
        kept = keep(channels)
        if not kept.all():
            by_name.setdefault(name, []).append((axis, kept))
    for name, axes in by_name.items():
        value = model.graph.initializers[name]
        array = constant_array(value)
        assert array is not None
        for axis, kept in axes:
            array = array.compress(kept, axis=axis)
        _store(value, array)
    nodes = {str(node.name): node for node in model.graph}
    for repair in trace.repairs:
        repair(model, nodes, keep)
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = None
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        if not model.graph.initializers[name].is_graph_output():
            del model.graph.initializers[name]
    return model


def without_inputs(trace: Trace, removed: NDArray[np.int64], name: Callable[[str], bool] = lambda _: True) -> ir.Model:
    """Return the traced model in its own size, with zeros wherever a weight reads a channel that would be removed.

    It computes what `remove_channels` gives, and tells what removal costs without rebuilding the graph.

    Args:
        trace: What was traced.
        removed: Units as in `remove_channels`.
        name: Which initializers may be changed.
    """
    model = trace.model.clone()
    gone = np.asarray(removed, np.int64)
    for (weight, axis), channels in trace.parameters.items():
        if trace.roles[weight, axis] != "reads" or not name(weight):
            continue
        lost = np.isin(trace.channels.roots(channels), gone)
        if lost.any():
            value = model.graph.initializers[weight]
            array = constant_array(value)
            assert array is not None
            masked = np.moveaxis(array.copy(), axis, 0)
            masked[lost] = 0.0
            _store(value, np.moveaxis(masked, 0, axis))
    return model


def _store(value: ir.Value, array: NDArray[np.generic]) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)
