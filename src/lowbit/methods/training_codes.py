"""The codes of activations and the rounded biases of a plan as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from lowbit.exceptions import RecipeError
from lowbit.formats import parse_format
from lowbit.methods.training_sites import from_outside
from lowbit.plan.sites import Site, find_sites
from lowbit.training.activation import DOMAIN, OPERATOR, LearnedActivation
from lowbit.training.bias import TrainableBias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor
    from lowbit.methods.trainable import Origin
    from lowbit.plan.plan import ActivationPlan
    from lowbit.training.weight import TrainableWeight

__all__ = ["learned_activations", "quantized_tensors", "rounded_biases"]

_BYTE = 8


def quantized_tensors(origin: Origin) -> dict[str, list[ActivationPlan]]:
    """Return the entries of the plan that share a scale, by the first one's tensor."""
    groups: dict[tuple[float, int, str], list[ActivationPlan]] = {}
    for tensor in origin.plan.activations:
        groups.setdefault((tensor.scale, tensor.zero_point, tensor.format), []).append(tensor)
    return {members[0].tensor: members for members in groups.values()}


def learned_activations(
    origin: Origin, editor: Editor, sites: dict[str, Site], added: list[ir.Value]
) -> dict[str, LearnedActivation]:
    """Put codes behind every tensor that carries them, for those that read them."""
    graph = editor.model.graph
    static = [sites[entry.node] for entry in origin.plan.sites if entry.execution == "static"]
    writers = {node for site in static for node in (site.node, site.bias_node, *site.fused) if node is not None}
    readers = {site.node: site for site in static}
    values = {value.name: value for value in graph.inputs}
    values.update({value.name: value for node in graph for value in node.outputs})
    modules = {
        member.tensor: module
        for members in quantized_tensors(origin).values()
        for module in [_module(members)]
        for member in members
    }
    found: dict[str, LearnedActivation] = {}
    for tensor in origin.plan.activations:
        value = values.get(tensor.tensor)
        if value is None or (value.const_value is not None and not value.is_graph_input()):
            continue
        everyone = value.producer() in writers
        uses = [
            use
            for use in value.uses()
            if everyone or (use.node in readers and use.idx in readers[use.node].activations)
        ]
        codes = from_outside(editor, f"{tensor.tensor}/codes", added)
        found[str(codes.name)] = modules[tensor.tensor]
        node = ir.node(
            OPERATOR,
            [value, codes],
            domain=DOMAIN,
            outputs=[ir.Value(name=editor.name(f"{tensor.tensor}/decoded"), shape=value.shape, type=value.type)],
            name=f"{tensor.tensor}/codes",
        )
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(next(iter(graph)), node)
        for use in uses:
            use.node.replace_input_with(use.idx, node.outputs[0])
        if everyone and not value.is_graph_output():
            _absorb_relu(producer, node, modules[tensor.tensor])
        if everyone:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = node.outputs[0]
    return found


def _absorb_relu(relu: ir.Node | None, codes: ir.Node, module: LearnedActivation) -> None:
    """Leave out a Relu whose clipping the codes behind it do already."""
    if relu is None or relu.op_type != "Relu" or module.learned_zero_point or module.clips not in {None, (0.0, None)}:
        return
    shared = sum(use.node.op_type == OPERATOR for use in relu.outputs[0].uses())
    if module.fixed_zero_point != module.low or len(relu.outputs[0].uses()) != shared or module.readers > 1:
        return
    module.clips = (0.0, None)
    codes.replace_input_with(0, relu.inputs[0])
    assert relu.graph is not None
    relu.graph.remove(relu, safe=True)


def rounded_biases(
    origin: Origin,
    editor: Editor,
    sites: dict[str, Site],
    added: list[ir.Value],
    starts: dict[str, NDArray[np.float32]],
    weights: dict[str, TrainableWeight],
    activations: dict[str, LearnedActivation],
) -> dict[str, TrainableBias]:
    """Return the biases of few bits' operators: whole multiples of a scale so coarse that training has to see it."""
    bits = {tensor.tensor: parse_format(tensor.format).element.bits for tensor in origin.plan.activations}
    original = {site.path: site for site in find_sites(origin.model, origin.target)}
    found: dict[str, TrainableBias] = {}
    for entry in origin.plan.sites:
        site, before = sites[entry.node], original[entry.node]
        weight = weights.get(f"{entry.node}/weight")
        source = before.node.inputs[0]
        if entry.execution != "static" or before.bias is None or weight is None or weight.quantizer is None:
            continue
        codes = activations.get(f"{source.name}/codes") if source is not None else None
        few = entry.weights is not None and parse_format(entry.weights).element.bits < _BYTE
        if codes is None or origin.target.float_bias or not (few or bits[str(source.name)] < _BYTE):  # type: ignore[union-attr]
            continue
        holder = site.bias_node or site.node
        index = next(i for i, one in enumerate(holder.inputs) if one is site.bias)
        name = str(before.bias.name)
        start = starts.get(name)
        if start is None:
            assert before.bias.const_value is not None
            start = np.array(before.bias.const_value.numpy(), dtype=np.float32)
        shape = tuple(int(size) for size in before.bias.const_value.shape.numpy())  # type: ignore[union-attr]
        value = from_outside(editor, f"{entry.node}/bias", added)
        holder.replace_input_with(index, value)
        found[str(value.name)] = TrainableBias(
            torch.from_numpy(np.array(start, dtype=np.float32).reshape(shape)), weight, codes
        )
    return found


def _module(members: Sequence[ActivationPlan]) -> LearnedActivation:
    tensor = members[0]
    fmt = parse_format(tensor.format)
    if fmt.element.kind != "integer":
        raise RecipeError(
            f"activations are {fmt}", cause="training has integers for them", remedy="use uint8, uint4 or uint2"
        )
    low, high = (int(end) for end in fmt.code_range())
    fixed = any(member.reason.startswith("range of") for member in members)
    module = LearnedActivation(
        tensor.scale,
        tensor.zero_point,
        low=low,
        high=high,
        learned=not fixed,
        learned_zero_point=not fmt.symmetric and tensor.zero_point > low,
    )
    module.readers = len(members)
    return module
