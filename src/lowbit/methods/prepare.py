"""Float models made easier to quantize, which compute the same: what is done before sites are looked for.

Plans are made for the cleaned model. What they ask for beforehand is part of them, so that applying one does it again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import RecipeError
from lowbit.graph import digest
from lowbit.graph.normalization_steps import normalize_in_steps
from lowbit.methods.absorb import apply_absorptions
from lowbit.methods.equalize import equalize
from lowbit.methods.migrate import apply_migrations
from lowbit.methods.rotate import apply_rotations
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from lowbit.plan.plan import AbsorptionPlan, MigrationPlan, Plan, RotationPlan
    from lowbit.plan.recipe import Recipe
    from lowbit.targets import Target

__all__ = [
    "PREPARED_KEY",
    "Prepared",
    "absorbed",
    "in_steps",
    "migrated",
    "prepare",
    "prepared_for",
    "rotated",
    "source_digest",
]

PREPARED_KEY = "lowbit.prepared_from"
"""Entry of a prepared model's metadata, in memory only: the digest of the cleaned model that it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A float model that is ready to be planned for.

    Attributes:
        model: The cleaned model itself, if there was nothing to do.
        migrations: Scales that were moved, for the plan.
        rotations: What was rotated, likewise.
        absorptions: Biases that were moved, likewise.
        notes: What was done and what not, in words.
    """

    model: ir.Model
    migrations: tuple[MigrationPlan, ...] = ()
    rotations: tuple[RotationPlan, ...] = ()
    absorptions: tuple[AbsorptionPlan, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(model: ir.Model, recipe: Recipe) -> Prepared:
    """Do what a recipe asks for before sites are looked for.

    Args:
        model: The cleaned model; left unchanged.
        recipe: The recipe.
    """
    if not recipe.equalize:
        return Prepared(model=model)
    found = equalize(model)
    return Prepared(model=_marked(found.model, model), notes=found.notes)


def prepared_for(model: ir.Model, plan: Plan, target: Target | None = None) -> ir.Model:
    """Return the float model that a plan's entries are about.

    Args:
        model: The cleaned model, or one that was prepared from it already; left unchanged.
        plan: The plan.
        target: The plan's target, where it is not one of the named ones.

    Raises:
        RecipeError: The plan was made for another model.
        TargetError: The plan's target is unknown.
    """
    if source_digest(model) != plan.model_sha256:
        raise RecipeError(
            "the plan does not fit this model",
            cause="it was made for a model with other operators or weights",
            remedy="make a new plan with --save-plan",
        )
    equalized = bool(plan.options.get("equalize", False))
    moved = equalized or plan.absorptions or plan.migrations or plan.rotations
    if PREPARED_KEY in model.metadata_props:
        return model
    result = model
    if moved:
        result = equalize(model).model if equalized else model
        result = apply_absorptions(result, plan.absorptions)
        result = apply_migrations(apply_rotations(result, plan.rotations), plan.migrations)
    result, _ = _stepwise(result, target or find_target(plan.target))
    return model if result is model else _marked(result, model)


def absorbed(prepared: Prepared, absorptions: Sequence[AbsorptionPlan], notes: Sequence[str]) -> Prepared:
    """Move biases behind activation functions in a model that was equalized or not.

    Args:
        prepared: What `prepare` returned.
        absorptions: What to move.
        notes: What was done and what not, in words.
    """
    moved = apply_absorptions(prepared.model, absorptions) if absorptions else prepared.model
    return _further(prepared, moved, notes, absorptions=tuple(absorptions))


def rotated(prepared: Prepared, rotations: Sequence[RotationPlan], notes: Sequence[str]) -> Prepared:
    """Rotate channels in a model that was prepared so far.

    Args:
        prepared: What `prepare` or `absorbed` returned.
        rotations: What to rotate.
        notes: What was done and what not, in words.
    """
    moved = apply_rotations(prepared.model, rotations) if rotations else prepared.model
    return _further(prepared, moved, notes, rotations=tuple(rotations))


def migrated(prepared: Prepared, migrations: Sequence[MigrationPlan], notes: Sequence[str]) -> Prepared:
    """Move scales in a model that was prepared so far.

    Args:
        prepared: What `prepare`, `absorbed` or `rotated` returned.
        migrations: What to move.
        notes: What was done and what not, in words.
    """
    moved = apply_migrations(prepared.model, migrations) if migrations else prepared.model
    return _further(prepared, moved, notes, migrations=tuple(migrations))


def in_steps(prepared: Prepared, target: Target) -> Prepared:
    """Take operators apart that the target computes in steps; the last thing that is done before sites are looked for.

    Args:
        prepared: A prepared model.
        target: The target.
    """
    model, count = _stepwise(prepared.model, target)
    notes = (f"{count} LayerNormalization{'s' if count > 1 else ''} computed in steps",) if count else ()
    return _further(prepared, model, notes)


def _stepwise(model: ir.Model, target: Target) -> tuple[ir.Model, int]:
    if "LayerNormalization" not in target.stepwise_operators:
        return model, 0
    return normalize_in_steps(model, target.step_activations)


def _further(prepared: Prepared, model: ir.Model, notes: Sequence[str], **plans: Any) -> Prepared:
    """Return a prepared model with one more step, marked as made from the same cleaned model."""
    if model is not prepared.model:
        model.metadata_props[PREPARED_KEY] = source_digest(prepared.model)
    return dataclasses.replace(prepared, model=model, notes=(*prepared.notes, *notes), **plans)


def source_digest(model: ir.Model) -> str:
    """Return the digest of the cleaned model that a model is or was prepared from."""
    return model.metadata_props.get(PREPARED_KEY) or digest(model)


def _marked(prepared: ir.Model, source: ir.Model) -> ir.Model:
    prepared.metadata_props[PREPARED_KEY] = digest(source)
    return prepared
