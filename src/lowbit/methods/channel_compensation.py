"""What makes up for removed channels: the best of leaving out, refitting what reads them, and refitting in sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.graph.channels import remove_channels
from lowbit.methods.channel_refit import held_out, refit_readers
from lowbit.methods.sequential_refit import layers_behind, refit_in_sequence
from lowbit.methods.stages import Stages, silent
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Dataset
    from lowbit.graph.channels import Trace

__all__ = ["compensated"]


def compensated(
    trace: Trace,
    removed: NDArray[np.int64],
    data: Dataset,
    *,
    samples: int = 64,
    seed: int = 0,
    stages: Stages = silent,
) -> tuple[ir.Model, dict[str, str]]:
    """Return the model without some channels, refitted as far as that helps at its outputs.

    Layers that err less can still add up to more at the outputs: what is returned errs least there, on samples that
    nothing was fitted to.

    Args:
        trace: The original.
        removed: The units that go.
        data: Calibration samples.
        samples: How many are used.
        seed: Picks the rows that are looked at.
        stages: Shows progress.

    Returns:
        The model, and by initializer what refitting did.
    """
    best, notes = remove_channels(trace, removed), {}
    error = _error(trace.model, best, data, samples)
    with stages("Refit what reads removed channels", None):
        refitted, found = refit_readers(trace, removed, data, samples=samples, seed=seed)
        alone = remove_channels(refitted, removed)
        after = _error(trace.model, alone, data, samples)
    if after < error:
        best, error, notes = alone, after, found
    else:
        notes = dict.fromkeys(found, f"not refitted: error at the outputs {error:.1%} -> {after:.1%}")
    layers = layers_behind(trace, removed, best)
    with stages("Refit layer after layer", len(layers)) as advance:
        sequence, found = refit_in_sequence(trace, removed, best, data, samples=samples, seed=seed, advance=advance)
        after = _error(trace.model, sequence, data, samples)
    if not after < error:
        return best, notes
    texts = {name: "; ".join(one for one in (notes.get(name), found.get(name)) if one) for name in (*notes, *found)}
    return sequence, texts


def _error(whole: ir.Model, found: ir.Model, data: Dataset, samples: int) -> float:
    """Return the error of all float outputs on held-out samples, relative to their size."""
    with staged(whole) as before, staged(found) as after:
        sessions = [open_session(before), open_session(after)]
    lost = power = 0.0
    for feed in held_out(data, samples=samples):
        for reference, got in zip(*(session.run(feed) for session in sessions), strict=True):
            if reference.dtype.kind == "f":
                lost += float(np.square(got.astype(np.float64) - reference).sum())
                power += float(np.square(reference.astype(np.float64)).sum())
    return float(np.sqrt(lost / max(power, 1e-30)))
