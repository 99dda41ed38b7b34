"""The graph of a plan as a module in which everything learns: weights and codes come in from outside."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError, RecipeError
from lowbit.formats import Format, PerBlock, PerChannel, levels_of, parse_format
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.interpreter import Interpreter
from lowbit.methods.learned_graph import for_any_batch
from lowbit.methods.site_weights import final_bias
from lowbit.methods.weights import EncodedWeight, channel_axis, encode_weight
from lowbit.plan.sites import Site, find_sites
from lowbit.training.activation import DOMAIN, OPERATOR, LearnedActivation
from lowbit.training.bias import TrainableBias
from lowbit.training.clusters import Clusters
from lowbit.training.module import TrainableModel
from lowbit.training.weight import Grid, TrainableWeight, WeightQuantizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.methods.trainable import Origin
    from lowbit.plan.plan import ActivationPlan, SitePlan
    from lowbit.rounding import RangeMethod

__all__ = ["build_module", "quantized_tensors", "weighted_sites"]

# Operators whose weight comes in from outside, so that it can be masked, clustered and rounded.
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather"})
# Inputs that are learned besides, by operator; of all others the values say what an operator does (the ends of a Clip).
_LEARNED: dict[str, tuple[int, ...]] = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "PRelu": (1,),
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
}
# Factors and summands that have an element for every channel are learned, single numbers are not.
_BROADCAST = frozenset({"Add", "Mul", "Sub", "Div"})
_BYTE = 8
# Codes that no pair of products saturates with: 255 · (64 + 64) < 2^15.
_SAFE = 64
# From so few bits on the least squared error chooses where a weight's range ends.
_FEW_BITS = 4
# Tensors with more distinct values than this are not clustered.
_MOST_ENTRIES = 256


def build_module(
    origin: Origin,
    *,
    keep_zeros: bool = False,
    keep_clusters: bool = False,
    taps: tuple[str, ...] = (),
    channels_last: bool = True,
    like: TrainableModel | None = None,
) -> TrainableModel:
    """Build the module of a plan.

    Args:
        origin: The model and its plan.
        keep_zeros: Whether weights that are 0 stay 0.
        keep_clusters: Whether equal weights stay equal.
        taps: Names of inner tensors that are returned too.
        channels_last: Whether images have their channels last in memory.
        like: A module of the same plan, whose parts the new one takes over.

    Raises:
        ModelError: Nothing can learn, or a tap does not exist.
        RecipeError: A format has no gradient.
    """
    result = _any_batch(for_any_batch(origin.model))
    inputs = tuple(str(value.name) for value in result.graph.inputs if value.name not in result.graph.initializers)
    outputs = len(result.graph.outputs)
    images = frozenset(
        str(value.name)
        for value in result.graph.inputs
        if channels_last and value.uses() and all(use.node.op_type == "Conv" and use.idx == 0 for use in value.uses())
    )
    editor = Editor(result)
    sites = {site.path: site for site in find_sites(result, origin.target)}
    added: list[ir.Value] = []
    biases = _start_biases(origin, sites)
    _tap(result, taps)
    weights = _weights(origin, editor, sites, added, keep_zeros=keep_zeros, keep_clusters=keep_clusters)
    activations = _activations(origin, editor, sites, added)
    rounded = _rounded_biases(origin, editor, sites, added, biases, weights, activations)
    result.graph.inputs.extend(added)
    result.graph.opset_imports.setdefault(DOMAIN, 1)
    for name, value in list(result.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del result.graph.initializers[name]
    learned = _learned_initializers(result)
    graph = Interpreter(result)
    for name, parameter in graph.named_parameters():
        parameter.requires_grad_(name in learned)
    with torch.no_grad():
        named = dict(graph.named_parameters())
        for name, bias in biases.items():
            if name in named:
                named[name].copy_(torch.from_numpy(bias.reshape(tuple(named[name].shape))))
    if not weights and not learned:
        raise ModelError("nothing in this model can learn", cause="it has no weights")
    if like is not None:
        weights, activations, rounded = like.parts()
        learned_state = dict(like.graph.named_parameters())
        for name, parameter in graph.named_parameters():
            parameter.data = learned_state[name].data
            parameter.requires_grad_(learned_state[name].requires_grad)
        images = like.images
    module = TrainableModel(
        graph,
        weights,
        activations,
        rounded,
        reads=_reads(origin),
        inputs=inputs,
        outputs=outputs,
        taps=taps,
        origin=origin,
        images=images,
    )
    module.sample_by_sample = _fixed_batch(origin) and not _takes_batches(module, origin)
    module.train()
    return module


def _any_batch(model: ir.Model) -> ir.Model:
    """Let Reshapes find their first dimension by themselves where it holds the batch times something else."""
    editor = Editor(model)
    for node in list(model.graph):
        shape = constant_array(node.inputs[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.size == 0 or shape[0] <= 0 or (shape < 0).any() or (shape == 0).any():
            continue
        copied = np.array(shape)
        copied[0] = -1
        node.replace_input_with(1, editor.constant(model.graph, f"{node.name}/open_shape", copied))
        for value in node.outputs:
            value.shape = None
    return model


def _fixed_batch(origin: Origin) -> bool:
    shapes = [value.shape for value in origin.model.graph.inputs if value.shape is not None and len(value.shape)]
    return any(isinstance(shape[0], int) for shape in shapes)


def _takes_batches(module: TrainableModel, origin: Origin) -> bool:
    """Whether a model whose batch was fixed computes of two samples at once what it computes of each."""
    dataset = origin.calibration or origin.tests
    if dataset is None:
        return True
    feeds = [
        {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}
        for feed in itertools.islice(dataset, 2)
    ]
    module.eval()
    module.set_strength(0.0)
    try:
        with torch.no_grad():
            alone = [module(**feed) for feed in feeds]
            together = module(**{name: torch.cat([feed[name] for feed in feeds]) for name in feeds[0]})
    except (RuntimeError, ValueError, IndexError):
        return False  # A shape inside is fixed to one sample.
    finally:
        module.set_strength(1.0)
    first = [one if isinstance(one, tuple) else (one,) for one in alone]
    for index, joined in enumerate(together if isinstance(together, tuple) else (together,)):
        single = torch.cat([one[index] for one in first])
        if single.shape != joined.shape or not torch.allclose(
            joined, single, rtol=1e-3, atol=1e-4 * float(single.abs().max()) + 1e-6
        ):
            return False
    return True


def _reads(origin: Origin) -> dict[str, tuple[str | None, str | None]]:
    found = {}
    for path, site in weighted_sites(origin).items():
        others = [value for index, value in enumerate(site.node.inputs[:2]) if index != site.weight_index]
        source = others[0].name if others and others[0] is not None else None
        found[path] = (source, site.bias.name if site.bias is not None else None)
    return found


def weighted_sites(origin: Origin) -> dict[str, Site]:
    """Return the sites whose weights come in from outside, by path, of the model that a plan is about."""
    return {site.path: site for site in find_sites(origin.model, origin.target) if _weighted(site)}


def _weighted(site: Site) -> bool:
    return site.op_type in _WEIGHTED and site.weight_index is not None and not site.subgraph


def _outside(editor: Editor, wish: str, added: list[ir.Value]) -> ir.Value:
    value = ir.Value(name=editor.name(wish), type=ir.TensorType(ir.DataType.FLOAT))
    added.append(value)
    return value


def _tap(model: ir.Model, taps: Sequence[str]) -> None:
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in taps:
        if name not in values:
            raise ModelError(
                f"the model has no tensor {name!r}", remedy="`lowbit inspect --details` lists operators and tensors"
            )
        model.graph.outputs.append(values[name])


def _start_biases(origin: Origin, sites: dict[str, Site]) -> dict[str, NDArray[np.float32]]:
    """Return the biases to start from: those that make up for the mean error of rounding, by initializer."""
    found: dict[str, NDArray[np.float32]] = {}
    for entry in origin.plan.sites:
        site = sites[entry.node]
        if entry.input_mean is None or site.bias is None or entry.weights is None or not _weighted(site):
            continue
        bias = final_bias(site, _encoded(site, entry), entry)
        if bias is not None:
            found[str(site.bias.name)] = bias
    return found


def _weights(
    origin: Origin,
    editor: Editor,
    sites: dict[str, Site],
    added: list[ir.Value],
    *,
    keep_zeros: bool,
    keep_clusters: bool,
) -> dict[str, TrainableWeight]:
    entries = {entry.node: entry for entry in origin.plan.sites}
    made: dict[str, TrainableWeight] = {}
    weights: dict[str, TrainableWeight] = {}
    for path, site in sites.items():
        if not _weighted(site):
            continue
        assert site.weight is not None
        assert site.weight_index is not None
        initializer = str(site.weight.name)
        if initializer not in made:
            entry = entries.get(path)
            array = np.array(site.weight_array(), dtype=np.float32)
            made[initializer] = _weight(origin, site, entry, array, keep_zeros=keep_zeros, keep_clusters=keep_clusters)
        value = _outside(editor, f"{path}/weight", added)
        weights[str(value.name)] = made[initializer]
        site.node.replace_input_with(site.weight_index, value)
    return weights


def _weight(
    origin: Origin,
    site: Site,
    entry: SitePlan | None,
    array: NDArray[np.float32],
    *,
    keep_zeros: bool,
    keep_clusters: bool,
) -> TrainableWeight:
    weight = torch.from_numpy(array)
    zeros = keep_zeros and bool((array == 0).any())
    mask = torch.from_numpy((array != 0).astype(np.float32)) if zeros else None
    fmt = parse_format(entry.weights) if entry is not None and entry.weights is not None else None
    if fmt is not None and fmt.element.learned:
        assert entry is not None
        learned = _codebook(_encoded(site, entry), weight, zeros=zeros, soft=origin.soft)
        return TrainableWeight(weight, clusters=learned, mask=mask)
    quantizer = None
    if fmt is not None and entry is not None and entry.execution in {"static", "weight-only"} and _rounds(fmt):
        quantizer = WeightQuantizer(_grid(origin, site, entry))
    clusters = _found_clusters(weight, channel_axis(site), origin.soft) if keep_clusters else None
    return TrainableWeight(weight, quantizer=quantizer, clusters=clusters, mask=mask)


def _rounds(fmt: Format) -> bool:
    return not (fmt.element.kind == "float" and fmt.element.bits >= 16)


def _encoded(site: Site, entry: SitePlan) -> EncodedWeight:
    assert entry.weights is not None
    fmt = parse_format(entry.weights)
    method: RangeMethod = "mse" if fmt.element.bits <= _FEW_BITS and fmt.element.kind == "integer" else "minmax"
    return encode_weight(site, fmt, saturates=False, method=method)


def _grid(origin: Origin, site: Site, entry: SitePlan) -> Grid:
    """Return the grid that a weight starts with."""
    encoded = _encoded(site, entry)
    fmt, scale = encoded.fmt, np.array(encoded.parameters.scale, dtype=np.float32)
    shape = site.weight_array().shape
    if not fmt.symmetric or np.asarray(encoded.parameters.zero_point).astype(np.float32).any():
        raise RecipeError(
            f"weights of {site.path!r} are {fmt}",
            cause="weights are trained on grids that mirror around 0",
            remedy="use a signed format, e.g. int8 or int4",
        )
    spread = functools.partial(_spread, fmt, tuple(shape))
    if fmt.element.kind == "codebook" or fmt.element.kind == "float":
        levels = torch.from_numpy(_levels(fmt))
        return Grid(scale=torch.from_numpy(scale), kind="levels", low=0, high=0, spread=spread, levels=levels)
    low, high = fmt.code_range()
    if site.path in origin.binary:
        scale = _mean_magnitude(site.weight_array(), fmt, scale.shape)
        return Grid(scale=torch.from_numpy(scale), kind="signs", low=-1, high=1, spread=spread)
    if origin.target.saturates and entry.execution == "static" and high > _SAFE:
        # What is trained has to be what the engine computes, so that nothing may be left to repair afterwards.
        scale = scale * np.float32(high / _SAFE)
        low, high = -_SAFE, _SAFE
    return Grid(scale=torch.from_numpy(scale), kind="integer", low=low, high=high, spread=spread)


def _levels(fmt: Format) -> NDArray[np.float32]:
    if fmt.element.kind == "codebook":
        return levels_of(fmt, None)
    codes = np.arange(2**fmt.element.bits, dtype=np.uint8).view(fmt.element.dtype).astype(np.float32)
    return np.unique(codes[np.isfinite(codes)])


def _mean_magnitude(weight: NDArray[np.float32], fmt: Format, shape: tuple[int, ...]) -> NDArray[np.float32]:
    match fmt.granularity:
        case PerChannel(axis=axis):
            others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
            found = np.abs(weight).mean(axis=others)
        case PerBlock(axis=axis, size=size):
            moved = np.moveaxis(np.abs(weight), axis, -1)
            found = np.moveaxis(moved.reshape(*moved.shape[:-1], -1, size).mean(axis=-1), -1, axis)
        case _:
            found = np.abs(weight).mean()
    return np.maximum(np.asarray(found, dtype=np.float32), np.float32(1e-8)).reshape(shape)


def _spread(fmt: Format, shape: tuple[int, ...], tensor: torch.Tensor) -> torch.Tensor:
    """Broadcast what is shaped like a scale to a weight."""
    match fmt.granularity:
        case PerChannel(axis=axis):
            return tensor.reshape([-1 if index == axis % len(shape) else 1 for index in range(len(shape))])
        case PerBlock(axis=axis, size=size):
            return tensor.repeat_interleave(size, dim=axis)
    return tensor


def _codebook(encoded: EncodedWeight, weight: torch.Tensor, *, zeros: bool, soft: float) -> Clusters:
    """Return the codebook of a format that learns its levels, with an entry at 0 if zeros are to stay."""
    fmt, parameters = encoded.fmt, encoded.parameters
    levels = levels_of(fmt, parameters.levels)
    entries = np.array(np.atleast_2d(levels), dtype=np.float32)
    if zeros:
        entries[np.arange(len(entries)), np.abs(entries).argmin(axis=1)] = 0.0
    scale = np.array(parameters.scale, dtype=np.float32)
    scaled = bool((scale != 1.0).any())
    spread = functools.partial(_spread, fmt, tuple(weight.shape))
    shape = [1] * weight.ndim
    if levels.ndim > 1 and isinstance(fmt.granularity, PerChannel):
        shape[fmt.granularity.axis] = len(entries)
    return Clusters(
        weight / spread(torch.from_numpy(scale)) if scaled else weight,
        torch.from_numpy(entries),
        torch.arange(len(entries)).reshape(shape),
        scale=torch.from_numpy(scale) if scaled else None,
        spread=spread if scaled else None,
        soft=soft,
        zero=zeros,
    )


def _found_clusters(weight: torch.Tensor, axis: int, soft: float) -> Clusters | None:
    """Return the codebooks of a weight that shares its values already; `None` if it has too many of its own.

    They are of the whole weight or, where that has too many values, of every channel.
    """
    values = torch.unique(weight)
    if len(values) <= min(_MOST_ENTRIES, max(weight.numel() // 2, 1)):
        return Clusters(weight, values[None], torch.zeros([1] * weight.ndim, dtype=torch.int64), soft=soft)
    rows = [torch.unique(row) for row in weight.movedim(axis, 0)]
    longest = max(len(row) for row in rows)
    if longest > min(_MOST_ENTRIES, max(weight.numel() // len(rows) // 2, 1)):
        return None
    entries = torch.stack([torch.cat([row, row[-1:].expand(longest - len(row))]) for row in rows])
    shape = [1] * weight.ndim
    shape[axis] = len(rows)
    return Clusters(weight, entries, torch.arange(len(rows)).reshape(shape), soft=soft)


def quantized_tensors(origin: Origin) -> dict[str, list[ActivationPlan]]:
    """Return the entries of the plan that share a scale, by the first one's tensor."""
    groups: dict[tuple[float, int, str], list[ActivationPlan]] = {}
    for tensor in origin.plan.activations:
        groups.setdefault((tensor.scale, tensor.zero_point, tensor.format), []).append(tensor)
    return {members[0].tensor: members for members in groups.values()}


