"""The float model beside the artifact, one row for every measured quantity."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.report.units import (
    NOTHING,
    bytes_text,
    count_text,
    decibel_text,
    interval_text,
    megabytes_text,
    milliseconds_text,
    number_text,
    percent_text,
    ratio_text,
    signed_text,
)
from lowbit.report.verdict import ENGINE_GAP_DB, Grade, engine_gap, grade_sqnr, speed_grade, verdict

if TYPE_CHECKING:
    from lowbit.plan.plan import Plan
    from lowbit.plan.verification import Latency, OutputQuality, Verification

__all__ = ["ComparisonRow", "compare", "predicted_ms", "warnings_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One quantity of both models.

    Attributes:
        label: What was measured.
        float_text: Its value in the float model.
        artifact_text: Its value in the artifact.
        change: What became of it, in a few words.
        grade: How good the change is; `unknown` shows no colour.
        condition: How it was measured, for a footnote or a second line.
    """

    label: str
    float_text: str
    artifact_text: str
    change: str
    grade: Grade = "unknown"
    condition: str = ""


def compare(plan: Plan, verification: Verification) -> tuple[ComparisonRow, ...]:
    """Return every measured quantity of the float model and the artifact, the most asked for first."""
    judged = verdict(verification)
    rows = [
        ComparisonRow(
            label="Size",
            float_text=bytes_text(verification.float_bytes),
            artifact_text=bytes_text(verification.artifact_bytes),
            change=judged.size.headline,
            grade=judged.size.grade,
            condition="files on disk, external data included",
        ),
        *_stored(plan),
        _latency(verification.latency, judged.speed.grade),
    ]
    if verification.latency_all_cores is not None:
        everywhere = verification.latency_all_cores
        row = _latency(everywhere, speed_grade(everywhere))
        rows.append(dataclasses.replace(row, label=f"Latency, {count_text(everywhere.threads, 'thread')}"))
    prediction = verification.prediction
    if prediction is not None and verification.latency is not None:
        rows.append(
            ComparisonRow(
                label="Latency predicted",
                float_text=milliseconds_text(prediction.float_ms),
                artifact_text=milliseconds_text(prediction.artifact_ms),
                change=f"{ratio_text(prediction.float_ms / prediction.artifact_ms)} from costs {prediction.source}"
                if prediction.artifact_ms
                else "",
                condition="the cleaned model, before the artifact was built",
            )
        )
    memory = _memory(verification.float_peak_mb, verification.artifact_peak_mb)
    if memory is not None:
        rows.append(memory)
    if verification.metric is not None:
        metric = verification.metric
        rows.append(
            ComparisonRow(
                label=metric.name,
                float_text=number_text(metric.float_value),
                artifact_text=number_text(metric.artifact_value),
                change=signed_text(metric.artifact_value - metric.float_value),
                grade=judged.quality.grade,
                condition=f"your metric on {count_text(metric.samples, 'sample')}, higher is better",
            )
        )
    for output in verification.outputs:
        rows.extend(_output(output, verification.samples))
    rows.append(_integers(plan, verification))
    if verification.contract:
        kept = sum(row.integer for row in verification.contract)
        rows.append(
            ComparisonRow(
                label="Planned in integers",
                float_text=NOTHING,
                artifact_text=f"{kept} of {len(verification.contract)}",
                change="run in integer kernels",
                grade="unknown" if kept == len(verification.contract) else "poor",
                condition="read back from the engine's own graph",
            )
        )
    if verification.hazards:
        pairs = sum(row.hazards for row in verification.hazards)
        rows.append(
            ComparisonRow(
                label="Overflowing pairs",
                float_text=NOTHING,
                artifact_text="0",
                change=f"{pairs:,} in {count_text(len(verification.hazards), 'layer')} repaired",
                condition="pairs of 8-bit products that this processor would add wrongly",
            )
        )
    return tuple(rows)


def warnings_of(plan: Plan, verification: Verification) -> tuple[str, ...]:
    """Return what the reader must know, from the plan and from the measurement, each sentence once."""
    return tuple(dict.fromkeys((*plan.warnings, *verification.warnings)))


def predicted_ms(plan: Plan) -> tuple[float, float, int] | None:
    """Return the predicted latency of the float model and of the plan in ms, and of how many sites it is the sum.

    `None` if nothing was predicted. Only sites with both predictions count, so that the two sums compare.
    """
    known = [
        (site.predicted_float_us, site.predicted_us)
        for site in plan.sites
        if site.predicted_float_us is not None and site.predicted_us is not None
    ]
    if not known:
        return None
    return sum(pair[0] for pair in known) / 1e3, sum(pair[1] for pair in known) / 1e3, len(known)


