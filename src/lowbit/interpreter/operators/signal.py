"""Signals: Fourier transforms, windows, mel weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.dtypes import to_dtype
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


def _complex(x: Tensor) -> Tensor:
    """Return `[..., 1]` reals or `[..., 2]` pairs as complex numbers `[...]`, in double precision.

    Where terms cancel, the error of single precision is larger than what is left.
    """
    if x.shape[-1] == 1:
        return x[..., 0].to(torch.complex128)
    return torch.view_as_complex(x.to(torch.float64).contiguous())


@operator("DFT")
def fourier(call: Call, x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
    """Transform along an axis: `[..., 1 or 2]` to `[..., 2]`, or, back from one side, to `[..., 1]`."""
    default = 1 if call.version < 20 else -2
    along = (int(axis) if axis is not None else call.get("axis", default)) % x.ndim
    count = None if length is None else int(length)
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    if inverse and onesided:
        return torch.fft.irfft(_complex(x), n=count, dim=along)[..., None].to(x.dtype)
    values = (torch.fft.ifft if inverse else torch.fft.fft)(_complex(x), n=count, dim=along)
    if onesided:
        values = values.narrow(along, 0, values.shape[along] // 2 + 1)
    return torch.view_as_real(values).to(x.dtype)


@operator("STFT")
def short_time_fourier(
    call: Call, signal: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None
) -> Tensor:
    """Transform windows of a signal: `[batch, samples, 1 or 2]` to `[batch, frames, bins, 2]`."""
    size = int(length) if length is not None else window.shape[0]  # type: ignore[union-attr]
    frames = _complex(signal).unfold(1, size, int(step))
    if window is not None:
        frames = frames * window
    values = torch.fft.fft(frames, dim=-1)
    if call.get("onesided", 1):
        values = values[..., : size // 2 + 1]
    return torch.view_as_real(values).to(signal.dtype)


_COSINES = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}


@operator(*_COSINES)
def window(call: Call, size: Tensor) -> Tensor:
    """Return a window of cosines; periodic by default, else symmetric."""
    count = int(size)
    span = count if call.get("periodic", 1) else count - 1
    angle = torch.arange(count, dtype=torch.float64, device=size.device) * (2 * math.pi / span)
    level, first, second = _COSINES[call.op_type]
    values = level - first * torch.cos(angle) + second * torch.cos(2 * angle)
    return values.to(to_dtype(call.get("output_datatype", 1)))


@operator("MelWeightMatrix")
def mel_weights(call: Call, bins: Tensor, length: Tensor, rate: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return the triangles that take a spectrum to the mel scale: `[length // 2 + 1, bins]`."""
    count, size = int(bins), int(length)

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1 + hertz / 700)

    low, high = mel(float(lower)), mel(float(upper))
    marks = torch.arange(count + 2, dtype=torch.float64, device=bins.device) * ((high - low) / (count + 2)) + low
    hertz = 700 * (10 ** (marks / 2595) - 1)
    edges = torch.floor((size + 1) * hertz / int(rate)).to(torch.int64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    row = torch.arange(size // 2 + 1, device=bins.device)[:, None]
    rising = torch.where(centre == left, (row == centre).to(torch.float64), (row - left) / (centre - left).clamp(min=1))
    falling = (right - row) / (right - centre).clamp(min=1)
    weights = torch.where((row >= left) & (row <= centre), rising, 0.0)
    weights = torch.where((row > centre) & (row < right), falling, weights)
    return weights.to(to_dtype(call.get("output_datatype", 1)))
