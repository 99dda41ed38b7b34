"""A convolution and its activation in one call of oneDNN, which keeps the weight in an order of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from lowbit.interpreter.windows import windows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__ = ["Convolution", "Ready"]


class Ready(NamedTuple):
    """What a convolution needs besides its input, the same for every piece of a batch.

    Attributes:
        weight: `[out, in / groups, rows, columns]` float32.
        bias: `[out]`, or `None`.
        activation: oneDNN's name of the activation.
        scalars: What that takes.
    """

    weight: Tensor
    bias: Tensor | None
    activation: str
    scalars: list[float]


class _Geometry(NamedTuple):
    padding: tuple[int, int]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    taps: tuple[int, int, int, int]
    outside: tuple[int, int, int, int]


@dataclass(slots=True, kw_only=True, eq=False)
class Convolution:
    """A two-dimensional convolution with the activation behind it.

    Attributes:
        call: The convolution.
        inputs: Names of its inputs.
        output: Name of the activation's output.
        activation: The activation, `None` if there is none.
        activation_inputs: Names of its inputs but the first; bounds of a Clip.
    """

    call: Call
    inputs: tuple[str | None, ...]
    output: str
    activation: Call | None = None
    activation_inputs: tuple[str | None, ...] = ()
    _source: tuple[Any, ...] | None = None
    _packed: dict[_Geometry, Tensor] = field(default_factory=dict)
    _geometries: dict[tuple[int, ...], _Geometry] = field(default_factory=dict)

    def ready(self, values: Mapping[str, Any]) -> Ready:
        """Return weight, bias and activation; forget the packed weight if it is not that of before."""
        w = values[str(self.inputs[1])]
        b = None if len(self.inputs) < 3 or self.inputs[2] is None else values[self.inputs[2]]
        # The counter does not see writes through `.data`; the sum sees all but those that leave it as it is.
        source = (w.data_ptr(), w.shape, 0 if w.is_inference() else w._version, w.sum().item())
        if source != self._source:
            self._source = source
            self._packed.clear()
        return Ready(w, b, *self._activation(values))

    def compute(self, x: Tensor, ready: Ready) -> Tensor:
        """Return the activation's output for `[N, C, H, W]` float32."""
        space = x.shape[2:]
        place = self._geometries.get(space)
        if place is None:
            place = self._geometries[space] = _geometry(self.call, space, ready.weight.shape[2:])
        if any(place.outside):
            x = functional.pad(x, place.outside)
        groups = self.call.get("group", 1)
        kernel = self._packed.get(place)
        if kernel is None:
            kernel = self._packed[place] = torch.ops.mkldnn._reorder_convolution_weight(
                functional.pad(ready.weight, place.taps).contiguous(memory_format=torch.channels_last),
                place.padding,
                place.strides,
                place.dilations,
                groups,
                list(x.shape),
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x,
            kernel,
            ready.bias,
            place.padding,
            place.strides,
            place.dilations,
            groups,
            ready.activation,
            ready.scalars,
            "",
        )

    def _activation(self, values: Mapping[str, Any]) -> tuple[str, list[float]]:
        call = self.activation
        if call is None:
            return "none", []
        if call.op_type == "Clip":
            low, high = (*(None if name is None else values[name] for name in self.activation_inputs), None, None)[:2]
            lowest = float(low) if low is not None else call.get("min", -torch.inf)
            return "hardtanh", [lowest, float(high) if high is not None else call.get("max", torch.inf)]
        if call.op_type == "LeakyRelu":
            return "leaky_relu", [call.get("alpha", 0.01)]
        return {"Relu": "relu", "HardSwish": "hardswish", "Sigmoid": "sigmoid", "Tanh": "tanh"}[call.op_type], []


def _geometry(call: Call, space: Sequence[int], kernel: Sequence[int]) -> _Geometry:
    """Return how to pad.

    oneDNN's operator pads both ends alike. Where the model does not, the kernel gets taps of zero in front or behind,
    which reach into the padding that should not be there; they are cheaper than a padded copy of the input.
    """
    place = windows(call, space, kernel)
    (above, left), (below, right) = place.before, place.after
    tall, wide = max(above, below), max(left, right)
    taps = (wide - left, wide - right, tall - above, tall - below)
    if any(taps) and max(place.dilations) > 1:
        return _Geometry((0, 0), place.strides, place.dilations, (0, 0, 0, 0), (left, right, above, below))
    return _Geometry((tall, wide), place.strides, place.dilations, taps, (0, 0, 0, 0))
