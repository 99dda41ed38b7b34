"""Compensation in sequence: layer after layer is refitted to what it gave, from what it is given now."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lowbit.graph.constants import constant_array
from lowbit.methods.channel_refit import as_matrix, bias_of, from_matrix, held_out_sample, reading_axis, refit_site
from lowbit.methods.second_moments import input_rows, output_rows
from lowbit.pruning import refit_residual
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.graph.channels import Trace
    from lowbit.runtime.session import Session

__all__ = ["layers_behind", "refit_in_sequence"]

_ROWS = 256
_DAMPINGS = (1e-3, 3e-2, 1.0)


def refit_in_sequence(
    trace: Trace,
    removed: NDArray[np.int64],
    pruned: ir.Model,
    data: Dataset,
    *,
    samples: int = 64,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ir.Model, dict[str, str]]:
    """Refit every Conv, Gemm and MatMul behind removed channels, the first ones first.

    He, Zhang and Sun, Channel Pruning for Accelerating Very Deep Neural Networks (2017), section 3.2: a layer is
    fitted to the outputs of the original, from the inputs that the layers before it, already pruned and refitted, give
    it. So it makes up for their errors too, also where it has lost nothing itself; and a layer that is added to another
    branch, for the errors of that one (section 3.3). A refitted weight is kept where the error of its outputs becomes
    less on samples that it was not fitted to.

    Args:
        trace: The original.
        removed: The units that went.
        pruned: The model without them, refitted already or not; left unchanged.
        data: Calibration samples.
        samples: How many are used.
        seed: Picks the rows.
        advance: Called after every layer.

    Returns:
        The pruned model with new weights, and by initializer the error before and after.
    """
    result = pruned.clone()
    originals = {str(node.name): node for node in trace.model.graph}
    notes: dict[str, str] = {}
    for number, node in enumerate(layers_behind(trace, removed, result)):
        place = _compared_at(trace, node)
        kept = _kept(trace, removed, originals[str(node.name)])
        moments = _moments(trace.model, result, node, place, kept, data, samples, (seed, number))
        note = _refitted(node, *moments)
        weight = node.inputs[1]
        if note and weight is not None:
            notes[str(weight.name)] = note
        advance()
    return result, notes


def layers_behind(trace: Trace, removed: NDArray[np.int64], pruned: ir.Model) -> list[ir.Node]:
    """Return the operators of a pruned model that read other values than those of the original, in order."""
    lost = {
        name
        for (name, axis), channels in trace.parameters.items()
        if trace.roles[name, axis] == "reads" and np.isin(trace.channels.roots(channels), removed).any()
    }
    changed: set[str] = set()
    found = []
    for node in pruned.graph:
        names = {str(value.name) for value in node.inputs if value is not None}
        if not names & (changed | lost):
            continue
        changed |= {str(value.name) for value in node.outputs}
        if _refittable(node):
            found.append(node)
    return found


def _refittable(node: ir.Node) -> bool:
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.inputs[0] is None or node.inputs[0].is_graph_input():
        return False
    weight = node.inputs[1]
    array = constant_array(weight)
    if weight is None or array is None or len(weight.uses()) > 1 or not weight.is_initializer():
        return False
    site = refit_site(node)
    if node.op_type == "Gemm" and (site.attribute("transA", 0) or site.attribute("alpha", 1.0) != 1.0):
        return False
    return node.op_type == "Conv" or array.ndim == 2


def _compared_at(trace: Trace, node: ir.Node) -> str:
    """Return the tensor behind an operator up to which whatever it gives more is given more: behind its Adds."""
    value = node.outputs[0]
    shape = trace.shapes.get(str(value.name))
    while not value.is_graph_output():
        readers = list(value.consumers())
        if len(readers) != 1 or readers[0].op_type != "Add" or len(value.uses()) != 1:
            break
        behind = readers[0].outputs[0]
        if shape is None or trace.shapes.get(str(behind.name)) != shape:
            break
        value = behind
    return str(value.name)


def _kept(trace: Trace, removed: NDArray[np.int64], node: ir.Node) -> NDArray[np.bool_] | None:
    """Return which of an operator's outputs are left; `None` for all."""
    axes = trace.of(node.outputs[0])
    channels = None if not axes else axes[1 if node.op_type == "Conv" else -1]
    return None if channels is None else ~np.isin(trace.channels.roots(channels), removed)


