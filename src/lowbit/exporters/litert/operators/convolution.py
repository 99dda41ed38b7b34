"""Convolutions: CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV, with int32 biases and fused activation functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.exporters.litert.constants import plain_constant, stored_codes
from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.operators.attributes import attribute, constant_input
from lowbit.exporters.litert.operators.fusing import fused, written
from lowbit.exporters.litert.operators.windows import SAME, VALID, Window, fitted
from lowbit.exporters.litert.placement import NHWC, Placed
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.exporters.litert.constants import Codes
    from lowbit.exporters.litert.lowering import Lowering
    from lowbit.exporters.litert.tensors import Grid, Tensor

__all__ = ["RULES", "bias_tensor", "padding_pairs", "signed_weight"]

_CHANNELS_LAST = {3: (0, 2, 1), 4: NHWC}
_BIAS_LIMIT = 2**31 - 1
_LARGEST_CODE = 127


def signed_weight(value: ir.Value | None) -> Codes:
    """Return a weight as int8 codes with zero point 0.

    Raises:
        Refusal: It is float, computed, asymmetric, or wider than 8 bits.
    """
    found = stored_codes(value)
    if found is None:
        if plain_constant(value) is not None:
            raise Refusal("its weight is float: no codes are stored for it")
        raise Refusal("its weight is computed while the model runs")
    codes = found.codes - (found.zero_point.reshape(-1)[0] if found.zero_point.size else 0)
    if np.unique(found.zero_point).size > 1 or codes.min() < -128 or codes.max() > 127:
        raise Refusal("its weight is asymmetric or wider than int8, LiteRT's weights are int8 with zero point 0")
    return type(found)(codes, found.scale, np.zeros_like(found.zero_point), found.axis)


def bias_tensor(
    low: Lowering, value: ir.Value | None, channels: int, input_grid: Grid, weight_scale: NDArray[np.float32]
) -> Tensor:
    """Return a bias as int32 on the accumulator's scale, input times weight; zeros where there is none.

    Raises:
        Refusal: It is computed while the model runs.
    """
    # As the engines multiply: both scales as float32, the product in double.
    exact = np.float64(np.float32(input_grid.scale)) * weight_scale.astype(np.float64).reshape(-1)
    codes = np.zeros(channels, dtype=np.int32)
    if value is not None:
        stored = stored_codes(value)
        real = stored.real() if stored is not None else plain_constant(value)
        if real is None:
            raise Refusal("its bias is computed while the model runs")
        scaled = np.rint(np.broadcast_to(np.asarray(real, dtype=np.float64).reshape(-1), (channels,)) / exact)
        codes = np.clip(scaled, -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32)
    return low.constant("bias", codes, scale=exact.astype(np.float32))


def padding_pairs(node: ir.Node, sizes: list[int], kernel: list[int]) -> list[tuple[int, int]]:
    """Return the padding of a window node as ONNX says it, low and high of every spatial axis."""
    rank = len(sizes)
    automatic = attribute(node, "auto_pad", "NOTSET")
    if automatic in {"SAME_UPPER", "SAME_LOWER"}:
        strides = attribute(node, "strides", [1] * rank)
        dilations = attribute(node, "dilations", [1] * rank)
        pairs = []
        for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
            small, large = total // 2, total - total // 2
            pairs.append((small, large) if automatic == "SAME_UPPER" else (large, small))
        return pairs
    flat = attribute(node, "pads", [0] * 2 * rank) if automatic == "NOTSET" else [0] * 2 * rank
    return list(zip(flat[:rank], flat[rank:], strict=True))


def _convolution(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0], padded=True)
    weight = signed_weight(node.inputs[1])
    rank = len(placed.order)
    if rank not in _CHANNELS_LAST:
        raise Refusal(f"LiteRT has integer convolutions of one and two axes, this has {rank - 2}")
    if placed.pads is not None and any(pair != (0, 0) for pair in placed.pads[:2]):
        placed = low.placed(node.inputs[0])
    assert placed.grid is not None
    sizes, kernel = list(placed.stored[2:]), list(weight.codes.shape[2:])
    before = [(0, 0)] * rank if placed.pads is None else list(placed.pads)
    padded = [size + sum(pair) for size, pair in zip(sizes, before[2:], strict=True)]
    lows = [pair[0] + own[0] for pair, own in zip(before[2:], padding_pairs(node, padded, kernel), strict=True)]
    strides = attribute(node, "strides", [1] * (rank - 2))
    dilations = attribute(node, "dilations", [1] * (rank - 2))
    outs = list(static_shape(node.outputs[0])[2:])
    windows = tuple(
        Window(size=size, kernel=taps, stride=stride, dilation=dilation, low=first, out=out)
        for size, taps, stride, dilation, first, out in zip(sizes, kernel, strides, dilations, lows, outs, strict=True)
    )
    padding, pads = fitted(windows)
    bare = Placed(tensor=placed.tensor, order=placed.order, grid=placed.grid)
    order = _CHANNELS_LAST[rank]
    x = low.ordered(bare, order)
    if padding == VALID and any(pair != (0, 0) for pair in pads):
        x = low.pad(Placed(tensor=x, order=order, grid=placed.grid), [(0, 0), (0, 0), *pads], None).tensor
    one_axis = rank == len(_CHANNELS_LAST) + 1
    codes = weight.codes.astype(np.int8)
    if one_axis:
        # A row of pixels: one tap and one position in the other axis.
        x = low.reshape(x, (x.shape[0], 1, *x.shape[1:]), placed.grid)
        codes, outs, strides, dilations = codes[:, :, None], [1, *outs], [1, *strides], [1, *dilations]
    channels, groups = codes.shape[0], int(attribute(node, "group", 1))
    depthwise = groups > 1 and groups == x.shape[3]
    if not depthwise and groups > 1 and x.shape[3] % groups:
        raise Refusal(f"its {x.shape[3]} channels are no multiple of its {groups} groups")
    arranged = codes.transpose(1, 2, 3, 0) if depthwise else codes.transpose(0, 2, 3, 1)
    scale = weight.scale.reshape(-1)
    w = low.constant(
        node.inputs[1].name or "weight",  # type: ignore[union-attr]
        arranged,
        scale=np.broadcast_to(scale, (channels,)).astype(np.float32),
        axis=3 if depthwise else 0,
    )
    bias = bias_tensor(
        low,
        node.inputs[2] if len(node.inputs) > 2 else None,
        channels,
        placed.grid,
        np.broadcast_to(scale, (channels,)),
    )
    end, grid, bounds = low.result_grid(node.outputs[0])
    activation, rest = fused(grid, bounds)
    options = {
        "padding": padding,
        "strideH": int(strides[0]),
        "strideW": int(strides[1]),
        "dilationHFactor": int(dilations[0]),
        "dilationWFactor": int(dilations[1]),
        "fusedActivationFunction": activation,
    }
    if depthwise:
        options["depthMultiplier"] = channels // groups
    y = low.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [x, w, bias],
        (x.shape[0], *outs, channels),
        grid=grid,
        options=options,
        name=written(end),
    )
    if one_axis:
        y = low.reshape(y, (y.shape[0], *y.shape[2:]), grid)
    low.put(end, low.clamp(y, grid, rest), order, grid)


def _transposed(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    weight = signed_weight(node.inputs[1])
    if len(placed.order) != len(NHWC):
        raise Refusal("LiteRT has transposed convolutions of two axes only")
    if attribute(node, "group", 1) != 1 or any(value != 1 for value in attribute(node, "dilations", [1])):
        raise Refusal("LiteRT has no transposed convolution with groups or dilations")
    if weight.scale.size > 1 and weight.axis != 1:
        raise Refusal("its weight has one scale for every input channel, LiteRT has one for every output channel")
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        raise Refusal("its padding is automatic")
    assert placed.grid is not None
    kernel, strides = list(weight.codes.shape[2:]), attribute(node, "strides", [1, 1])
    flat = attribute(node, "pads", [0, 0, 0, 0])
    sizes, outs = placed.stored[2:], static_shape(node.outputs[0])[2:]
    full = [(size - 1) * stride + taps for size, stride, taps in zip(sizes, strides, kernel, strict=True)]
    same = all(
        out == size * stride and first == max((size - 1) * stride + taps - out, 0) // 2
        for out, size, stride, taps, first in zip(outs, sizes, strides, kernel, flat[:2], strict=True)
    )
    if not same and any(out + first > most for out, first, most in zip(outs, flat[:2], full, strict=True)):
        raise Refusal("its output reaches beyond what its window covers")
    channels = weight.codes.shape[1]
    scale = np.broadcast_to(weight.scale.reshape(-1), (channels,)).astype(np.float32)
    w = low.constant(
        node.inputs[1].name or "weight",  # type: ignore[union-attr]
        weight.codes.transpose(1, 2, 3, 0).astype(np.int8),
        scale=scale,
    )
    bias = bias_tensor(low, node.inputs[2] if len(node.inputs) > 2 else None, channels, placed.grid, scale)
    end, grid, bounds = low.result_grid(node.outputs[0])
    x = low.ordered(placed, NHWC)
    shape = (x.shape[0], *(outs if same else full), channels)
    options = {"padding": SAME if same else VALID, "strideH": int(strides[0]), "strideW": int(strides[1])}
    y = low.emit("TRANSPOSE_CONV", [low.integers("shape", shape), w, x, bias], shape, grid=grid, options=options)
    if y.shape[1:3] != tuple(outs):
        begin = [0, *flat[:2], 0]
        size = [x.shape[0], *outs, channels]
        y = low.emit("SLICE", [y, low.integers("begin", begin), low.integers("size", size)], size, grid=grid)
    low.put(end, low.clamp(y, grid, bounds), NHWC, grid)


def _affine(low: Lowering, node: ir.Node) -> None:
    """Write a BatchNormalization that could not be folded as a depthwise convolution of one tap: exact factors."""
    scale, offset, mean, variance = (np.asarray(constant_input(node, index), np.float64) for index in (1, 2, 3, 4))
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    shift = offset - mean * factor
    placed = low.placed(node.inputs[0])
    assert placed.grid is not None
    rank = len(placed.order)
    order = (0, *range(2, rank), 1)
    x = low.ordered(placed, order)
    channels = len(factor)
    pixels = int(np.prod(x.shape[1:-1]))
    picture = x.shape if rank == len(NHWC) else (x.shape[0], 1, pixels, channels)
    codes = (np.sign(factor) * _LARGEST_CODE).astype(np.int8).reshape(1, 1, 1, channels)
    own = np.where(factor == 0, 1.0, np.abs(factor) / _LARGEST_CODE).astype(np.float32)
    exact = np.float64(np.float32(placed.grid.scale)) * own.astype(np.float64)
    bias_codes = np.clip(np.rint(shift / exact), -_BIAS_LIMIT, _BIAS_LIMIT).astype(np.int32)
    end, grid, bounds = low.result_grid(node.outputs[0])
    activation, rest = fused(grid, bounds)
    y = low.emit(
        "DEPTHWISE_CONV_2D",
        [
            low.reshape(x, picture, placed.grid),
            low.constant("factors", codes, scale=own, axis=3),
            low.constant("shifts", bias_codes, scale=exact.astype(np.float32)),
        ],
        picture,
        grid=grid,
        options={
            "padding": VALID,
            "strideH": 1,
            "strideW": 1,
            "dilationHFactor": 1,
            "dilationWFactor": 1,
            "depthMultiplier": 1,
            "fusedActivationFunction": activation,
        },
        name=written(end),
    )
    low.put(end, low.reshape(low.clamp(y, grid, rest), x.shape, grid), order, grid)


RULES = {"BatchNormalization": _affine, "Conv": _convolution, "ConvTranspose": _transposed}
