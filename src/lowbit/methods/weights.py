"""Turning one site's weight into codes that are right for its kernel."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import RecipeError
from lowbit.formats import Format, Parameters, PerBlock, PerChannel, PerTensor, choose_parameters, dequantize, quantize
from lowbit.plan.packed import unpack_steps
from lowbit.rounding import (
    RangeMethod,
    SaturationReport,
    conv_to_kn,
    fitted_parameters,
    hazards,
    kn_to_conv,
    make_safe,
    weight_range,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.methods.kept_beside import KeptBeside
    from lowbit.plan.sites import Site

__all__ = [
    "EncodedWeight",
    "corrected_bias",
    "encode_matrix",
    "encode_weight",
    "kernel_matrix",
    "plain_codes",
    "rerounded",
]

# The accumulator and the bias are int32; a quarter of that range is left to the products.
_BIAS_LIMIT = 2.0**29
# How often the scale of a whole tensor may grow before every channel gets its own.
_ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EncodedWeight:
    """A weight as codes.

    Attributes:
        codes: Codes in the shape of the site's weight.
        parameters: Scale and zero point, shaped as the format's granularity says.
        fmt: The format, with the granularity that was really used.
        notes: What the user should know, in words.
        saturation: What could have saturated and was repaired; `None` where nothing had to be looked at.
        beside: What is kept beside the codes; `None` if nothing is.
    """

    codes: NDArray[Any]
    parameters: Parameters
    fmt: Format
    notes: tuple[str, ...] = ()
    saturation: SaturationReport | None = None
    beside: KeptBeside | None = None

    def decode(self) -> NDArray[np.float32]:
        """Return the weight that the codes, and what is kept beside them, stand for."""
        decoded = dequantize(self.codes, self.parameters, self.fmt)
        return decoded if self.beside is None else self.beside.completed(decoded)


def encode_weight(
    site: Site,
    fmt: Format,
    *,
    saturates: bool,
    input_scale: float | None = None,
    method: RangeMethod = "minmax",
    by_tap: bool = False,
    scale: NDArray[np.float32] | None = None,
    weight: NDArray[np.float32] | None = None,
    parameters: Parameters | None = None,
) -> EncodedWeight:
    """Encode the weight of a Conv, MatMul or Gemm.

    Args:
        site: The site.
        fmt: Weight format; `PerChannel` and `PerBlock` mean the site's own output channels and summed axis.
        saturates: Whether the kernel that will run this adds pairs of products in a saturating 16-bit lane.
        input_scale: Scale of the input's codes, so that the bias fits into int32 at `s_x · s_w`; `None` if there is
            no integer bias.
        method: How the weights' ranges are chosen.
        by_tap: Whether a convolution's kernel starts a new pair at every kernel position; see `lowbit.targets.Target`.
        scale: Scales of a symmetric format, in place of those that follow from the range; any shape of their number.
        weight: What to encode, if it is not the site's own weight.
        parameters: Scale and levels, if they do not follow from the weight.

    Raises:
        RecipeError: The scales are not as many as the format has.
    """
    weight = site.weight_array() if weight is None else weight
    axis = channel_axis(site)
    fmt, notes = _placed(fmt, weight.shape, axis)
    if scale is not None:
        parameters = _given_parameters(scale, fmt, weight.shape, site.path)
    parameters = parameters or fitted_parameters(weight, fmt, method)
    if input_scale is not None and site.bias is not None:
        parameters, note = _room_for_bias(parameters, site, input_scale, fmt)
        notes += note
    if saturates and _paired(site) and fmt.element.name == "int8" and fmt.symmetric:
        if by_tap and weight.ndim > _MATRIX and weight.shape[1] % 2:
            return _without_last(_safe(_with_one_more(weight), parameters, fmt, axis, notes))
        return _safe(weight, parameters, fmt, axis, notes)
    return EncodedWeight(codes=quantize(weight, parameters, fmt), parameters=parameters, fmt=fmt, notes=notes)


def encode_matrix(
    weight: NDArray[np.float32], fmt: Format, *, saturates: bool, method: RangeMethod = "minmax"
) -> EncodedWeight:
    """Encode a matrix `[K, N]` per column or per tensor, as an LSTM's weights of one direction.

    Args:
        weight: `[K, N]` float32, rows in the order that the kernel reads.
        fmt: Symmetric format; `PerChannel` means columns.
        saturates: Whether the kernel saturates in pairs.
        method: How the ranges are chosen.
    """
    if isinstance(fmt.granularity, PerChannel):
        fmt = Format(fmt.element, PerChannel(1), fmt.symmetric, fmt.narrow)
    low, high = weight_range(weight, fmt, method)
    parameters = choose_parameters(low, high, fmt)
    if saturates and fmt.element.name == "int8":
        return _safe(weight, parameters, fmt, 1, ())
    return EncodedWeight(codes=quantize(weight, parameters, fmt), parameters=parameters, fmt=fmt)


def channel_axis(site: Site) -> int:
    """Return which axis of the site's weight holds the output channels."""
    if site.op_type == "Conv":
        return 0
    if site.op_type == "ConvTranspose":
        return 1
    if site.op_type == "Gather":
        return 0
    if site.op_type == "Gemm" and site.attribute("transB", 0):
        return 0
    return site.weight_array().ndim - 1


