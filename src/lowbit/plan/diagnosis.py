"""What a diagnosis says of a quantized model: causes, layers and remedies, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Cause", "CauseKind", "DiagnosedLayer", "Remedy", "Trial"]

CauseKind = Literal[
    "clipped range",
    "coarse weights",
    "constant channels",
    "constant input",
    "dead channels",
    "LayerNorm outliers",
    "long tail",
    "outlier channel",
    "outlier weights",
    "preprocessing suspected",
    "saturation",
    "shared range",
    "Softmax mask",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why a layer is worse than its number format would have it.

    Attributes:
        kind: What it is.
        node: Name of the operator that suffers from it, in the cleaned model.
        tensor: Name of the tensor in which it was seen.
        evidence: The numbers that it was told by, each with its name.
        text: The same as a sentence.
        remedy: What may be done about it, in words.
    """

    kind: CauseKind
    node: str
    tensor: str
    evidence: Mapping[str, float]
    text: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosedLayer:
    """One quantized operator.

    Attributes:
        node: Name of the operator in the cleaned model.
        op_type: ONNX operator.
        execution: How it runs: `static`, `dynamic` or `weight-only`.
        sqnr_db: SQNR of its output against float, of everything up to and including it, in decibel; `None` where the
            artifact does not have the tensor.
        noise: Noise power at the model's output that it adds alone, relative to the power of the output.
        share: Its fraction, 0 to 1, of the sum of these powers over all operators.
        weights_share: Which fraction of its own noise its weights alone make; `None` if it was not measured.
        causes: What is wrong with it, as far as it can be told.
    """

    node: str
    op_type: str
    execution: str
    sqnr_db: float | None
    noise: float
    share: float
    weights_share: float | None = None
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change of the recipe that may help.

    Attributes:
        name: What it does, in the words of the recipe, e.g. `rounding gptq`.
        changes: The recipe's fields that it sets; `exclude` and `rules` are added to those that are there.
        promise: What it is expected to take away, as a fraction of all noise; remedies are tried by it.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    promise: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One remedy that was tried.

    Attributes:
        remedy: Its name.
        before_db: Output SQNR on held-out calibration samples before it, in decibel.
        after_db: The same with it; `None` if it could not be built.
        kept: Whether it stays.
        seconds: How long trying it took.
        integers: How many operators computed in integers, before and with it.
        refusal: Why it could not be built, in words.
    """

    remedy: str
    before_db: float
    after_db: float | None
    kept: bool
    seconds: float
    integers: tuple[int, int] = (0, 0)
    refusal: str = ""
