"""`Pad` nodes whose zeros the following convolution can add itself."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from lowbit.graph.clean.values import all_nodes, constant, is_op

__all__ = ["merge_pads", "remaining_pads"]


def merge_pads(model: ir.Model) -> Counter[str]:
    """Move the pads of a constant-zero `Pad` into the attribute `pads` of every `Conv` that reads it.

    All or none: a `Pad` that must stay for another reader would be paid for twice.
    """
    changes: Counter[str] = Counter()
    for graph, pad in all_nodes(model):
        if not is_op(pad, "Pad") or _refusal(pad):
            continue
        begins, ends = _spatial_pads(pad) or ([], [])
        for usage in list(pad.outputs[0].uses()):
            conv = usage.node
            own = list(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else [0] * 2 * len(begins)
            added = [a + b for a, b in zip(own, [*begins, *ends], strict=True)]
            conv.attributes.pop("auto_pad", None)
            conv.attributes.add(ir.AttrInt64s("pads", added))
            conv.replace_input_with(0, pad.inputs[0])
        graph.remove(pad, safe=True)
        changes["{n} Pad node{s} merged into Conv"] += 1
    return changes


def remaining_pads(model: ir.Model) -> list[str]:
    """Say for each `Pad` before a `Conv` why it had to stay."""
    return [
        f"Pad {pad.name!r} kept: {_refusal(pad)}"
        for _, pad in all_nodes(model)
        if is_op(pad, "Pad") and any(is_op(usage.node, "Conv") for usage in pad.outputs[0].uses())
    ]


def _refusal(pad: ir.Node) -> str:
    """Why the pads cannot move into the readers, or an empty string."""
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    if mode != "constant":
        return f"its mode is {mode}, a Conv pads with zeros"
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        fill = constant(pad.inputs[2])
        if fill is None or fill.size != 1 or fill.item() != 0:
            return "it does not pad with a constant zero"
    if pad.outputs[0].is_graph_output():
        return "the model returns its result"
    if _spatial_pads(pad) is None:
        return "its pads are not constant, are negative, or touch the batch or the channels"
    usages = list(pad.outputs[0].uses())
    if not usages:
        return "nothing reads it"
    for usage in usages:
        if not is_op(usage.node, "Conv") or usage.idx != 0:
            return f"{usage.node.op_type} {usage.node.name!r} reads it too"
        automatic = usage.node.attributes["auto_pad"].as_string() if "auto_pad" in usage.node.attributes else "NOTSET"
        if automatic not in {"NOTSET", "VALID"}:
            return f"Conv {usage.node.name!r} computes its own pads ({automatic})"
    return ""


def _spatial_pads(pad: ir.Node) -> tuple[list[int], list[int]] | None:
    """Pads before and after each spatial axis, or None if there is more to it."""
    pads = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pads is None or pad.inputs[0] is None:
        return None
    axes_given = len(pad.inputs) > 3 and pad.inputs[3] is not None
    if not axes_given:
        rank = len(pads) // 2
        begins, ends = [int(p) for p in pads[:rank]], [int(p) for p in pads[rank:]]
    else:
        axes, shape = constant(pad.inputs[3]), pad.inputs[0].shape
        if axes is None or shape is None:
            return None
        rank = len(shape)
        begins, ends = [0] * rank, [0] * rank
        for index, axis in enumerate(int(axis) % rank for axis in axes):
            begins[axis], ends[axis] = int(pads[index]), int(pads[index + len(axes)])
    if any(begins[:2]) or any(ends[:2]) or min((*begins, *ends), default=0) < 0:
        return None
    return begins[2:], ends[2:]
