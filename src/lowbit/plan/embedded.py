"""The plan inside the artifact: compressed in the model's metadata, so that a file explains itself."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import zlib
from typing import TYPE_CHECKING, Any

from lowbit.plan.plan import Plan

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PLAN_KEY", "embed_plan", "embedded_plan"]

_UNNEEDED: dict[str, Any] = dict.fromkeys(
    ("input_mean", "rounding", "scale", "bias", "codebook", "outliers", "low_rank")
)

PLAN_KEY = "lowbit.plan"
"""Entry of the model's metadata: the plan as JSON, compressed with zlib, in base64."""


def embed_plan(model: ir.Model, plan: Plan) -> None:
    """Store `plan` in the metadata of `model`, which is changed.

    What only a new artifact needs (means of channels, roundings, what was learned or is kept beside the codes) and what
    differs from one measurement to the next (warnings) is left out.
    """
    sites = tuple(dataclasses.replace(site, **_UNNEEDED) for site in plan.sites)
    text = json.dumps(
        dataclasses.replace(plan, sites=sites, warnings=(), migrations=(), rotations=(), absorptions=()).to_dict(),
        separators=(",", ":"),
    )
    packed = zlib.compress(text.encode(), level=9)
    model.metadata_props[PLAN_KEY] = base64.b64encode(packed).decode("ascii")


def embedded_plan(model: ir.Model) -> Plan | None:
    """Return the plan that `embed_plan` stored, `None` if there is none.

    Raises:
        RecipeError: The plan is of another version.
    """
    text = model.metadata_props.get(PLAN_KEY)
    if text is None:
        return None
    try:
        data = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except (binascii.Error, zlib.error, ValueError):
        return None  # a stranger's entry of the same name
    return Plan.from_dict(data)
