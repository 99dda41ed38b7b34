"""A walk through a quantized model, layer by layer beside the float one, in which each layer may still be changed.

Every layer sees what the layers before it give as they were left: float on one side, in codes on the other. One layer's
tensors of all samples are held, in memory as far as they fit and on disk beyond.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from typing import TYPE_CHECKING

import torch

from lowbit.formats import parse_format
from lowbit.graph.constants import constant_array
from lowbit.methods.block_samples import given, open_stream
from lowbit.methods.learned_graph import DROPPED, block_module, learned_graph
from lowbit.methods.learned_weights import WeightEncoder
from lowbit.methods.planned_weight import planned_weight
from lowbit.methods.site_weights import final_bias
from lowbit.plan.sites import Site, find_sites
from lowbit.reconstruction.partition import Block, partition
from lowbit.reconstruction.store import TensorStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.interpreter import Interpreter
    from lowbit.methods.block_samples import Stream
    from lowbit.methods.weights import EncodedWeight
    from lowbit.plan.plan import Plan, SitePlan
    from lowbit.runtime.session import Feed
    from lowbit.targets import Target

__all__ = ["Layer", "count_layers", "walked"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Gather"})


def walked(
    model: ir.Model,
    plan: Plan,
    target: Target,
    feeds: Iterable[Feed],
    change: Callable[[Layer], SitePlan],
    *,
    samples: int = 64,
    memory: int = 1 << 30,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Return a plan with every static and weight-only layer as `change` leaves it, from the first to the last.

    Args:
        model: The cleaned float model; left unchanged.
        plan: The plan to start from.
        target: Where the model will run.
        feeds: Calibration samples.
        change: Returns the entry of a layer, given what it reads and gives.
        samples: How many samples at most.
        memory: Bytes of activations in memory.
        advance: Called after every layer.

    Raises:
        ModelError: The graph has element types that PyTorch does not have.
    """
    walk = _Walk(model, find_sites(model, target), plan, target)
    blocks = _blocks(model, walk.everyone)
    with TensorStore(memory // 2) as exact, TensorStore(memory // 2) as coded:
        stream = open_stream(exact, coded, islice(feeds, samples))
        for index, block in enumerate(blocks):
            walk.pass_through(block, stream, change)
            later = {one for after in blocks[index + 1 :] for one in after.inputs}
            exact.keep_only(later)
            coded.keep_only(later)
            advance()
    return dataclasses.replace(plan, sites=tuple(walk.entries[entry.node] for entry in plan.sites))


def count_layers(model: ir.Model, target: Target) -> int:
    """Return how often `walked` calls `advance`."""
    return len(_blocks(model, [site for site in find_sites(model, target) if _has_weight(site)]))


class Layer:
    """One layer of the walk.

    Args:
        walk: The walk.
        site: The layer.
        block: The nodes that it is computed with.
        stream: What they read.

    Attributes:
        site: The layer.
        entry: Its entry in the plan.
        encoded: Its weight as codes.
        bias: Its bias, corrected or learned; `None` if it has none.
        samples: How many samples there are.
    """

    def __init__(self, walk: _Walk, site: Site, block: Block, stream: Stream) -> None:
        self._walk, self._block, self._stream = walk, block, stream
        self.site = site
        self.entry = walk.entries[site.path]
        self.encoded = walk.encoded(site, self.entry)
        self.bias = final_bias(site, self.encoded, self.entry)
        self.samples = stream.samples

    def nearest(self, entry: SitePlan, scale: NDArray[np.float32] | None) -> EncodedWeight:
        """Return its weight rounded to nearest, with other scales or those that follow from its range."""
        return self._walk.encoder.nearest(self.site, entry, scale)

    def inputs(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield what it reads of every sample: in float, and decoded from what the coded layers before it give."""
        read = self.site.node.inputs[0]
        assert read is not None
        node = self._walk.nodes[self.site.node.name or ""]
        decoded = node.inputs[0]
        assert decoded is not None
        return self._pairs(str(read.name), str(decoded.name))

    def outputs(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Yield what it gives of every sample behind its bias: in float, and as its entry has it."""
        name = str((self.site.bias_node or self.site.node).outputs[0].name)
        return self._pairs(name, name)

    def _pairs(self, exact: str, coded: str) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        sides = (
            _Side(self._walk.model, self._block, exact, self._stream.exact, {}),
            _Side(self._walk.learned.model, self._block, coded, self._stream.coded, self._walk.outside(self._block)),
        )
        for sample in range(self.samples):
            first, second = (side(sample) for side in sides)
            yield first, second


class _Side:
    """One tensor of a block, sample by sample."""

    def __init__(
        self, model: ir.Model, block: Block, name: str, store: TensorStore, outside: Mapping[str, torch.Tensor]
    ) -> None:
        self.block, self.name, self.store, self.outside = block, name, store, outside
        self.module = None if name in block.inputs else _module(model, block, (name,))

    def __call__(self, sample: int) -> NDArray[np.float32]:
        if self.module is None:
            found = self.store.get(self.name, sample)
        else:
            (found,) = _run(self.module, self.block, self.store, sample, self.outside)
        array: NDArray[np.float32] = found.numpy()
        return array


class _Walk:
    """The plan as it stands, and the graph that computes it.

    Args:
        model: The cleaned float model.
        sites: Its sites.
        plan: The plan to start from.
        target: Where the model will run.
    """

    def __init__(self, model: ir.Model, sites: Sequence[Site], plan: Plan, target: Target) -> None:
        self.model = model
        self.everyone = [site for site in sites if _has_weight(site)]
        self.entries = {entry.node: entry for entry in plan.sites}
        self.sites = {site.path: site for site in self.everyone if _rounded(self.entries.get(site.path))}
        self.learned = learned_graph(model, plan, target, self.sites)
        self.nodes = {node.name: node for node in self.learned.model.graph}
        tensors = {tensor.tensor: tensor for tensor in plan.activations}
        self.scales = {
            self.learned.scales[name]: torch.tensor(math.log(tensor.scale), dtype=torch.float64).float()
            for name, tensor in tensors.items()
            if name in self.learned.scales
        }
        self.encoder = WeightEncoder(
            target=target, method=plan.options.get("weight_range", "minmax"), tensors=tensors, moved={}
        )

    def encoded(self, site: Site, entry: SitePlan) -> EncodedWeight:
        """Return a weight with the codes of its entry."""
        if entry.execution == "weight-only":
            return planned_weight(site, parse_format(entry.weights or ""), entry, self.encoder.method)
        return self.encoder.planned(site, entry)

    def outside(self, block: Block) -> dict[str, torch.Tensor]:
        """Return what the coded graph takes from outside for a block, as entries stand now."""
        found = {**self.scales, DROPPED: torch.tensor(0.0)}
        inside = set(block.nodes)
        for path, site in self.sites.items():
            if site.node not in inside:
                continue
            entry = self.entries[path]
            encoded = self.encoded(site, entry)
            found[self.learned.weights[path]] = torch.from_numpy(encoded.decode().copy())
            bias = final_bias(site, encoded, entry)
            if path in self.learned.biases and bias is not None:
                assert site.bias is not None
                shape = tuple(constant_array(site.bias).shape)  # type: ignore[union-attr]
                found[self.learned.biases[path]] = torch.from_numpy(bias.reshape(shape).copy())
        return found

    def pass_through(self, block: Block, stream: Stream, change: Callable[[Layer], SitePlan]) -> None:
        """Let the layers of a block be changed, and move both streams behind it."""
        inside = set(block.nodes)
        for path, site in self.sites.items():
            if site.node in inside and constant_array(site.node.inputs[0]) is None:
                self.entries[path] = change(Layer(self, site, block, stream))
        if not block.outputs:
            return
        for model, store, outside in (
            (self.model, stream.exact, {}),
            (self.learned.model, stream.coded, self.outside(block)),
        ):
            module = _module(model, block, block.outputs)
            for sample in range(stream.samples):
                given_back = _run(module, block, store, sample, outside)
                for name, tensor in zip(block.outputs, given_back, strict=True):
                    store.put(name, sample, tensor)


def _module(model: ir.Model, block: Block, outputs: Sequence[str]) -> Interpreter:
    module = block_module(model, block.inputs, outputs)
    module.requires_grad_(requires_grad=False)
    return module


def _run(
    module: Interpreter, block: Block, store: TensorStore, sample: int, outside: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    known = set(module.input_names)
    named = {**given(module, block, store, sample), **{name: one for name, one in outside.items() if name in known}}
    with torch.no_grad():
        found: tuple[torch.Tensor, ...] = module(**named)
    return found


def _has_weight(site: Site) -> bool:
    return site.op_type in _WEIGHTED and site.weight_index is not None and not site.subgraph


def _rounded(entry: SitePlan | None) -> bool:
    return entry is not None and entry.weights is not None and entry.execution in {"static", "weight-only"}


def _blocks(model: ir.Model, sites: Sequence[Site]) -> tuple[Block, ...]:
    """Return the graph cut between all layers."""
    groups = [[node for node in (site.node, site.bias_node, *site.fused) if node is not None] for site in sites]
    return partition(model.graph, groups, fewest=1, most=1)