def _activations(
    origin: Origin, editor: Editor, sites: dict[str, Site], added: list[ir.Value]
) -> dict[str, LearnedActivation]:
    """Put codes behind every tensor that carries them, for those that read them."""
    graph = editor.model.graph
    static = [sites[entry.node] for entry in origin.plan.sites if entry.execution == "static"]
    writers = {node for site in static for node in (site.node, site.bias_node, *site.fused) if node is not None}
    readers = {site.node: site for site in static}
    values = {value.name: value for value in graph.inputs}
    values.update({value.name: value for node in graph for value in node.outputs})
    modules = {
        member.tensor: module
        for members in quantized_tensors(origin).values()
        for module in [_module(members)]
        for member in members
    }
    found: dict[str, LearnedActivation] = {}
    for tensor in origin.plan.activations:
        value = values.get(tensor.tensor)
        if value is None or (value.const_value is not None and not value.is_graph_input()):
            continue
        everyone = value.producer() in writers
        uses = [
            use
            for use in value.uses()
            if everyone or (use.node in readers and use.idx in readers[use.node].activations)
        ]
        codes = _outside(editor, f"{tensor.tensor}/codes", added)
        found[str(codes.name)] = modules[tensor.tensor]
        node = ir.node(
            OPERATOR,
            [value, codes],
            domain=DOMAIN,
            outputs=[ir.Value(name=editor.name(f"{tensor.tensor}/decoded"), shape=value.shape, type=value.type)],
            name=f"{tensor.tensor}/codes",
        )
        producer = value.producer()
        if producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(next(iter(graph)), node)
        for use in uses:
            use.node.replace_input_with(use.idx, node.outputs[0])
        if everyone and not value.is_graph_output():
            _absorb_relu(producer, node, modules[tensor.tensor])
        if everyone:
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = node.outputs[0]
    return found


