"""The account of an artifact beyond its figures: warnings, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lowbit.graph import digest
from lowbit.runtime.session import available_threads, engine_version

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.data import Dataset
    from lowbit.plan.plan import Plan
    from lowbit.plan.recipe import Recipe
    from lowbit.plan.verification import Verification
    from lowbit.targets import Target

__all__ = ["SLOWER", "provenance_of", "warnings_of"]

# Ratios below this are slower than float beyond what the noise of a measurement explains.
SLOWER = 0.97


def warnings_of(
    plan: Plan, verification: Verification, *, calibration_data: Dataset | None, test_data: Dataset
) -> list[str]:
    """Return what the user should know about an artifact, one sentence each.

    Args:
        plan: Its plan.
        verification: What was measured.
        calibration_data: What it was calibrated on.
        test_data: What it was measured on.
    """
    found = [*test_data.warnings]
    if calibration_data is not None:
        found += calibration_data.warnings
        if plan.activations and calibration_data.count() < 32:
            found.append(
                f"only {calibration_data.count()} samples calibrated the activations; 100 to 300 give steadier ranges"
            )
    compressed = sum(site.execution != "float" for site in plan.sites)
    if not compressed:
        found.append("nothing was quantized; the reasons are listed per operator")
    latency = verification.latency
    smaller = verification.artifact_bytes < verification.float_bytes
    if latency is not None and latency.speedup < SLOWER:
        found.append(f"the artifact is slower than float: {latency.speedup:.2f}× its speed")
    if latency is not None and latency.speedup < 1.03 and not smaller:
        found.append("the artifact is neither smaller nor faster than the float model")
    for output in verification.outputs:
        if output.sqnr_real_db < output.sqnr_simulated_db - 0.5:
            found.append(
                f"output {output.name!r} is worse in the engine ({output.sqnr_real_db:.1f} dB) than simulated "
                f"({output.sqnr_simulated_db:.1f} dB)"
            )
    if verification.unfused:
        listed = ", ".join(verification.unfused[:3])
        found.append(f"{len(verification.unfused)} planned integer operators run in float in the engine: {listed}")
    if verification.unasked:
        listed = ", ".join(verification.unasked[:3])
        found.append(f"the engine has quantized {len(verification.unasked)} operators that stay in float: {listed}")
    return list(dict.fromkeys(found))


def provenance_of(source: object, cleaned: ir.Model, recipe: Recipe, target: Target) -> dict[str, str]:
    """Return where an artifact comes from: versions, digests and options, for the report."""
    import lowbit

    return {
        "lowbit": lowbit.__version__,
        "engine": engine_version(),
        "target": f"{target.name} ({target.description})",
        "model": str(source) if isinstance(source, (str, Path)) else "given in memory",
        "cleaned model sha256": digest(cleaned),
        "method": recipe.method,
        "calibration": recipe.calibration,
        "seed": str(recipe.seed),
        "processors": str(available_threads()),
    }
