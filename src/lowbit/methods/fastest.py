"""Which engine to deploy with: every engine of this machine makes and measures its own artifact."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lowbit.exceptions import EngineError, TargetError
from lowbit.methods.costs import measurable
from lowbit.runtime.engines import version_of
from lowbit.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.methods.result import Result
    from lowbit.targets import Target

__all__ = ["FASTEST_HERE", "candidates_here", "fastest_here"]

FASTEST_HERE = "fastest-here"


def candidates_here() -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """Return the targets that this machine is and whose engines are installed, and why the others are left out."""
    found, left_out = [], []
    for target in TARGETS.values():
        if not measurable(target):
            continue
        try:
            version_of(target.engine)
        except EngineError as error:
            left_out.append(f"{target.name}: {error}")
        else:
            found.append(target)
    return tuple(found), tuple(left_out)


def fastest_here(attempt: Callable[[str], Result]) -> Result:
    """Quantize for every candidate and return the artifact with the least latency; its notes name the others.

    Args:
        attempt: Quantizes for the target of the given name.

    Raises:
        TargetError: No target fits this machine.
        EngineError: No engine runs the model, or nothing was measured.
    """
    candidates, notes = candidates_here()
    if not candidates:
        raise TargetError("no target fits this machine", cause="; ".join(notes), remedy="name the device's target")
    results: list[tuple[float, str, Result]] = []
    failures: list[str] = []
    for target in candidates:
        try:
            result = attempt(target.name)
        except EngineError as error:
            failures.append(f"{target.name}: {error}")
            continue
        latency = result.verification.latency
        if latency is None:
            raise EngineError(
                f"the target is {FASTEST_HERE} but latency is not measured", remedy="give --time more than 0 seconds"
            )
        results.append((latency.artifact_ms, target.name, result))
    if not results:
        raise EngineError("no engine of this machine runs an artifact of this model", cause="; ".join(failures))
    results.sort(key=lambda entry: entry[0])
    best = results[0][2]
    measured = ", ".join(f"{name} {ms:.3g} ms" for ms, name, _ in results)
    said = [
        f"deploy with {best.verification.engine}: {measured}",
        *(f"not measured: {note}" for note in (*notes, *failures)),
    ]
    return dataclasses.replace(best, notes=(*best.notes, *said), advice=tuple(said))
