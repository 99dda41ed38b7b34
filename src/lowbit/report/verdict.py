"""The verdict in plain words: how much smaller, how much faster, and at what quality."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lowbit.report.units import (
    bytes_text,
    count_text,
    decibel_text,
    interval_text,
    milliseconds_text,
    number_text,
    percent_text,
    ratio_text,
    signed_text,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lowbit.plan.verification import Latency, LayerQuality, MetricResult, OutputQuality, Verification

__all__ = [
    "ENGINE_GAP_DB",
    "Finding",
    "Grade",
    "Verdict",
    "engine_gap",
    "engine_loses",
    "grade_sqnr",
    "layer_db",
    "speed_grade",
    "verdict",
    "worst_layer_db",
]

Grade = Literal["good", "fair", "poor", "unknown"]

ENGINE_GAP_DB = 1.0
"""From here on the engine's kernels lose visibly more than the simulation, in decibel: rounding alone stays below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One part of the verdict.

    Attributes:
        headline: A few words, e.g. `3.89× smaller`.
        detail: The numbers behind them, e.g. `13.6 MB to 3.50 MB`.
        grade: How good that is.
    """

    headline: str
    detail: str
    grade: Grade


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The artifact beside its float model, in three findings."""

    size: Finding
    speed: Finding
    quality: Finding

    def clauses(self) -> tuple[str, str, str]:
        """Return the verdict as three clauses that make one sentence when they follow each other."""
        return (f"{self.size.headline}, ", f"{self.speed.headline}, ", f"and {self.quality.headline}.")

    def sentence(self) -> str:
        """Return the verdict as one sentence."""
        sentence = "".join(self.clauses())
        return sentence[:1].upper() + sentence[1:]


def verdict(verification: Verification) -> Verdict:
    """Judge an artifact from its measurements."""
    return Verdict(size=_size(verification), speed=_speed(verification.latency), quality=_quality(verification))


def grade_sqnr(sqnr_db: float | None) -> Grade:
    """Grade an SQNR in decibel: 30 dB is 3 % noise in amplitude, which few tasks notice; 15 dB is 18 %."""
    if sqnr_db is None or math.isnan(sqnr_db):
        return "unknown"
    return "good" if sqnr_db >= 30 else "fair" if sqnr_db >= 15 else "poor"


def engine_gap(real_db: float | None, simulated_db: float) -> float | None:
    """Return how many decibel the engine loses against the simulation, `None` where either is unknown or infinite."""
    if real_db is None or not math.isfinite(real_db) or not math.isfinite(simulated_db):
        return None
    return simulated_db - real_db


def layer_db(layer: LayerQuality) -> float:
    """Return the SQNR of a layer as the engine computes it, or simulated where the engine's fusion hides the tensor."""
    return layer.sqnr_simulated_db if layer.sqnr_real_db is None else layer.sqnr_real_db


def worst_layer_db(layers: Sequence[LayerQuality]) -> float | None:
    """Return the lowest SQNR of any layer in decibel, `None` if none is known."""
    return min((value for value in map(layer_db, layers) if not math.isnan(value)), default=None)


def engine_loses(real_db: float | None, simulated_db: float) -> bool:
    """Return whether the engine loses visibly more than the simulation."""
    gap = engine_gap(real_db, simulated_db)
    return gap is not None and gap >= ENGINE_GAP_DB


def speed_grade(latency: Latency) -> Grade:
    """Grade a speed-up: good if three quarters of the pairs were faster, poor if three quarters were slower."""
    return "good" if latency.speedup_low > 1 else "poor" if latency.speedup_high < 1 else "fair"


def _size(verification: Verification) -> Finding:
    detail = f"{bytes_text(verification.float_bytes)} to {bytes_text(verification.artifact_bytes)}"
    if not verification.float_bytes or not verification.artifact_bytes:
        return Finding(headline="size unknown", detail=detail, grade="unknown")
    ratio = verification.float_bytes / verification.artifact_bytes
    if ratio > 1.02:
        return Finding(headline=f"{ratio_text(ratio)} smaller", detail=detail, grade="good")
    if ratio >= 0.98:
        return Finding(headline="same size", detail=detail, grade="fair")
    return Finding(headline=f"{ratio_text(1 / ratio)} larger", detail=detail, grade="poor")


def _speed(latency: Latency | None) -> Finding:
    if latency is None:
        return Finding(headline="speed not measured", detail="measuring was not asked for", grade="unknown")
    detail = (
        f"{milliseconds_text(latency.float_ms)} to {milliseconds_text(latency.artifact_ms)}, "
        f"quartiles {interval_text(latency.speedup_low, latency.speedup_high)}"
    )
    grade = speed_grade(latency)
    if grade == "good":
        headline = f"{ratio_text(latency.speedup)} faster"
    elif grade == "poor":
        headline = f"slower: {ratio_text(latency.speedup)}"
    else:
        headline = f"as fast as float ({ratio_text(latency.speedup)})"
    return Finding(headline=headline, detail=detail, grade=grade)


def _quality(verification: Verification) -> Finding:
    """Judge by what is nearest to the user's purpose: their metric, else agreement of classes, else SQNR."""
    worst = min(verification.outputs, key=lambda output: _sortable(output.sqnr_real_db), default=None)
    noise = "" if worst is None else _noise(worst)
    if verification.metric is not None:
        return _metric(verification.metric, noise)
    agreements = [output.top1_agreement for output in verification.outputs if output.top1_agreement is not None]
    samples = count_text(verification.samples, "held-out sample")
    if agreements:
        agreement = min(agreements)
        return Finding(
            headline=f"agrees with float on {percent_text(agreement)}",
            detail=f"{samples}; {noise}",
            grade="good" if agreement >= 0.99 else "fair" if agreement >= 0.95 else "poor",
        )
    if worst is None:
        return Finding(headline="quality not measured", detail="no outputs were compared", grade="unknown")
    words = {
        "good": "close to float",
        "fair": "noisier than float",
        "poor": "far from float",
        "unknown": "unknown quality",
    }
    grade = grade_sqnr(worst.sqnr_real_db)
    return Finding(
        headline=f"{words[grade]} ({decibel_text(worst.sqnr_real_db)})", detail=f"{samples}; {noise}", grade=grade
    )


def _metric(metric: MetricResult, noise: str) -> Finding:
    change = metric.artifact_value - metric.float_value
    loss = -change / abs(metric.float_value) if metric.float_value else -change
    samples = count_text(metric.samples, "sample")
    return Finding(
        headline=f"{metric.name} from {number_text(metric.float_value)} to {number_text(metric.artifact_value)}",
        detail=f"{signed_text(change)} on {samples}" + (f"; {noise}" if noise else ""),
        grade="good" if loss <= 0.01 else "fair" if loss <= 0.03 else "poor",
    )


def _noise(output: OutputQuality) -> str:
    real, simulated = decibel_text(output.sqnr_real_db), decibel_text(output.sqnr_simulated_db)
    if engine_loses(output.sqnr_real_db, output.sqnr_simulated_db):
        return f"SQNR {real} in the engine, {simulated} simulated"
    return f"SQNR {real}"


def _sortable(sqnr_db: float) -> float:
    return -math.inf if math.isnan(sqnr_db) else sqnr_db
