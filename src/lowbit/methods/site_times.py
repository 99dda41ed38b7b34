"""Where the time of a model goes, operator by operator and conversion by conversion."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.methods.attribution import Owner, mark, owners_of_kernels
from lowbit.runtime.profile import Profile, profile_side_by_side
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.sites import Site
    from lowbit.runtime.kernels import Kernel
    from lowbit.runtime.session import Feed

__all__ = ["SiteTimes", "time_sites"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTimes:
    """One model, timed.

    Attributes:
        times: Nanoseconds by owner; an operator that another one's kernel does has no entry.
        kernels: The kernels of each owner, in execution order.
        unowned_ns: Time of kernels that belong to nobody, in nanoseconds.
        profile: The profile behind it.
    """

    times: Mapping[Owner, float]
    kernels: Mapping[Owner, tuple[Kernel, ...]]
    unowned_ns: float
    profile: Profile

    def site(self, path: str) -> float:
        """Return the time of an operator in nanoseconds; 0 if another one's kernel does its work."""
        return self.times.get(Owner(kind="site", name=path), 0.0)


def time_sites(
    models: Sequence[tuple[ir.Model, Feed]],
    sites: Sequence[Site],
    *,
    threads: int = 1,
    seconds: float = 2.0,
    engine: str = "onnxruntime",
    advance: Callable[[], None] = lambda: None,
) -> tuple[SiteTimes, ...]:
    """Time float models and artifacts of the same sites side by side.

    Args:
        models: The cleaned model or artifacts made from it, each with a set of inputs.
        sites: The cleaned model's sites.
        threads: Threads of the engine.
        seconds: How long to measure in total.
        engine: The engine to measure.
        advance: Called after every round.

    Raises:
        EngineError: The engine refuses a model.
    """
    marked = [mark(model, sites) for model, _ in models]
    with ExitStack() as stack:
        sources = [stack.enter_context(staged(one.model)) for one in marked]
        profiles = profile_side_by_side(
            [(source, feed) for source, (_, feed) in zip(sources, models, strict=True)],
            threads=threads,
            seconds=seconds,
            engine=engine,
            advance=advance,
        )
    results = []
    for one, profile in zip(marked, profiles, strict=True):
        kernels = [timed.kernel for timed in profile.kernels]
        times: dict[Owner, float] = defaultdict(float)
        owned: dict[Owner, list[Kernel]] = defaultdict(list)
        unowned = 0.0
        for timed, owner in zip(profile.kernels, owners_of_kernels(kernels, one), strict=True):
            if owner is None:
                unowned += timed.ns
            else:
                times[owner] += timed.ns
                owned[owner].append(timed.kernel)
        results.append(
            SiteTimes(
                times=dict(times),
                kernels={owner: tuple(group) for owner, group in owned.items()},
                unowned_ns=unowned,
                profile=profile,
            )
        )
    return tuple(results)
