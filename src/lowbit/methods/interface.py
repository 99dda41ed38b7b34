"""Talking to an artifact whose inputs and outputs are codes (`io: int8`) in the units of its float model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.formats import Parameters, dequantize, parse_format, quantize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowbit.plan.plan import ActivationPlan, Plan
    from lowbit.runtime.session import Feed, Session

__all__ = ["Interface", "coded_interface"]

_CODES = ("tensor(uint8)", "tensor(int8)", "tensor(uint16)", "tensor(int16)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Which inputs and outputs of an artifact are codes, with their scales, by name; empty for a float interface."""

    inputs: Mapping[str, ActivationPlan]
    outputs: Mapping[str, ActivationPlan]

    def encode(self, feed: Feed) -> Feed:
        """Return a feed of the float model as the artifact takes it."""
        return {name: _encode(array, self.inputs.get(name)) for name, array in feed.items()}

    def decode(self, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Return the artifact's outputs, called `names`, in the units of the float model."""
        return [_decode(array, self.outputs.get(name)) for name, array in zip(names, arrays, strict=True)]


def coded_interface(artifact: Session, plan: Plan | None) -> Interface:
    """Find out which inputs and outputs of `artifact` its plan made codes."""
    coded = {tensor.tensor: tensor for tensor in plan.activations} if plan is not None else {}
    return Interface(
        inputs={item.name: coded[item.name] for item in artifact.engine.get_inputs() if _coded(item, coded)},
        outputs={item.name: coded[item.name] for item in artifact.engine.get_outputs() if _coded(item, coded)},
    )


def _coded(item: Any, coded: Mapping[str, ActivationPlan]) -> bool:
    return item.type in _CODES and item.name in coded


def _encode(array: NDArray[Any], tensor: ActivationPlan | None) -> NDArray[Any]:
    if tensor is None:
        return array
    fmt = parse_format(tensor.format)
    return quantize(array, _parameters(tensor), fmt)


def _decode(array: NDArray[Any], tensor: ActivationPlan | None) -> NDArray[Any]:
    if tensor is None:
        return array
    return dequantize(array, _parameters(tensor), parse_format(tensor.format))


def _parameters(tensor: ActivationPlan) -> Parameters:
    zero_point = np.asarray(tensor.zero_point, dtype=parse_format(tensor.format).element.dtype)
    return Parameters(np.asarray(tensor.scale, dtype=np.float32), zero_point)