def _absorb_relu(relu: ir.Node | None, codes: ir.Node, module: LearnedActivation) -> None:
    """Leave out a Relu whose clipping the codes behind it do already."""
    if relu is None or relu.op_type != "Relu" or module.learned_zero_point or module.clips not in {None, (0.0, None)}:
        return
    shared = sum(use.node.op_type == OPERATOR for use in relu.outputs[0].uses())
    if module.fixed_zero_point != module.low or len(relu.outputs[0].uses()) != shared or module.readers > 1:
        return
    module.clips = (0.0, None)
    codes.replace_input_with(0, relu.inputs[0])
    assert relu.graph is not None
    relu.graph.remove(relu, safe=True)


def _rounded_biases(
    origin: Origin,
    editor: Editor,
    sites: dict[str, Site],
    added: list[ir.Value],
    starts: dict[str, NDArray[np.float32]],
    weights: dict[str, TrainableWeight],
    activations: dict[str, LearnedActivation],
) -> dict[str, TrainableBias]:
    """Return the biases of few bits' operators: whole multiples of a scale so coarse that training has to see it."""
    bits = {tensor.tensor: parse_format(tensor.format).element.bits for tensor in origin.plan.activations}
    original = {site.path: site for site in find_sites(origin.model, origin.target)}
    found: dict[str, TrainableBias] = {}
    for entry in origin.plan.sites:
        site, before = sites[entry.node], original[entry.node]
        weight = weights.get(f"{entry.node}/weight")
        source = before.node.inputs[0]
        if entry.execution != "static" or before.bias is None or weight is None or weight.quantizer is None:
            continue
        codes = activations.get(f"{source.name}/codes") if source is not None else None
        few = entry.weights is not None and parse_format(entry.weights).element.bits < _BYTE
        if codes is None or origin.target.float_bias or not (few or bits[str(source.name)] < _BYTE):  # type: ignore[union-attr]
            continue
        holder = site.bias_node or site.node
        index = next(i for i, one in enumerate(holder.inputs) if one is site.bias)
        name = str(before.bias.name)
        start = starts.get(name)
        if start is None:
            assert before.bias.const_value is not None
            start = np.array(before.bias.const_value.numpy(), dtype=np.float32)
        shape = tuple(int(size) for size in before.bias.const_value.shape.numpy())  # type: ignore[union-attr]
        value = _outside(editor, f"{entry.node}/bias", added)
        holder.replace_input_with(index, value)
        found[str(value.name)] = TrainableBias(
            torch.from_numpy(np.array(start, dtype=np.float32).reshape(shape)), weight, codes
        )
    return found


