"""What one benchmark model consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["Array", "Case", "Feed", "Loader", "Outputs", "ZooError"]

Array = NDArray[Any]
Feed = dict[str, Array]
"""One inference: {graph input name: array in the input's own rank and dtype, batch axis included}."""

Outputs = Sequence[Sequence[Array]]
"""`outputs[sample][graph output]`, in the order of the test feeds and of the graph's outputs."""


class ZooError(Exception):
    """A model or data set of the zoo is not there; the message says what to install or to point to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A trained model, real data for it, and the score of its task.

    Attributes:
        name: Short name, as on the command line.
        model: The float ONNX file.
        calibration: Feeds that quantizers may see; disjoint from `test`. All feeds of a case have equal shapes.
        test: Held-out feeds, batch 1.
        metric: Scores the model's outputs on `test`; higher is better, 1.0 is perfect.
        metric_name: What `metric` measures, e.g. `top-1`.
        latency_feed: The feed on which the model is timed, batch 1.
        selection: Feeds on which to choose between methods; disjoint from the others. Few cases have some.
        transformer: Whether a tool that asks for the architecture should be told "transformer".
    """

    name: str
    model: Path
    calibration: Sequence[Feed]
    test: Sequence[Feed]
    metric: Callable[[Outputs], float]
    metric_name: str
    latency_feed: Feed
    selection: Sequence[Feed] = ()
    transformer: bool = False


Loader = Callable[[Path, Path], Case]
"""`load(data, cache)`: the folder of the development data, and a folder for models that are built on first use."""
