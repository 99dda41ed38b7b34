"""The graph of a plan as a module in which everything learns: weights and codes come in from outside."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from lowbit.exceptions import ModelError
from lowbit.graph.constants import constant_array
from lowbit.graph.editor import Editor
from lowbit.interpreter import Interpreter
from lowbit.methods.learned_graph import for_any_batch
from lowbit.methods.site_weights import final_bias
from lowbit.methods.training_codes import learned_activations, rounded_biases
from lowbit.methods.training_sites import has_trained_weight, weighted_sites
from lowbit.methods.training_weights import encoded_weight, trainable_weights
from lowbit.plan.sites import Site, find_sites
from lowbit.training.activation import DOMAIN
from lowbit.training.module import TrainableModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.methods.trainable import Origin

__all__ = ["build_module"]

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
    weights = trainable_weights(origin, editor, sites, added, keep_zeros=keep_zeros, keep_clusters=keep_clusters)
    activations = learned_activations(origin, editor, sites, added)
    rounded = rounded_biases(origin, editor, sites, added, biases, weights, activations)
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
        if entry.input_mean is None or site.bias is None or entry.weights is None or not has_trained_weight(site):
            continue
        bias = final_bias(site, encoded_weight(site, entry), entry)
        if bias is not None:
            found[str(site.bias.name)] = bias
    return found


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