def _stored(plan: Plan) -> list[ComparisonRow]:
    """Return what of the size comes from weights that no kernel computes with, and what they run as."""
    stored = [site for site in plan.sites if site.execution == "weight-only" and site.weights is not None]
    if not stored:
        return []
    counts = Counter(f"{site.weights}" for site in stored)
    formats = ", ".join(f"{count} × {text}" for text, count in counts.most_common())
    blocks = sum(site.decode == "kernel" for site in stored)
    at_load = "stored small, run through dequantization: decoded at load, at float speed"
    in_kernel = "stored small, decoded block by block in float kernels"
    if not blocks:
        change = at_load
    else:
        change = in_kernel if blocks == len(stored) else f"{at_load}; {blocks} decoded block by block"
    return [
        ComparisonRow(
            label="Weights only",
            float_text=NOTHING,
            artifact_text=str(len(stored)),
            change=change,
            condition=f"no integer kernel computes with them: {formats}",
        )
    ]


def _latency(latency: Latency | None, grade: Grade) -> ComparisonRow:
    if latency is None:
        return ComparisonRow(label="Latency", float_text=NOTHING, artifact_text=NOTHING, change="not measured")
    quartiles = interval_text(latency.speedup_low, latency.speedup_high)
    word = {"good": "faster", "poor": "as fast: slower"}.get(grade, "as fast")
    return ComparisonRow(
        label="Latency",
        float_text=milliseconds_text(latency.float_ms),
        artifact_text=milliseconds_text(latency.artifact_ms),
        change=f"{ratio_text(latency.speedup)} {word} ({quartiles})",
        grade=grade,
        condition=(
            f"median and quartiles of {count_text(latency.pairs, 'interleaved pair')}, "
            f"{count_text(latency.threads, 'thread')}, batch {latency.batch}"
        ),
    )


def _memory(float_mb: float | None, artifact_mb: float | None) -> ComparisonRow | None:
    if float_mb is None and artifact_mb is None:
        return None
    change = ""
    grade: Grade = "unknown"
    if float_mb and artifact_mb:
        ratio = float_mb / artifact_mb
        if ratio > 1.02:
            change, grade = f"{ratio_text(ratio)} less", "good"
        elif ratio >= 0.98:
            change, grade = "same", "fair"
        else:
            change, grade = f"{ratio_text(1 / ratio)} more", "poor"
    return ComparisonRow(
        label="Peak memory",
        float_text=NOTHING if float_mb is None else megabytes_text(float_mb),
        artifact_text=NOTHING if artifact_mb is None else megabytes_text(artifact_mb),
        change=change,
        grade=grade,
        condition="resident memory of a process that loads and runs the model, beyond the empty process",
    )


def _output(output: OutputQuality, samples: int) -> list[ComparisonRow]:
    gap = engine_gap(output.sqnr_real_db, output.sqnr_simulated_db)
    lost = gap is not None and gap >= ENGINE_GAP_DB
    simulated = f"simulated {decibel_text(output.sqnr_simulated_db)}"
    measured = f"on {count_text(samples, 'held-out sample')}"
    rows = [
        ComparisonRow(
            label=f"SQNR, {output.name}",
            float_text="reference",
            artifact_text=decibel_text(output.sqnr_real_db),
            change=f"{simulated}: {gap:.1f} dB lost in the engine" if lost else simulated,
            grade="poor" if lost else grade_sqnr(output.sqnr_real_db),
            condition=f"{measured}; largest difference {number_text(output.max_error)}",
        )
    ]
    if output.top1_agreement is not None:
        agreement = output.top1_agreement
        rows.append(
            ComparisonRow(
                label=f"Top-1, {output.name}",
                float_text="reference",
                artifact_text=percent_text(agreement),
                change="agree with float",
                grade="good" if agreement >= 0.99 else "fair" if agreement >= 0.95 else "poor",
                condition=measured,
            )
        )
    return rows


def _integers(plan: Plan, verification: Verification) -> ComparisonRow:
    unfused = len(verification.unfused)
    change = f"{verification.planned_integer} of {count_text(len(plan.sites), 'site')} planned"
    return ComparisonRow(
        label="Integer operators",
        float_text=NOTHING,
        artifact_text=str(verification.integer_kernels),
        change=f"{change}, {unfused} run in float" if unfused else change,
        grade="poor" if unfused else "unknown",
        condition=f"kernels of {verification.engine} that compute in integers",
    )
