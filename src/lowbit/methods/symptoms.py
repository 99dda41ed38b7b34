"""What the detectors of causes look at: the tensors of a quantized model, seen on a few samples of the float one."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.formats import PerTensor, parse_format
from lowbit.graph.constants import constant_array, is_constant
from lowbit.methods.causes import (
    clipped_range,
    long_tail,
    outlier_channel,
    shared_range,
    silent_channels,
    softmax_mask,
)
from lowbit.methods.input_causes import constant_input, raw_pixels, weak_input
from lowbit.methods.weight_causes import coarse_weights, saturation
from lowbit.methods.weights import channel_axis
from lowbit.runtime.session import open_session
from lowbit.runtime.staging import staged, with_outputs
from lowbit.statistics import Histogram, histogram_init, histogram_update

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from lowbit.methods.apply import Applied
    from lowbit.plan.diagnosis import Cause
    from lowbit.plan.plan import ActivationPlan, SitePlan
    from lowbit.plan.sites import Site
    from lowbit.runtime.session import Feed

__all__ = ["causes_in_inputs", "causes_in_layers"]

_NORMALIZATIONS = frozenset({"LayerNormalization", "SkipLayerNormalization", "RMSNormalization"})
_HARMLESS = frozenset({"dead channels", "constant channels"})
_JOINS = frozenset({"Concat", "Add", "Sum"})
_CODES_AT_RUN_TIME = 256
_PICTURE_RANK = 4


@dataclass(slots=True, eq=False)
class _Seen:
    """What was seen of one activation."""

    axis: int
    histogram: Histogram
    minima: NDArray[Any]
    maxima: NDArray[Any]

    def add(self, array: NDArray[Any]) -> None:
        self.histogram = histogram_update(self.histogram, array)
        if array.ndim:
            rows = np.moveaxis(array, self.axis, 0).reshape(array.shape[self.axis], -1)
            if not self.minima.size:
                self.minima = np.full(len(rows), np.inf)
                self.maxima = np.full(len(rows), -np.inf)
            # Where the number of channels changes from sample to sample, they are no channels.
            if rows.size and len(rows) == len(self.minima):
                self.minima = np.minimum(self.minima, rows.min(axis=1))
                self.maxima = np.maximum(self.maxima, rows.max(axis=1))

    @property
    def magnitudes(self) -> NDArray[Any]:
        largest: NDArray[Any] = np.maximum(np.abs(self.minima), np.abs(self.maxima))
        return largest


def causes_in_layers(
    model: ir.Model, sites: Sequence[Site], applied: Applied, feeds: Sequence[Feed]
) -> dict[str, tuple[Cause, ...]]:
    """Find what is wrong with the quantized operators of an artifact.

    Args:
        model: The float model that its plan is for, prepared as it says.
        sites: Its sites.
        applied: The artifact.
        feeds: A few samples.

    Returns:
        By path, what was found; operators without a cause are absent.
    """
    planned = {entry.node: entry for entry in applied.plan.sites}
    quantized = [site for site in sites if planned[site.path].execution in {"static", "dynamic"} and not site.subgraph]
    seen = _watched(model, quantized, feeds)
    coded = {tensor.tensor: tensor for tensor in applied.plan.activations}
    found: defaultdict[str, list[Cause]] = defaultdict(list)
    for site in quantized:
        entry = planned[site.path]
        for index in site.activations:
            value = site.node.inputs[index]
            name = (value.name or "") if value is not None else ""
            if value is None or name not in seen:
                continue
            if entry.execution == "static" and name in coded:
                codes = parse_format(coded[name].format).element.code_count
                found[site.path] += _read(site, value, seen[name], coded[name].scale, codes, len(feeds))
                found[site.path] += _clipped(site, seen[name], coded[name])
            elif entry.execution == "dynamic" and index == site.activations[0]:
                histogram = seen[name].histogram
                step = (max(histogram.high, 0.0) - min(histogram.low, 0.0)) / (_CODES_AT_RUN_TIME - 1)
                found[site.path] += _read(site, value, seen[name], step, _CODES_AT_RUN_TIME, len(feeds))
        output = coded.get(site.output.name or "")
        if site.op_type in _JOINS and entry.execution == "static" and output is not None:
            cause = shared_range(
                site.path,
                output.tensor,
                _branches(site, seen),
                step=output.scale,
                codes=parse_format(output.format).element.code_count,
            )
            found[site.path] += [cause] if cause is not None else []
    for path, causes in _weights(sites, planned, applied).items():
        found[path] += causes
    # What costs no accuracy comes last.
    return {
        path: tuple(sorted(causes, key=lambda cause: cause.kind in _HARMLESS))
        for path, causes in found.items()
        if causes
    }


def causes_in_inputs(model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed]) -> tuple[Cause, ...]:
    """Find what is suspicious about the data that a model is fed with.

    Args:
        model: The float model.
        sites: Its sites.
        feeds: A few samples.
    """
    found: list[Cause | None] = []
    for value in model.graph.inputs:
        name = value.name or ""
        arrays = [np.asarray(feed[name]) for feed in feeds if name in feed]
        if value.dtype != ir.DataType.FLOAT or not arrays or not arrays[0].size:
            continue
        low, high = (float(reduce([reduce(array) for array in arrays])) for reduce in (np.min, np.max))
        repeated = all(np.array_equal(arrays[0], array) for array in arrays[1:])
        constant = constant_input(name, low, high, samples=len(arrays), repeated=repeated)
        found.append(constant)
        first = _first_layer(value, sites)
        if constant is not None or first is None:
            continue
        signal, bias = _first_output(model, first, feeds)
        whole = all(bool(np.all(array == np.rint(array))) for array in arrays)
        found.append(raw_pixels(first.path, name, low=low, high=high, whole=whole, signal=signal, bias=bias))
        found.append(weak_input(first.path, name, low=low, high=high, signal=signal, bias=bias))
    return tuple(cause for cause in found if cause is not None)


def _watched(model: ir.Model, sites: Sequence[Site], feeds: Iterable[Feed]) -> dict[str, _Seen]:
    """Run the float model and watch every activation that quantized operators read."""
    seen: dict[str, _Seen] = {}
    inputs = {value.name for value in model.graph.inputs}
    for site in sites:
        for index in site.activations:
            value = site.node.inputs[index]
            if value is None or not value.name or is_constant(value) or value.dtype not in (ir.DataType.FLOAT, None):
                continue
            if value.name not in seen:
                seen[value.name] = _Seen(_channels(site, value), histogram_init(), np.zeros(0), np.zeros(0))
    wanted = tuple(name for name in seen if name not in inputs)
    with staged(with_outputs(model, wanted)) as source:
        session = open_session(source)
    for feed in feeds:
        arrays = dict(zip(wanted, session.run(feed, list(wanted)) if wanted else [], strict=True))
        for name, state in seen.items():
            array = np.asarray(arrays[name] if name in arrays else feed[name])
            if array.ndim <= state.axis:
                state.axis = -1
            state.add(array)
    return seen


def _channels(site: Site, value: ir.Value) -> int:
    """Return the axis of a tensor that numbers its channels: 1 where convolutions read it, the last elsewhere."""
    if site.op_type in {"MatMul", "Gemm"}:
        return -1
    rank = len(value.shape) if value.shape is not None else _PICTURE_RANK
    return 1 if site.op_type == "Conv" or rank == _PICTURE_RANK else -1


def _read(site: Site, value: ir.Value, seen: _Seen, step: float, codes: int, samples: int) -> list[Cause]:
    """Look at one tensor that an operator reads as codes."""
    name = value.name or ""
    if site.op_type == "Softmax":
        mask = softmax_mask(site.path, name, seen.histogram, step=step, codes=codes)
        if mask is not None:
            return [mask]
    producer = value.producer()
    normalized = producer is not None and producer.op_type in _NORMALIZATIONS
    found = [
        outlier_channel(
            site.path,
            name,
            seen.magnitudes,
            codes=codes,
            kind="LayerNorm outliers" if normalized else "outlier channel",
        )
        if site.weight_index is not None
        else None,
        long_tail(site.path, name, seen.histogram, step=step, codes=codes),
        silent_channels(site.path, name, seen.minima, seen.maxima, samples=samples)
        if site.weight_index is not None
        else None,
    ]
    return [cause for cause in found if cause is not None]


def _clipped(site: Site, seen: _Seen, tensor: ActivationPlan) -> list[Cause]:
    """Look at what a planned range leaves out."""
    if site.op_type == "Softmax":
        return []
    lowest, highest = parse_format(tensor.format).code_range()
    low, high = ((code - tensor.zero_point) * tensor.scale for code in (lowest, highest))
    cause = clipped_range(site.path, tensor.tensor, seen.histogram, low=low, high=high, step=tensor.scale)
    return [] if cause is None else [cause]


def _branches(site: Site, seen: Mapping[str, _Seen]) -> dict[str, tuple[float, float]]:
    """Return the ranges of what a Concat or Add joins."""
    names = [value.name for value in site.node.inputs if value is not None and value.name in seen]
    return {name: (seen[name].histogram.low, seen[name].histogram.high) for name in names if name is not None}


def _weights(sites: Sequence[Site], planned: Mapping[str, SitePlan], applied: Applied) -> dict[str, list[Cause]]:
    """Look at every weight that is stored as codes."""
    by_path = {site.path: site for site in sites}
    found: dict[str, list[Cause]] = {}
    for path, weight in applied.weights.items():
        site, text = by_path[path], planned[path].weights or str(weight.encoded.fmt)
        causes: list[Cause | None] = []
        decoded = weight.encoded.decode()
        if decoded.shape == weight.original.shape:
            causes.append(coarse_weights(path, weight.name, weight.original, decoded, fmt=text))
        if isinstance(weight.encoded.fmt.granularity, PerTensor) and site.op_type in {"Conv", "Gemm", "MatMul"}:
            axis = channel_axis(site)
            rows = np.abs(np.moveaxis(weight.original, axis, 0)).reshape(weight.original.shape[axis], -1)
            codes = weight.encoded.fmt.element.code_count
            causes.append(outlier_channel(path, weight.name, rows.max(axis=1), codes=codes, kind="outlier weights"))
        if weight.encoded.saturation is not None:
            causes.append(saturation(path, weight.name, weight.encoded.saturation))
        found[path] = [cause for cause in causes if cause is not None]
    return found


def _first_layer(value: ir.Value, sites: Sequence[Site]) -> Site | None:
    """Return the only operator with a bias that reads an input of the model, directly or moved."""
    current = value
    while True:
        readers = [use.node for use in current.uses()]
        if len(readers) != 1:
            return None
        if readers[0].op_type not in {"Transpose", "Reshape", "Pad", "Squeeze", "Unsqueeze", "Flatten", "Identity"}:
            break
        current = readers[0].outputs[0]
    return next(
        (site for site in sites if site.node is readers[0] and site.op_type in {"Conv", "Gemm"} and site.bias), None
    )


def _first_output(model: ir.Model, site: Site, feeds: Sequence[Feed]) -> tuple[float, float]:
    """Return the root mean squares of a layer's output without its bias, and of the bias."""
    bias = constant_array(site.bias)
    name = site.node.outputs[0].name
    if bias is None or name is None:
        return 0.0, 0.0
    with staged(with_outputs(model, (name,))) as source:
        session = open_session(source)
    squares, count = 0.0, 0
    for feed in feeds:
        output = np.asarray(session.run(feed, [name])[0], dtype=np.float64)
        axis = 1 if site.op_type == "Conv" else -1
        products = np.moveaxis(output, axis, -1) - bias.reshape(-1)
        squares += float(np.vdot(products, products))
        count += products.size
    return (squares / max(count, 1)) ** 0.5, float(np.sqrt(np.mean(np.square(bias, dtype=np.float64))))