def _moments(
    original: ir.Model,
    pruned: ir.Model,
    node: ir.Node,
    place: str,
    kept: NDArray[np.bool_] | None,
    data: Dataset,
    samples: int,
    seed: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Return what the layer reads and lacks, `[2, G, …]`: for fitting, and held out; and the power of its outputs.

    The lack `r` is the original's output less the pruned model's. `E[x xᵀ]`, `E[x rᵀ]`, `E[r²]`.
    """
    weight = constant_array(node.inputs[1])
    assert node.inputs[0] is not None
    assert weight is not None
    site = refit_site(node)
    groups = int(site.attribute("group", 1)) if node.op_type == "Conv" else 1
    _, depth, width = as_matrix(weight, reading_axis(node), groups).shape
    sessions = [_session_up_to(pruned, (str(node.inputs[0].name), place)), _session_up_to(original, (place,))]
    squares = np.zeros((2, groups, depth + 1, depth + 1))
    crosses = np.zeros((2, groups, depth + 1, width))
    lacks, counts, power = np.zeros((2, groups)), [0, 0], 0.0
    for index, feed in enumerate(islice(data, samples)):
        part = int(held_out_sample(index))
        (x, got), (wanted,) = (session.run(feed) for session in sessions)
        rows, found, target = (
            read(site, array, _ROWS, np.random.default_rng((*seed, index))).astype(np.float64)
            for read, array in ((input_rows, x), (output_rows, got), (output_rows, wanted))
        )
        target = target if kept is None else target[:, kept]
        lack = (target - found).reshape(len(rows), groups, width).transpose(1, 0, 2)
        inputs = np.concatenate([rows, np.ones((*rows.shape[:2], 1))], axis=2).transpose(1, 0, 2)
        squares[part] += inputs.transpose(0, 2, 1) @ inputs / len(rows)
        crosses[part] += inputs.transpose(0, 2, 1) @ lack / len(rows)
        lacks[part] += np.square(lack).sum(axis=(1, 2)) / len(rows)
        counts[part] += 1
        power += float(np.square(target).sum()) / len(rows)
    for part in range(2):
        for total in (squares, crosses, lacks):
            total[part] /= max(counts[part], 1)
    if not counts[1]:
        squares[1], crosses[1], lacks[1] = squares[0], crosses[0], lacks[0]
    return squares, crosses, lacks, power / max(sum(counts), 1)


def _refitted(
    node: ir.Node,
    squares: NDArray[np.float64],
    crosses: NDArray[np.float64],
    lacks: NDArray[np.float64],
    power: float,
) -> str:
    """Change a weight and its bias in place if that helps, and say what it did; nothing if there was nothing to do."""
    plain = float(lacks[1].sum())
    if plain <= 1e-12 * power:
        return ""
    bias = bias_of(node)
    last = None if bias is not None else -1  # without a bias, the input that is always one does not exist
    changes = [_change(squares[0], crosses[0], damping, last) for damping in _DAMPINGS]
    errors = [
        plain + float(np.sum(change * (squares[1] @ change)) - 2.0 * np.sum(change * crosses[1])) for change in changes
    ]
    best = int(np.argmin(errors))
    texts = [f"{np.sqrt(max(error, 0.0) / max(power, 1e-30)):.1%}" for error in (plain, errors[best])]
    if not errors[best] < plain:
        return f"in sequence: error {texts[0]}, not refitted: it would be {texts[1]}"
    value, change = node.inputs[1], changes[best]
    weight = constant_array(value)
    assert value is not None
    assert weight is not None
    fresh = weight + from_matrix(change[:, :-1], weight.shape, reading_axis(node))
    value.const_value = ir.tensor(fresh.astype(weight.dtype), name=value.name)
    if bias is not None:
        old = constant_array(bias)
        assert old is not None
        bias.const_value = ir.tensor((old + change[:, -1].reshape(-1)).astype(old.dtype), name=bias.name)
    return f"in sequence: error {texts[0]} -> {texts[1]} refitted"


def _change(
    squares: NDArray[np.float64], crosses: NDArray[np.float64], damping: float, last: int | None
) -> NDArray[np.float64]:
    found = np.zeros_like(crosses)
    for group in range(len(squares)):
        found[group, :last] = refit_residual(squares[group, :last, :last], crosses[group, :last], damping=damping)
    return found


def _session_up_to(model: ir.Model, names: tuple[str, ...]) -> Session:
    """Open what computes some tensors, and nothing behind them."""
    copy = with_outputs(model, names)
    values = {value.name: value for value in copy.graph.outputs}
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(values[name] for name in names)
    RemoveUnusedNodesPass()(copy)
    with staged(copy) as source:
        return open_session(source)
