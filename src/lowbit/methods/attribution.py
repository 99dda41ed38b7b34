"""Which kernel of an engine runs which operator of the model.

Engines rename, merge and move what they are given. So that a kernel can still be told, the model is loaded with a mark
in the name of every node; engines build the names of their kernels from those. What an engine adds by itself (changes
of the memory layout) belongs to the conversion or operator that it stands beside.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lowbit.graph.constants import is_constant
from lowbit.graph.editor import abbreviated
from lowbit.plan.sites import walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.sites import Site
    from lowbit.runtime.kernels import Kernel

__all__ = ["Marked", "Owner", "mark", "owners_of_kernels"]

_MARK = re.compile(r"#(\d+)#")
_CONVOLUTION = "Conv"
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What a kernel is there for: an operator, by its path, or a conversion, by the name of the tensor."""

    kind: Literal["site", "quantize", "dequantize"]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Marked:
    """A copy of a model with marked nodes.

    Attributes:
        model: The copy.
        owners: Owner of each mark, `None` for a node that belongs to nobody.
        tensors: Owner of each tensor that an operator writes, by name.
        weights: Path of the operator that a constant belongs to, by the name of the constant.
        behind: The convolution in front of an operator without weights, by the tensor that the latter writes: an engine
            may let the kernel of the one compute the other as well.
    """

    model: ir.Model
    owners: tuple[Owner | None, ...]
    tensors: Mapping[str, Owner]
    weights: Mapping[str, str]
    behind: Mapping[str, Owner] = field(default_factory=dict)


def mark(model: ir.Model, sites: Sequence[Site]) -> Marked:
    """Return a copy of a float model or an artifact in which every node carries a mark.

    Args:
        model: The cleaned float model, or an artifact that was made from it.
        sites: The cleaned model's sites.
    """
    copy = model.clone()
    site_of_path: dict[str, str] = {}
    site_of_tensor: dict[str, str] = {}
    original: dict[str, str] = {}
    weights: dict[str, str] = {}
    for site in sites:
        prefix = site.path[: len(site.path) - len(site.node.name or "")]
        for node in (site.node, site.bias_node, *site.fused):
            if node is None:
                continue
            site_of_path[f"{prefix}{node.name}"] = site.path
            for value in node.outputs:
                if value.name:
                    site_of_tensor[value.name] = site.path
                    # What keeps an operator in float belongs to it.
                    site_of_tensor[abbreviated(f"{value.name}_in_float")] = site.path
        for tensor in (*site.node.inputs, *site.node.outputs, *site.last.outputs):
            if tensor is not None and tensor.name:
                original[abbreviated(f"{tensor.name}_codes")] = tensor.name
        for constant in (site.weight, site.bias):
            if constant is not None and constant.name:
                weights[constant.name] = site.path
                weights[abbreviated(f"{constant.name}_codes")] = site.path
    found: dict[ir.Node, Owner | None] = {}
    nodes = list(walk(copy.graph))
    # From the back, so that what stands before an operator (decoding of weights, quantization at run time) finds it.
    for path, node, _ in reversed(nodes):
        found[node] = _owner(path, node, found, site_of_path, site_of_tensor, original)
    for index, (_, node, _) in enumerate(nodes):
        node.name = f"#{index}#"
    owners = tuple(found[node] for _, node, _ in nodes)
    tensors: dict[str, Owner] = {}
    for (_, node, _), owner in zip(nodes, owners, strict=True):
        if owner is not None:
            tensors.update({value.name: owner for value in node.outputs if value.name})
    return Marked(model=copy, owners=owners, tensors=tensors, weights=weights, behind=_behind(sites))


def _behind(sites: Sequence[Site]) -> dict[str, Owner]:
    convolutions = {site.output: site for site in sites if site.op_type == _CONVOLUTION}
    found: dict[str, Owner] = {}
    for site in sites:
        writer = convolutions.get(site.node.inputs[0]) if site.node.inputs and site.node.inputs[0] else None
        if site.op_type != _CONVOLUTION and writer is not None and site.output.name:
            found[site.output.name] = Owner(kind="site", name=writer.path)
    return found


