"""Compensation: the weights that read removed channels are refitted on calibration data, and kept where that helps."""

from __future__ import annotations

import dataclasses
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lowbit.graph.constants import constant_array
from lowbit.methods.second_moments import input_rows
from lowbit.plan.sites import Site
from lowbit.pruning import refit_inputs
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.data import Dataset, Feed
    from lowbit.graph.channels import Trace

__all__ = [
    "as_matrix",
    "bias_of",
    "from_matrix",
    "held_out",
    "held_out_sample",
    "reading_axis",
    "refit_readers",
    "refit_site",
]

_ROWS = 256
_EVERY = 4  # one sample in so many is held out


def refit_readers(
    trace: Trace, removed: NDArray[np.int64], data: Dataset, *, samples: int = 64, seed: int = 0
) -> tuple[Trace, dict[str, str]]:
    """Refit every Conv, Gemm and MatMul that reads removed channels, by least squares; biases take up the means.

    A refitted weight is kept where the error of its outputs becomes less on samples that it was not fitted to.

    Args:
        trace: What was traced; its model is left unchanged.
        removed: The units that go.
        data: Calibration samples.
        samples: How many are used.
        seed: Picks the rows.

    Returns:
        The same trace over a model with the new weights, and by initializer the error before and after.
    """
    model = trace.model.clone()
    nodes = []
    for node in model.graph:
        if node.op_type not in {"Conv", "Gemm", "MatMul"} or node.inputs[1] is None or node.inputs[0] is None:
            continue
        name = str(node.inputs[1].name)
        axis = reading_axis(node)
        channels = trace.parameters.get((name, axis))
        if channels is None or trace.roles[name, axis] != "reads" or len(node.inputs[1].uses()) > 1:
            continue
        lost = np.isin(trace.channels.roots(channels), removed)
        if lost.any():
            nodes.append((node, name, axis, ~lost))
    wanted = tuple(dict.fromkeys(str(node.inputs[0].name) for node, *_ in nodes if node.inputs[0] is not None))
    with staged(with_outputs(trace.model, wanted)) as source:
        session = open_session(source)
    sums: dict[str, list[NDArray[np.float64]]] = {}
    counts = [0, 0]
    generator = np.random.default_rng(seed)
    for index, feed in enumerate(islice(data, samples)):
        part = int(held_out_sample(index))
        counts[part] += 1
        arrays = dict(zip(wanted, session.run(feed, list(wanted)), strict=True))
        for node, name, *_ in nodes:
            rows = input_rows(refit_site(node), arrays[str(node.inputs[0].name)], _ROWS, generator)  # type: ignore[union-attr]
            ones = np.ones((*rows.shape[:2], 1))
            grouped = np.concatenate([rows.astype(np.float64), ones], axis=2).transpose(1, 0, 2)
            square = grouped.transpose(0, 2, 1) @ grouped / len(rows)
            found = sums.setdefault(name, [np.zeros_like(square), np.zeros_like(square)])
            found[part] += square
    notes: dict[str, str] = {}
    for node, name, axis, kept in nodes:
        fit, held = (total / max(count, 1) for total, count in zip(sums[name], counts, strict=True))
        notes[name] = _refitted(model, node, name, axis, kept, fit, held if counts[1] else fit)
    return dataclasses.replace(trace, model=model), notes


def held_out_sample(index: int) -> bool:
    """Whether a sample is one of those that nothing is fitted to."""
    return index % _EVERY == _EVERY - 1


def held_out(data: Dataset, *, samples: int = 64) -> list[Feed]:
    """Return the samples that `refit_readers` does not fit to; all of them if they are too few to part."""
    feeds = list(islice(data, samples))
    return feeds[_EVERY - 1 :: _EVERY] or feeds


