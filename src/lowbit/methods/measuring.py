"""An artifact in its engine: quality, times, what runs, and what there is to say of a device elsewhere."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lowbit.graph import save_model
from lowbit.methods.conformance import summary, violations
from lowbit.methods.contract import read_back
from lowbit.methods.interface import coded_interface
from lowbit.methods.timeline import time_beside_float
from lowbit.methods.verify import verify
from lowbit.plan.verification import Hazards, Prediction
from lowbit.runtime.engines import open_in
from lowbit.runtime.session import open_session
from lowbit.runtime.timing import compare_latency

if TYPE_CHECKING:
    from lowbit.methods.apply import Applied
    from lowbit.methods.work import Work
    from lowbit.plan.verification import SiteTime, Verification

__all__ = ["accounted", "elsewhere_of", "timed_again", "verified"]


def verified(work: Work, applied: Applied) -> Verification:
    """Return what the engine makes of an artifact: quality, latency, size and memory beside float."""
    path = work.folder / "artifact.onnx"
    save_model(applied.model, path)
    with work.stages("Verify in the engine", work.test_data.count()) as advance:
        return verify(
            float_path=work.float_path,
            artifact_path=path,
            cleaned=work.model,
            artifact=applied.model,
            plan=applied.plan,
            sites=work.sites,
            feeds=work.test_data,
            labels=work.test_data.labels,
            metric=work.metric,
            metric_name=work.metric_name,
            threads=work.threads,
            engine=work.engine,
            latency_feed=work.timing_feed,
            batch=work.batch,
            memory=work.here,
            seconds=work.seconds,
            advance=advance,
        )


def timed_again(work: Work, applied: Applied, verification: Verification) -> Verification:
    """Measure latency once more, twice as long; this measurement counts."""
    path = work.folder / "artifact.onnx"
    save_model(applied.model, path)
    with work.stages("Measure again", None):
        feed = work.timing_feed
        artifact = open_session(path, threads=1)
        latency = compare_latency(
            open_in(work.engine, work.float_path, threads=work.threads),
            open_in(work.engine, path, threads=work.threads),
            feed,
            coded_interface(artifact, applied.plan).encode(feed),
            threads=work.threads,
            batch=work.batch,
            seconds=2 * work.seconds,
        )
    return dataclasses.replace(verification, latency=latency)


def accounted(work: Work, applied: Applied, verification: Verification, prediction: Prediction | None) -> Verification:
    """Add where the time goes, and what the engine runs for every operator that was planned in integers."""
    if not work.target.loads_here:
        return dataclasses.replace(verification, prediction=prediction, unfused=(), integer_kernels=0, kernels={})
    with work.stages("Read back what runs", None):
        rows, unasked = read_back(
            applied.model, work.sites, applied.plan, engine=work.target.engine, threads=work.threads
        )
        timeline: tuple[SiteTime, ...] = ()
        if work.seconds > 0 and applied.plan.options.get("io") != "int8":
            timeline = time_beside_float(
                work.model,
                applied,
                work.sites,
                work.timing_feed,
                threads=work.threads,
                seconds=work.seconds / 2,
                engine=work.target.engine,
            )
    hazards = tuple(
        Hazards(
            node=path,
            pairs=report.pairs,
            hazards=report.hazards,
            channels=report.channels,
            rescaled=report.scaled + report.scaled_and_clipped,
            recoded=report.clipped,
        )
        for path, weight in applied.weights.items()
        if (report := weight.encoded.saturation) is not None and report.hazards
    )
    unfused = tuple(row.node for row in rows if not row.integer)
    return dataclasses.replace(
        verification,
        contract=rows,
        timeline=timeline,
        prediction=prediction,
        hazards=hazards,
        unfused=unfused,
        unasked=unasked,
    )


def elsewhere_of(work: Work, applied: Applied) -> list[str]:
    """Return what there is to say of an artifact for a device that this machine is not."""
    if work.here:
        return []
    rules = (
        f"this machine is no {work.target.name}: the artifact was checked against that target's rules and its quality "
        "computed as the graph says; no latency is claimed"
    )
    return [rules, *summary(violations(applied.model, work.target))]
