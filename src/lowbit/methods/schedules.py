"""How long and how fast a model learns, by what there is to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowbit.formats import parse_format
from lowbit.reconstruction.learning import Schedule

if TYPE_CHECKING:
    from lowbit.plan.plan import Plan

__all__ = ["Learning", "Schedules", "usual_schedules"]

Learning = Literal["learned", "adaround"]
"""How roundings are learned: positions of `LearnedRounding`, or `AdaptiveRounding`."""

_INT8_MAXIMUM = 127
_INT3_MAXIMUM = 3
# In logits: a fraction of one half reaches either end at 2.4.
_ADAROUND_REACH = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedules:
    """How long and how fast a model learns.

    Attributes:
        blocks: For every block.
        whole: For all of them together afterwards, for the outputs of the model; `None` leaves it out.
    """

    blocks: Schedule
    whole: Schedule | None = None


def usual_schedules(plan: Plan, kind: Learning = "learned") -> Schedules:
    """Return schedules for the weights of a plan: at 8 bits little is left to be learned.

    NOTE: The rates for all blocks together come from few trials. With those of a block, 360 steps of a text recognizer
    at 4 bits never went below the held-out error that they began with; with a tenth for scales and biases, 80 did. At 3
    bits, 120 steps with mixtures reached the held-out error of 500 without.
    """
    if kind == "adaround":
        return Schedules(blocks=Schedule(steps=400, reach=_ADAROUND_REACH, scale_rate=0.0, bias_rate=0.0))
    elements = [parse_format(entry.weights).element for entry in plan.sites if entry.weights is not None]
    if all(element.kind != "integer" or element.maximum >= _INT8_MAXIMUM for element in elements):
        return Schedules(blocks=Schedule(steps=40))
    if all(element.kind != "integer" or element.maximum > _INT3_MAXIMUM for element in elements):
        return Schedules(blocks=Schedule(), whole=Schedule(dropped=0.0, scale_rate=5e-5, bias_rate=1e-4))
    whole = Schedule(steps=400, dropped=0.0, reach=0.5, scale_rate=2e-4, bias_rate=3e-4, mixed=True)
    return Schedules(blocks=Schedule(), whole=whole)
