"""What of a graph is trained, and how it comes in from outside."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.plan.sites import Site, find_sites

if TYPE_CHECKING:
    from lowbit.graph.editor import Editor
    from lowbit.methods.trainable import Origin
    from lowbit.plan.plan import SitePlan

__all__ = ["from_outside", "has_trained_weight", "weighted_sites", "without_corrections"]

# Operators whose weight comes in from outside, so that it can be masked, clustered and rounded.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather"})


def weighted_sites(origin: Origin) -> dict[str, Site]:
    """Return the sites whose weights come in from outside, by path, of the model that a plan is about."""
    return {site.path: site for site in find_sites(origin.model, origin.target) if has_trained_weight(site)}


def has_trained_weight(site: Site) -> bool:
    """Whether the weight of a site comes in from outside, so that it can be masked, clustered and rounded."""
    return site.op_type in _WEIGHTED and site.weight_index is not None and not site.subgraph


def from_outside(editor: Editor, wish: str, added: list[ir.Value]) -> ir.Value:
    """Return a new input of the graph, float32, named as wished as far as that is free; `added` gets it too."""
    value = ir.Value(name=editor.name(wish), type=ir.TensorType(ir.DataType.FLOAT))
    added.append(value)
    return value


def without_corrections(entry: SitePlan) -> SitePlan:
    """Return an entry without what post-training quantization has made up for: the trained weights hold it."""
    return dataclasses.replace(entry, rounding=None, input_mean=None, bias=None)
