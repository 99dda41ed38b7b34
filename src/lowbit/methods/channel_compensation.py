"""What makes up for removed channels: the best of leaving out, refitting what reads them, and refitting in sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.graph.channels import remove_channels
from lowbit.methods.channel_refit import held_out, refit_readers
from lowbit.methods.output_error import OutputError
from lowbit.methods.sequential_refit import layers_behind, refit_in_sequence
from lowbit.methods.stages import Stages, silent

if TYPE_CHECKING:
    import numpy as np
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
    judge = OutputError(trace.model, held_out(data, samples=samples))
    error = judge.of(best)
    with stages("Refit what reads removed channels", None):
        refitted, found = refit_readers(trace, removed, data, samples=samples, seed=seed)
        alone = remove_channels(refitted, removed)
        after = judge.of(alone)
    if after < error:
        best, error, notes = alone, after, found
    else:
        notes = dict.fromkeys(found, f"not refitted: error at the outputs {error:.1%} -> {after:.1%}")
    layers = layers_behind(trace, removed, best)
    with stages("Refit layer after layer", len(layers)) as advance:
        sequence, found = refit_in_sequence(trace, removed, best, data, samples=samples, seed=seed, advance=advance)
        after = judge.of(sequence)
    if not after < error:
        return best, notes
    texts = {name: "; ".join(one for one in (notes.get(name), found.get(name)) if one) for name in (*notes, *found)}
    return sequence, texts