def kernel_matrix(site: Site, array: NDArray[Any]) -> NDArray[Any]:
    """Return a weight of a Conv, MatMul or Gemm as `[K, N]`, in the order that the kernel sums."""
    if site.op_type == "Conv":
        return np.ascontiguousarray(conv_to_kn(array))
    return np.ascontiguousarray(array.T if channel_axis(site) == 0 else array)


def from_kernel_matrix(site: Site, matrix: NDArray[Any]) -> NDArray[Any]:
    """Return what `kernel_matrix` was given."""
    if site.op_type == "Conv":
        return kn_to_conv(matrix, site.weight_array().shape)
    return np.ascontiguousarray(matrix.T if channel_axis(site) == 0 else matrix)


def rerounded(site: Site, encoded: EncodedWeight, rounding: str | None) -> EncodedWeight:
    """Return a weight whose codes differ from rounding to nearest by the steps that a plan holds.

    Steps that belong to other codes, because a scale has changed since, are left out, with a note.

    Args:
        site: The site.
        encoded: Its weight, rounded to nearest.
        rounding: `SitePlan.rounding`.

    Raises:
        RecipeError: The steps cannot be read, or lead to codes that the kernel does not take.
    """
    if rounding is None:
        return encoded
    codes = plain_codes(site, encoded)
    steps = unpack_steps(rounding, codes) if codes is not None else None
    if codes is not None and steps is None:
        steps = _steps_without_padding(site, codes, rounding)
    if codes is None or steps is None:
        return dataclasses.replace(
            encoded, notes=(*encoded.notes, "rounded to nearest: the plan's rounding does not fit")
        )
    moved = codes.astype(np.int16) + steps
    levels = encoded.fmt.element.levels
    lowest, highest = (0, len(levels) - 1) if levels else encoded.fmt.code_range()
    unsafe = moved.min(initial=0) < lowest or moved.max(initial=0) > highest
    result = moved.astype(codes.dtype)
    if unsafe or (encoded.saturation is not None and hazards(result).any()):
        raise RecipeError(
            f"the plan's rounding of {site.path!r} leads to codes that the kernel does not take",
            remedy="make the plan again with --save-plan",
        )
    restored = from_kernel_matrix(site, result).astype(encoded.codes.dtype)
    return dataclasses.replace(encoded, codes=restored)