def _owner(
    path: str,
    node: ir.Node,
    found: Mapping[ir.Node, Owner | None],
    site_of_path: Mapping[str, str],
    site_of_tensor: Mapping[str, str],
    original: Mapping[str, str],
) -> Owner | None:
    if path in site_of_path:
        return Owner(kind="site", name=site_of_path[path])
    source = node.inputs[0] if node.inputs else None
    if node.op_type in _QUANTIZERS and source is not None and not is_constant(source):
        quantize = node.op_type == "QuantizeLinear"
        codes = (node.outputs[0] if quantize else source).name or ""
        return Owner(kind="quantize" if quantize else "dequantize", name=original.get(codes, codes))
    for value in node.outputs:
        if value.name and value.name in site_of_tensor:
            return Owner(kind="site", name=site_of_tensor[value.name])
    for value in node.outputs:
        for use in value.uses():
            owner = found.get(use.node)
            if owner is not None and owner.kind == "dequantize":
                # Codes that are changed before an operator reads them.
                inner = (found.get(other.node) for output in use.node.outputs for other in output.uses())
                owner = next((one for one in inner if one is not None and one.kind == "site"), None)
            if owner is not None and owner.kind == "site":
                return owner
    return None


def owners_of_kernels(kernels: Sequence[Kernel], marked: Marked) -> tuple[Owner | None, ...]:
    """Return the owner of every kernel, `None` where nobody can be told."""
    owners: list[Owner | None] = [_by_name(kernel, marked) for kernel in kernels]
    writers = {tensor: index for index, kernel in enumerate(kernels) for tensor in kernel.outputs if tensor}
    readers: dict[str, list[int]] = {}
    for index, kernel in enumerate(kernels):
        for tensor in kernel.inputs:
            readers.setdefault(tensor, []).append(index)
    open_ = [index for index, owner in enumerate(owners) if owner is None]
    changed = True
    while open_ and changed:
        changed = False
        for index in list(open_):
            after = [owners[reader] for tensor in kernels[index].outputs for reader in readers.get(tensor, ())]
            before = [owners[writers[tensor]] for tensor in kernels[index].inputs if tensor in writers]
            owner = _beside(before, after)
            if owner is not None:
                owners[index] = owner
                open_.remove(index)
                changed = True
    _return_layout_changes(kernels, owners, readers)
    return tuple(owners)


def _return_layout_changes(
    kernels: Sequence[Kernel], owners: list[Owner | None], readers: Mapping[str, Sequence[int]]
) -> None:
    """Give what carries the name of a conversion that was merged away to whoever needs it: what reads it."""
    real = {
        owner
        for kernel, owner in zip(kernels, owners, strict=True)
        if kernel.op_type in _QUANTIZERS and owner is not None
    }
    for index, owner in reversed(list(enumerate(owners))):
        if owner is None or owner.kind == "site" or owner in real:
            continue
        reading = [owners[reader] for tensor in kernels[index].outputs for reader in readers.get(tensor, ())]
        other = Owner(kind="dequantize" if owner.kind == "quantize" else "quantize", name=owner.name)
        owners[index] = other if other in real else next((one for one in reading if one is not None), owner)


def _by_name(kernel: Kernel, marked: Marked) -> Owner | None:
    # A kernel that holds a weight is that operator's, whatever else was merged into it and gave it its name.
    for tensor in kernel.inputs:
        if tensor in marked.weights and kernel.op_type not in _QUANTIZERS:
            return Owner(kind="site", name=marked.weights[tensor])
    # Where an engine tells all the nodes that it has merged, what computes comes before what converts.
    marks = [found for text in (kernel.name, *kernel.origins) for found in _MARK.findall(text)]
    owners = [owner for owner in (marked.owners[int(found)] for found in marks) if owner is not None]
    if owners:
        return next((owner for owner in owners if owner.kind == "site"), owners[0])
    # Kernels of blocked layouts are named after the tensor that they write.
    for tensor in (*kernel.outputs, kernel.name.split("_nchwc")[0], *kernel.origins):
        if kernel.op_type == _CONVOLUTION and tensor in marked.behind:
            return marked.behind[tensor]
        if tensor in marked.tensors:
            return marked.tensors[tensor]
    # A conversion that the engine has moved past a change of the layout.
    if kernel.op_type in _QUANTIZERS and kernel.inputs:
        quantize = kernel.op_type == "QuantizeLinear"
        return Owner(kind="quantize" if quantize else "dequantize", name=kernel.inputs[0])
    return None


def _beside(before: Sequence[Owner | None], after: Sequence[Owner | None]) -> Owner | None:
    """Return the owner of a kernel that only changes the layout: a conversion beside it, else what it feeds."""
    for owner in after:
        if owner is not None and owner.kind == "quantize":
            return owner
    for owner in before:
        if owner is not None and owner.kind != "site":
            return owner
    known = [owner for owner in (*after, *before) if owner is not None]
    return known[0] if known else None
