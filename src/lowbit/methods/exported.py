"""What exporting a model gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Agreement", "Exported"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How an exported file's outputs differ from those of the ONNX artifact, in quantization steps.

    Attributes:
        engine: Engine and kernels, e.g. `ai-edge-litert 2.3.0, xnnpack`.
        samples: Samples that both ran.
        largest: The largest difference.
        within_one: The fraction of the numbers that differ by at most one step.
        same_top1: The fraction of the samples with the same largest number, over the first output; `None` where that
            output is no `[1, classes]`.
        sqnr_db: Signal-to-noise ratio of the outputs against those of the artifact, in decibel.
    """

    engine: str
    samples: int
    largest: float
    within_one: float
    same_top1: float | None
    sqnr_db: float

    def __str__(self) -> str:
        """Return it as one sentence."""
        text = (
            f"{self.engine}: {100 * self.within_one:.2f} % of the outputs within one step of the ONNX artifact, "
            f"at most {self.largest:.3g}, {self.sqnr_db:.1f} dB"
        )
        return text if self.same_top1 is None else f"{text}; same top-1 on {100 * self.same_top1:.1f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file for another runtime, with what was checked.

    Attributes:
        path: The file; `None` if none was asked for.
        format: Name of the format.
        contents: The file's bytes.
        model: What the engine loads of it: the LiteRT model in a C array, otherwise the file itself.
        kernels: How often every kernel occurs, or every operator where the format knows no kernels.
        float_kernels: Kernels that compute in float; `None` where the format knows no kernels.
        interface: One line for every input and output: name, type, shape, and what else is known of it.
        agreements: One for every engine that ran it.
        arena: Bytes of tensor arena on a microcontroller, as `tflite-micro` counts on this machine; `None` without it.
        notes: What the user should know.
        beside: The bytes of the second file, which belongs to the first; `None` where there is one file.
    """

    path: Path | None
    format: str
    contents: bytes
    model: bytes
    kernels: Mapping[str, int]
    float_kernels: int | None
    interface: tuple[str, ...]
    agreements: tuple[Agreement, ...]
    arena: int | None
    notes: tuple[str, ...] = ()
    beside: bytes | None = None

    def __str__(self) -> str:
        """Return what was written and checked, as lines."""
        count = sum(self.kernels.values())
        listed = ", ".join(f"{number} {kind}" for kind, number in sorted(self.kernels.items()))
        size = f"{len(self.contents):,} bytes"
        if self.beside is not None:
            size += f", and {len(self.beside):,} bytes beside it"
        counted = (
            f"{count} operators" if self.float_kernels is None else f"{count} kernels, {self.float_kernels} in float"
        )
        lines = [
            f"{self.path or 'model'}: {self.format}, {size}",
            f"{counted}: {listed}",
            *self.interface,
            *(str(agreement) for agreement in self.agreements),
        ]
        if self.arena is not None:
            lines.append(f"tensor arena: {self.arena:,} bytes (tflite-micro, 64-bit)")
        return "\n".join([*lines, *self.notes])