def _steps_without_padding(site: Site, codes: NDArray[Any], rounding: str) -> NDArray[np.int8] | None:
    """Return steps that were found before channels of zeros were added to the input of a first layer."""
    if site.op_type != "Conv" or site.attribute("group", 1) != 1:
        return None
    kernel = from_kernel_matrix(site, codes)
    channels = kernel.shape[1]
    while channels > 1 and not kernel[:, channels - 1].any():
        channels -= 1
        base = np.ascontiguousarray(conv_to_kn(kernel[:, :channels]))
        steps = unpack_steps(rounding, base)
        if steps is not None:
            whole = np.zeros(kernel.shape, dtype=np.int8)
            whole[:, :channels] = kn_to_conv(steps, (len(kernel), channels, *kernel.shape[2:]))
            return kernel_matrix(site, whole)
    return None


def plain_codes(site: Site, encoded: EncodedWeight) -> NDArray[Any] | None:
    """Return a weight's codes or indices of levels as `[K, N]` int8 or uint8, in the kernel's order, else `None`.

    Codes of fewer than 8 bits have types of their own, in which nothing can be computed.
    """
    element = encoded.fmt.element
    if element.kind not in {"integer", "codebook"} or element.bits > _BYTE:
        return None
    plain = encoded.codes if element.bits == _BYTE else encoded.codes.astype(np.int8)
    return kernel_matrix(site, plain)


