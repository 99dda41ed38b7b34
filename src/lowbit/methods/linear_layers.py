"""Linear layers of a graph as their channels: what scales of the channels on either side do to weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.clean.values import constant, is_op, only_consumer, set_constant

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

__all__ = ["LinearLayer", "linear_layer"]


@dataclass(slots=True, kw_only=True, eq=False)
class LinearLayer:
    """A Conv, Gemm or MatMul whose weight nobody else reads.

    Attributes:
        name: Name of the node.
        node: The node.
        output: What leaves the layer: behind the Add of a MatMul's bias, if there is one.
        group: Groups of a convolution; 1 for all others.
        transposed: Whether the weight is `[out, in, …]`.
        weight: float64, in its own shape; becomes the model's by `store`.
        bias: `[C]` float64, `None` if there is none.
        bias_value: Where the bias stands.
    """

    name: str
    node: ir.Node
    output: ir.Value
    group: int
    transposed: bool
    weight: NDArray[np.float64]
    bias: NDArray[np.float64] | None
    bias_value: ir.Value | None

    @property
    def channels(self) -> int:
        """How many output channels there are."""
        return int(self.weight.shape[0 if self.transposed else -1])

    @property
    def inputs(self) -> int:
        """How many input channels there are."""
        return int(self.weight.shape[1] * self.group if self.transposed else self.weight.shape[0])

    def bias_copy(self) -> NDArray[np.float64] | None:
        """Return the bias as an array of its own."""
        return None if self.bias is None else self.bias.copy()

    def output_ranges(self) -> NDArray[np.float64]:
        """Return the largest magnitude of the weights of each output channel, `[C]`."""
        found: NDArray[np.float64] = np.abs(self._outputs()).max(axis=1, initial=0.0)
        return found

    def input_ranges(self) -> NDArray[np.float64]:
        """Return the largest magnitude of the weights of each input channel, `[C]`."""
        found: NDArray[np.float64] = np.abs(self._inputs()).max(axis=1, initial=0.0)
        return found

    def output_norms(self) -> NDArray[np.float64]:
        """Return the norm of the weights of each output channel, `[C]`."""
        found: NDArray[np.float64] = np.linalg.norm(self._outputs(), axis=1)
        return found

    def input_norms(self) -> NDArray[np.float64]:
        """Return the norm of the weights of each input channel, `[C]`."""
        found: NDArray[np.float64] = np.linalg.norm(self._inputs(), axis=1)
        return found

    def divide_outputs(self, scales: NDArray[np.float64]) -> None:
        """Divide every output channel by its scale, `[C]`."""
        shaped = scales.reshape(-1, *(1,) * (self.weight.ndim - 1)) if self.transposed else scales
        self.weight = self.weight / shaped
        if self.bias is not None:
            self.bias = self.bias / scales

    def multiply_inputs(self, scales: NDArray[np.float64]) -> None:
        """Multiply the weights of every input channel by its scale, `[C]`."""
        if not self.transposed:
            self.weight = self.weight * scales[:, None]
            return
        split = self._by_group()
        factors = scales.reshape(self.group, 1, -1, *(1,) * (self.weight.ndim - 2))
        self.weight = (split * factors).reshape(self.weight.shape)

    def response(self, constants: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what every output gains where each input channel is larger by a constant, `[C_in]` to `[C_out]`.

        At the borders of what a convolution pads with zeros, less is gained.
        """
        summed = self._by_group().reshape(self.group, self.channels // self.group, self.inputs // self.group, -1)
        found: NDArray[np.float64] = np.einsum("goik,gi->go", summed, constants.reshape(self.group, -1)).reshape(-1)
        return found

    def store(self) -> None:
        """Write weight and bias into the model, as float32."""
        value = self.node.inputs[1]
        assert value is not None
        set_constant(value, self.weight.astype(np.float32))
        if self.bias is not None and self.bias_value is not None:
            shape = self.bias_value.const_value.shape.numpy()  # type: ignore[union-attr]
            set_constant(self.bias_value, self.bias.astype(np.float32).reshape(shape))

    def _outputs(self) -> NDArray[np.float64]:
        """Return the weights of each output channel, `[C, …]` as a matrix."""
        weight = self._by_output()
        return weight.reshape(len(weight), -1)

    def _inputs(self) -> NDArray[np.float64]:
        """Return the weights that read each input channel, `[C, …]` as a matrix."""
        split = np.moveaxis(self._by_group(), 2, 1)
        return split.reshape(self.inputs, -1)

    def _by_output(self) -> NDArray[np.float64]:
        return self.weight if self.transposed else self.weight.T

    def _by_group(self) -> NDArray[np.float64]:
        """Return the weight as `[G, out / G, in / G, …]`."""
        weight = self._by_output()
        return weight.reshape(self.group, -1, *weight.shape[1:])


def linear_layer(node: ir.Node) -> LinearLayer | str:
    """Return a node as a layer, or why it is none whose channels can be scaled.

    Args:
        node: A Conv, Gemm or MatMul.
    """
    value = node.inputs[1]
    weight = constant(value)
    if value is None or weight is None or weight.dtype != np.float32:
        return "its weight is not a float32 constant"
    if only_consumer(value) is not node:
        return "its weight is shared"
    if value.graph is not node.graph:
        return "its weight belongs to an outer graph"
    transposed, group = node.op_type == "Conv", 1
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    output = node.outputs[0]
    if is_op(node, "Conv"):
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    elif weight.ndim != 2:
        return "its weight is a batch of matrices"
    if is_op(node, "Gemm"):
        transposed = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            return "it reads its input transposed"
    channels = weight.shape[0 if transposed else -1]
    if is_op(node, "MatMul"):
        added = _bias_add(node, channels)
        if added is not None:
            bias_value, output = added
    bias = None
    if bias_value is not None:
        array = constant(bias_value)
        if array is None or array.size != channels or array.dtype != np.float32 or array.shape[-1:] != (channels,):
            return "its bias is not a constant of one number per channel"
        if len(tuple(bias_value.uses())) != 1:
            return "its bias is shared"
        bias = array.reshape(-1).astype(np.float64)
    return LinearLayer(
        name=node.name or "",
        node=node,
        output=output,
        group=group,
        transposed=transposed,
        weight=weight.astype(np.float64),
        bias=bias,
        bias_value=bias_value,
    )


def _bias_add(node: ir.Node, channels: int) -> tuple[ir.Value, ir.Value] | None:
    """Return the constant that is added to a MatMul's output alone, one number per channel, and the sum."""
    consumer = only_consumer(node.outputs[0])
    if not is_op(consumer, "Add"):
        return None
    assert consumer is not None
    for value in consumer.inputs:
        array = constant(value)
        if value is not None and array is not None and array.size == channels and array.shape[-1:] == (channels,):
            return value, consumer.outputs[0]
    return None