def _refitted(
    model: ir.Model,
    node: ir.Node,
    name: str,
    axis: int,
    kept: NDArray[np.bool_],
    fit: NDArray[np.float64],
    held: NDArray[np.float64],
) -> str:
    """Change a weight and its bias in place if that helps, and say what it did."""
    value = model.graph.initializers[name]
    weight = constant_array(value)
    assert weight is not None
    groups = len(fit)
    kernel = int(np.prod(weight.shape[2:])) if node.op_type == "Conv" else 1
    matrix = as_matrix(weight, axis, groups)  # [G, K, N / G]
    stays = np.append(np.tile(kept, kernel), True)
    with_bias = bias_of(node) is not None
    plain, power, better = 0.0, 0.0, 0.0
    change = np.zeros((groups, matrix.shape[1] + 1, matrix.shape[2]))
    for group in range(groups):
        full = np.concatenate([matrix[group], np.zeros((1, matrix.shape[2]))])
        # Without a bias to take up the means, the input that is always one does not exist.
        chosen = slice(None) if with_bias else slice(0, -1)
        fitted = np.zeros_like(full)
        fitted[chosen] = refit_inputs(full[chosen], fit[group][chosen, chosen], stays[chosen])
        plain += _power(full * ~stays[:, None], held[group])
        better += _power(full - fitted, held[group])
        power += _power(full, held[group])
        change[group] = fitted
    texts = [f"{np.sqrt(error / max(power, 1e-30)):.1%}" for error in (plain, better)]
    if not better < plain:
        return f"error {texts[0]}, not refitted: it would be {texts[1]}"
    renewed = weight.astype(np.float64).copy()
    fresh = from_matrix(change[:, :-1], weight.shape, axis)
    index = [slice(None)] * weight.ndim
    index[axis] = np.flatnonzero(kept)  # type: ignore[call-overload]
    renewed[tuple(index)] = fresh[tuple(index)]
    value.const_value = ir.tensor(renewed.astype(weight.dtype), name=name)
    bias = bias_of(node)
    if bias is not None:
        old = constant_array(bias)
        assert old is not None
        bias.const_value = ir.tensor((old + change[:, -1].reshape(-1)).astype(old.dtype), name=bias.name)
    return f"error {texts[0]} -> {texts[1]} refitted"


def _power(difference: NDArray[np.float64], moments: NDArray[np.float64]) -> float:
    """Return the mean square of `x · difference`, summed over the outputs."""
    return float(np.sum(difference * (moments @ difference)))


def bias_of(node: ir.Node) -> ir.Value | None:
    """Return a bias per output that only this node reads, or that only the Add behind a MatMul reads."""
    bias: ir.Value | None = None
    if node.op_type != "MatMul":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        beta = node.attributes.get("beta")
        if beta is not None and beta.as_float() != 1.0:
            return None
    else:
        users = list(node.outputs[0].consumers())
        if len(users) == 1 and users[0].op_type == "Add" and not node.outputs[0].is_graph_output():
            bias = next((value for value in users[0].inputs if value is not node.outputs[0]), None)
    array = constant_array(bias)
    weight = constant_array(node.inputs[1])
    assert weight is not None
    outputs = weight.shape[1 - reading_axis(node)]
    alone = bias is not None and len(bias.uses()) == 1
    return bias if alone and array is not None and array.shape == (outputs,) else None


def reading_axis(node: ir.Node) -> int:
    """Return the axis of an operator's weight along which it is summed; of a convolution, that of the channels."""
    if node.op_type == "Conv":
        return 1
    flag = node.attributes.get("transB")
    return 1 if node.op_type == "Gemm" and flag is not None and flag.as_int() else 0


def as_matrix(weight: NDArray[np.floating], axis: int, groups: int) -> NDArray[np.float64]:
    """Return `[G, K, N / G]` in the order that kernels sum: channels within kernel positions."""
    outputs_first = np.moveaxis(weight, 1, -1) if axis == 1 else weight.T
    by_group = outputs_first.reshape(groups, len(outputs_first) // groups, -1)
    return by_group.transpose(0, 2, 1).astype(np.float64)


def from_matrix(matrix: NDArray[np.float64], shape: tuple[int, ...], axis: int) -> NDArray[np.float64]:
    """Return what `as_matrix` was given."""
    outputs_first = matrix.transpose(0, 2, 1)
    if axis == 1:
        return np.moveaxis(outputs_first.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    return outputs_first.reshape(shape[1], shape[0]).T


def refit_site(node: ir.Node) -> Site:
    """Return an operator as a site that rows are read from."""
    return Site(
        path=str(node.name),
        node=node,
        op_type=node.op_type,
        support=None,
        weight_index=1,
        bias=None,
        bias_node=None,
        activations=(0,),
        fused=(),
        subgraph=False,
        refusals={},
    )