def corrected_bias(
    site: Site, encoded: EncodedWeight, input_mean: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """Return the bias that keeps the mean of every output channel where it was before the weights were rounded.

    `b' = b - Σ_k (Ŵ - W)_k · E[x_k]`, the mean of the rounding error (Nagel et al., Data-Free Quantization Through
    Weight Equalization and Bias Correction, 2019, section 4.2), with the means measured in calibration.

    Args:
        site: A Conv, MatMul or Gemm.
        encoded: Its weight as codes.
        input_mean: `[C]` float32, mean of each input channel; `None` leaves the bias as it is.

    Returns:
        `[N]` float32, or `None` if there is neither a bias nor a correction.
    """
    axis = channel_axis(site)
    channels = encoded.codes.shape[axis]
    bias = None
    if site.bias is not None:
        assert site.bias.const_value is not None
        bias = np.asarray(site.bias.const_value.numpy(), dtype=np.float32).reshape(channels)
    if input_mean is None:
        return bias
    error = encoded.decode().astype(np.float64) - site.weight_array()
    if site.op_type == "Conv":
        group = site.attribute("group", 1)
        per_input = error.reshape(channels, error.shape[1], -1).sum(axis=2)
        means = input_mean.astype(np.float64).reshape(group, -1)
        shift = np.einsum("goc,gc->go", per_input.reshape(group, channels // group, -1), means).reshape(-1)
    elif axis == 0:
        shift = error @ input_mean.astype(np.float64)
    else:
        shift = input_mean.astype(np.float64) @ error
    start = np.zeros(channels) if bias is None else bias.astype(np.float64)
    return np.asarray(start - shift, dtype=np.float32)


def _placed(fmt: Format, shape: tuple[int, ...], axis: int) -> tuple[Format, tuple[str, ...]]:
    """Return the format with its granularity on the axes of this weight."""
    match fmt.granularity:
        case PerTensor():
            return fmt, ()
        case PerBlock(size=size):
            summed = 1 if axis == 0 else 0
            if len(shape) == 2 and shape[summed] % size == 0:
                return Format(fmt.element, PerBlock(summed, size), fmt.symmetric, fmt.narrow), ()
            note = f"per channel instead of blocks of {size}: the summed axis of {list(shape)} does not divide"
            return Format(fmt.element, PerChannel(axis), fmt.symmetric, fmt.narrow), (note,)
    return Format(fmt.element, PerChannel(axis), fmt.symmetric, fmt.narrow), ()


def _given_parameters(scale: NDArray[np.float32], fmt: Format, shape: tuple[int, ...], path: str) -> Parameters:
    wanted = fmt.granularity.scale_shape(shape)
    if scale.size != math.prod(wanted) or not (np.isfinite(scale) & (scale > 0)).all():
        raise RecipeError(
            f"the plan has {scale.size} weight scales for {path!r}",
            cause=f"{fmt} takes {math.prod(wanted)} positive numbers there",
            remedy="make the plan again with --save-plan",
        )
    found = scale.reshape(wanted).astype(np.float32)
    return Parameters(found, np.zeros(wanted, dtype=fmt.element.dtype))


def _paired(site: Site) -> bool:
    """Whether the site's kernel is a matrix product; depthwise kernels multiply without pairing.

    The engine has a depthwise kernel for one output channel a group only: with more of them (a channel multiplier) it
    runs one matrix product a group, whose pairs are neighbouring taps.
    """
    if site.op_type != "Conv":
        return True
    group = site.attribute("group", 1)
    return not (group > 1 and site.weight_array().shape[:2] == (group, 1))


_BYTE = 8
# Axes of a weight that is a matrix.
_MATRIX = 2


def _with_one_more(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a convolution's weight with one more input channel of zeros, the partner of an odd last one."""
    return np.pad(weight, [(0, 0), (0, 1), *[(0, 0)] * (weight.ndim - 2)])


def _without_last(encoded: EncodedWeight) -> EncodedWeight:
    return dataclasses.replace(encoded, codes=np.ascontiguousarray(encoded.codes[:, :-1]))


def _safe(
    weight: NDArray[np.float32], parameters: Parameters, fmt: Format, axis: int, notes: tuple[str, ...]
) -> EncodedWeight:
    """Round to codes of which no pair can saturate, whatever the activations are."""
    matrix = conv_to_kn(weight) if weight.ndim > 2 else weight.T if axis == 0 else weight
    matrix = np.ascontiguousarray(matrix)
    scale = np.broadcast_to(parameters.scale, (matrix.shape[1],)).astype(np.float32)
    codes, safe_scale, report = make_safe(matrix, scale, narrow=fmt.narrow)
    if isinstance(fmt.granularity, PerTensor):
        for _ in range(_ROUNDS):
            if (safe_scale == safe_scale[0]).all():
                break
            # One scale for all columns is the largest; with it another column may want a still larger one.
            codes, safe_scale, _ = make_safe(matrix, np.full_like(scale, safe_scale.max()), narrow=fmt.narrow)
        if (safe_scale != safe_scale[0]).any():
            fmt = Format(fmt.element, PerChannel(axis), fmt.symmetric, fmt.narrow)
            notes += (
                "per channel instead of per tensor: no single scale keeps every pair of products from saturating",
            )
    final = safe_scale if isinstance(fmt.granularity, PerChannel) else safe_scale[0].reshape(())
    restored = kn_to_conv(codes, weight.shape) if weight.ndim > 2 else (codes.T if axis == 0 else codes)
    if report.hazards:
        notes += (
            (
                f"{report.repaired} of {report.channels} channels changed so that no pair of products saturates "
                f"({report.hazards} of {report.pairs} pairs could)"
            ),
        )
    return EncodedWeight(
        codes=np.ascontiguousarray(restored),
        parameters=Parameters(np.asarray(final, dtype=np.float32), np.zeros(np.shape(final), dtype=fmt.element.dtype)),
        fmt=fmt,
        notes=notes,
        saturation=report,
    )


def _room_for_bias(
    parameters: Parameters, site: Site, input_scale: float, fmt: Format
) -> tuple[Parameters, tuple[str, ...]]:
    """Widen weight scales until the bias fits into int32 at the accumulator's scale."""
    assert site.bias is not None
    assert site.bias.const_value is not None
    bias = np.abs(np.asarray(site.bias.const_value.numpy(), dtype=np.float64).ravel())
    needed = bias / (input_scale * _BIAS_LIMIT)
    if parameters.scale.ndim == 0:
        needed = needed.max(initial=0.0)
    scale = np.maximum(parameters.scale, needed).astype(np.float32)
    widened = int((scale > parameters.scale).sum())
    if not widened:
        return parameters, ()
    del fmt
    note = f"{widened} channels have a bias so large that their weights got a coarser scale"
    return Parameters(scale, parameters.zero_point), (note,)
