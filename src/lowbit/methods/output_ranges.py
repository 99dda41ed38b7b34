"""Ranges of activations by the output error of the layers that read them, measured while calibration samples stream by.

Candidates come from what calibration saw of each tensor; three passes over the samples judge them, so that memory does
not depend on how many samples there are. Where the range of least squared error of the tensor itself is better on
samples that were held out, that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.graph.constants import constant_array
from lowbit.methods.second_moments import input_rows
from lowbit.methods.weights import kernel_matrix
from lowbit.plan.ranges import CodedTensor, coded_tensors
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs
from lowbit.statistics import mse_range
from lowbit.statistics.output_error import close_ranges, compact_weight, squared_output_errors, wide_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.formats import Format
    from lowbit.plan.plan import Execution
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed
    from lowbit.statistics import Histogram

__all__ = ["OutputRange", "output_ranges"]

_SAMPLES = 64
# How many numbers of what a layer reads are looked at in each sample, and how many of its outputs at least.
_NUMBERS = 1 << 15
_FEWEST = 4
_EVERY = 4
# Candidates are far apart in the first pass, then ever closer to the best.
_STEPS = (None, 0.4, 0.15)
_MATRIX = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRange:
    """The range of one tensor.

    Attributes:
        low: Lowest value that is kept.
        high: Highest one.
        readers: Paths of the operators by whose outputs it was chosen.
        note: Their error before and after, in words.
    """

    low: float
    high: float
    readers: tuple[str, ...]
    note: str


def output_ranges(
    model: ir.Model,
    sites: Sequence[Site],
    executions: Mapping[str, Execution],
    fmt: Format,
    histograms: Mapping[str, Histogram],
    feeds: Iterable[Feed],
    *,
    known: Mapping[str, OutputRange] | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, OutputRange]:
    """Choose the ranges of all tensors in codes that layers with weights read.

    Where others read the tensor too, such as the sum of a residual, its own error counts as much as that of a layer,
    each relative to the power of what it is an error of.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        executions: What each of them becomes.
        fmt: Format of activations.
        histograms: What calibration saw of every tensor.
        feeds: Calibration samples, passed over three times.
        known: Ranges that were found before; they hold where the same operators read.
        seed: Seed of which outputs are looked at.
        advance: Called after every sample of each pass.

    Returns:
        By tensor, what is known and what was found.

    Raises:
        EngineError: The engine cannot run the model.
    """
    found = dict(known or {})
    searches = []
    for name, readings in _readings(sites, executions).items():
        readers = tuple(sorted({reading.path for reading in readings}))
        histogram = histograms.get(name)
        if histogram is None or not histogram.count or (name in found and found[name].readers == readers):
            continue
        if any(reading.site is not None for reading in readings):
            searches.append(_Search(name, readings, readers, histogram, fmt))
    samples = list(islice(feeds, _SAMPLES))
    for step in _STEPS:
        if not searches:
            break
        for search in searches:
            search.begin(step)
        names = tuple(dict.fromkeys(reading.tensor for search in searches for reading in search.readings))
        inputs = {value.name for value in model.graph.inputs}
        wanted = tuple(name for name in names if name not in inputs)
        with staged(with_outputs(model, wanted)) as source:
            session = open_session(source)
        generator = np.random.default_rng(seed)
        for index, feed in enumerate(samples):
            arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
            arrays.update({name: array for name, array in feed.items() if name in names})
            held = index % _EVERY == _EVERY - 1
            for search in searches:
                search.add(arrays, generator, held=held)
            advance()
    found.update({search.name: search.chosen() for search in searches})
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reading:
    """Somebody who reads a tensor in codes, or what a layer that moves codes made of it.

    Attributes:
        path: Path of the reader.
        tensor: What it reads.
        site: The reader, if it is a layer whose output errors can be told; `None` counts the error of the tensor.
        weight: `[G, K, N]` of such a layer.
    """

    path: str
    tensor: str
    site: Site | None
    weight: NDArray[np.float32] | None


def _readings(sites: Sequence[Site], executions: Mapping[str, Execution]) -> dict[str, list[_Reading]]:
    """Return who reads each tensor in codes, those included that read what only moves them."""
    tensors = [each for each in coded_tensors(sites, executions) if constant_array(each.value) is None]
    roots: dict[str, str] = {}
    found: dict[str, list[_Reading]] = {}
    for tensor in tensors:
        root = tensor.name
        producer = tensor.producer
        if producer is not None and producer.support is not None and producer.support.role == "passive":
            read = producer.node.inputs[0]
            root = roots.get((read.name or "") if read is not None else "", root)
        roots[tensor.name] = root
        found.setdefault(root, []).extend(_reading(tensor, site) for site in tensor.readers if not _passive(site))
    return found


def _passive(site: Site) -> bool:
    return site.support is not None and site.support.role == "passive"


def _reading(tensor: CodedTensor, site: Site) -> _Reading:
    told = (
        site.op_type in {"Conv", "MatMul", "Gemm"}
        and site.weight_index == 1
        and site.node.inputs[0] is tensor.value
        and (site.op_type == "Conv" or site.weight_array().ndim == _MATRIX)
    )
    if not told:
        return _Reading(path=site.path, tensor=tensor.name, site=None, weight=None)
    matrix = kernel_matrix(site, site.weight_array())
    group = site.attribute("group", 1) if site.op_type == "Conv" else 1
    by_group = matrix.reshape(len(matrix), group, -1).transpose(1, 0, 2)
    return _Reading(path=site.path, tensor=tensor.name, site=site, weight=compact_weight(by_group))


class _Search:
    """The candidates of one tensor, with the errors that they were seen to make.

    Args:
        name: The tensor.
        readings: Who reads it.
        readers: Their paths.
        histogram: What calibration saw of it.
        fmt: Format of its codes.
    """

    def __init__(
        self, name: str, readings: list[_Reading], readers: tuple[str, ...], histogram: Histogram, fmt: Format
    ) -> None:
        self.name, self.readings, self.readers, self.fmt = name, readings, readers, fmt
        self.symmetric = fmt.symmetric and fmt.element.signed
        self.low, self.high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        own = mse_range(histogram, fmt.element.code_count, symmetric=self.symmetric)
        self.own = (min(own.low, 0.0), max(own.high, 0.0))
        self.candidates: list[tuple[float, float]] = []
        # By candidate, the relative error in samples to choose by and in those that were held out.
        self.errors: dict[tuple[float, float], tuple[float, float]] = {}
        self.sums = np.zeros(0)
        self.powers = np.zeros(0)

    def begin(self, step: float | None) -> None:
        """Start a pass, with candidates far apart, or near to the best so far."""
        if step is not None:
            self._settle()
            self.candidates = close_ranges(self._best(), self.low, self.high, step, symmetric=self.symmetric)
        else:
            wide = wide_ranges(self.low, self.high, symmetric=self.symmetric)
            self.candidates = list(dict.fromkeys((self.own, *wide)))
        self.sums = np.zeros((2, len(self.readings), len(self.candidates)))
        self.powers = np.zeros((2, len(self.readings)))

    def add(self, arrays: Mapping[str, NDArray[Any]], generator: np.random.Generator, *, held: bool) -> None:
        """Add the errors of one sample."""
        for index, reading in enumerate(self.readings):
            rows = _rows(reading, arrays[reading.tensor], generator)
            made = rows if reading.weight is None else rows @ reading.weight
            self.sums[int(held), index] += squared_output_errors(rows, reading.weight, self.candidates, self.fmt)
            self.powers[int(held), index] += np.square(made, dtype=np.float64).sum()

    def chosen(self) -> OutputRange:
        """Return the best range, or that of the tensor itself where it is better on what was held out."""
        self._settle()
        best = self._best()
        before, after = (100 * np.sqrt(self.errors[each][1]) for each in (self.own, best))
        text = f"error of what reads it {before:.2g} % -> {after:.2g} %"
        if self.errors[best][1] >= self.errors[self.own][1]:
            best, text = self.own, f"error of what reads it {before:.2g} %, by output-mse {after:.2g} %: mse kept"
        return OutputRange(low=best[0], high=best[1], readers=self.readers, note=text)

    def _best(self) -> tuple[float, float]:
        return min(self.errors, key=lambda each: self.errors[each][0])

    def _settle(self) -> None:
        """Note the errors of the pass that ends."""
        fit, held = (self.sums / np.maximum(self.powers, 1e-300)[:, :, None]).sum(axis=1)
        if not self.powers[1].any():
            held = fit
        for index, candidate in enumerate(self.candidates):
            self.errors[candidate] = (float(fit[index]), float(held[index]))


def _rows(reading: _Reading, array: NDArray[Any], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return some of what a reader reads, `[G, R, K]`."""
    if reading.site is None or reading.weight is None:
        flat = array.reshape(-1)
        picked = flat if flat.size <= _NUMBERS else flat[np.sort(generator.choice(flat.size, _NUMBERS, replace=False))]
        return np.ascontiguousarray(picked, dtype=np.float32).reshape(1, -1, 1)
    each = reading.weight.shape[0] * reading.weight.shape[1]
    rows = input_rows(reading.site, array, max(_NUMBERS // each, _FEWEST), generator)
    return np.ascontiguousarray(rows.transpose(1, 0, 2))