def _module(members: Sequence[ActivationPlan]) -> LearnedActivation:
    tensor = members[0]
    fmt = parse_format(tensor.format)
    if fmt.element.kind != "integer":
        raise RecipeError(
            f"activations are {fmt}", cause="training has integers for them", remedy="use uint8, uint4 or uint2"
        )
    low, high = (int(end) for end in fmt.code_range())
    fixed = any(member.reason.startswith("range of") for member in members)
    module = LearnedActivation(
        tensor.scale,
        tensor.zero_point,
        low=low,
        high=high,
        learned=not fixed,
        learned_zero_point=not fmt.symmetric and tensor.zero_point > low,
    )
    module.readers = len(members)
    return module


def _learned_initializers(model: ir.Model) -> set[str]:
    """Return the initializers that learn inside of the graph: biases, normalizations, what recurrent layers have."""
    found: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        positions = _LEARNED.get(node.op_type, (0, 1) if node.op_type in _BROADCAST else ())
        for index in positions:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
                continue
            if node.op_type not in _BROADCAST or value.const_value.size > 1:
                found.add(str(value.name))
    return found


def without_corrections(entry: SitePlan) -> SitePlan:
    """Return an entry without what post-training quantization has made up for: the trained weights hold it."""
    return dataclasses.replace(entry, rounding=None, input_mean=None, bias=None)
