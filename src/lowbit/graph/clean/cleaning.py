"""The verb `clean`: which passes a float model goes through before it is quantized, and in which order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.exceptions import ModelError
from lowbit.graph.clean.activations import simplify_activations
from lowbit.graph.clean.affine import fold_affine, remaining_batch_norms
from lowbit.graph.clean.branches import inline_branches
from lowbit.graph.clean.cones import fold_cones
from lowbit.graph.clean.constants import lift_constants, own_initializers
from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.clean.dimensions import fold_dimensions
from lowbit.graph.clean.folding import fold_constants
from lowbit.graph.clean.functions import inline_functions
from lowbit.graph.clean.hard_swish import fuse_hard_sigmoids
from lowbit.graph.clean.identities import remove_identities
from lowbit.graph.clean.names import name_nodes
from lowbit.graph.clean.opset import opset_of, raise_opset
from lowbit.graph.clean.padding import merge_pads, remaining_pads
from lowbit.graph.clean.sequences import split_without_sequences
from lowbit.graph.clean.shapes import annotate_shapes
from lowbit.graph.clean.transposes import cancel_transposes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

__all__ = ["CleanResult", "clean"]

PASSES: tuple[Callable[[ir.Model], Counter[str]], ...] = (
    lift_constants,
    inline_branches,
    fold_constants,
    fold_cones,
    fold_dimensions,
    split_without_sequences,
    remove_identities,
    cancel_transposes,
    simplify_activations,
    fuse_hard_sigmoids,
    merge_pads,
    fold_affine,
    remove_dead_code,
)
"""Repeated in this order, each time on freshly inferred shapes, until none of them changes anything."""

REMARKS: tuple[Callable[[ir.Model], list[str]], ...] = (remaining_batch_norms, remaining_pads)
"""Asked at the end for what could not be done, and why."""

# Each round removes at least one node; this only bounds the time on a pathological graph.
_ROUNDS = 20
# Since opset 7 binary operators broadcast as numpy does and normalization is an inference operator, which the passes
# rely on; an older model is converted first.
_MODERN_OPSET = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanResult:
    """A cleaned model and what was done to it.

    Attributes:
        model: Computes what the original computes, up to the rounding of folded weights.
        notes: One sentence for each kind of change, and for each change that was refused.
    """

    model: ir.Model
    notes: tuple[str, ...]


def clean(model: ir.Model, *, minimum_opset: int = 13, fold_batch_norms: bool = True) -> CleanResult:
    """Make a float model ready for quantization: folded, inlined, named, with shapes and a sufficient opset.

    Graph inputs and outputs, names of values that survive, and already quantized parts stay as they are.

    Args:
        model: Left unchanged.
        minimum_opset: Raise the standard operator set to this version if it is lower. 13 is the first with
            per-channel `DequantizeLinear`. If the conversion fails, the model keeps its opset and a note says so.
        fold_batch_norms: Whether normalizations and scales go into the weights before them.
    """
    notes: list[str] = []
    passes = PASSES if fold_batch_norms else tuple(step for step in PASSES if step is not fold_affine)
    result = model.clone()
    changes = inline_functions(result) + own_initializers(result) + name_nodes(result)
    before = opset_of(result)
    if before >= _MODERN_OPSET:
        # Conversion needs shapes, and shapes need folded constants.
        changes += _settle(result, passes)
    try:
        result = raise_opset(result, minimum_opset)
    except ModelError as error:
        notes.append(f"opset {before} kept: {error}")
    if opset_of(result) != before:
        notes.append(f"opset {before} raised to {opset_of(result)}")
        changes += _settle(result, passes)
    failure = annotate_shapes(result)
    if failure:
        notes.append(f"shapes unknown: {failure}")
    name_nodes(result)
    notes += [template.format(n=n, s="" if n == 1 else "s") for template, n in changes.items()]
    for remark in REMARKS:
        notes += remark(result)
    return CleanResult(model=result, notes=tuple(notes))


def _settle(model: ir.Model, passes: tuple[Callable[[ir.Model], Counter[str]], ...]) -> Counter[str]:
    """Repeat all passes in place until none of them finds anything to do."""
    total: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        annotate_shapes(model)
        changes: Counter[str] = Counter()
        for transform in passes:
            changes += transform(model)
        if not changes:
            break
        total += changes
    return total
