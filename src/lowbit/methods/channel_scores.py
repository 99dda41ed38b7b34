"""How much the units of every group matter: by weights, by BatchNorm scales, or by gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.exceptions import RecipeError
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.data import Feed
    from lowbit.graph.channels import ChannelGroup

__all__ = ["GRADIENT_CRITERIA", "ChannelCriterion", "channel_scores", "gradient_scores"]

ChannelCriterion = Literal["l1", "l2", "batch-norm", "taylor", "fisher"]
GRADIENT_CRITERIA = ("taylor", "fisher")


def channel_scores(
    model: ir.Model, groups: Sequence[ChannelGroup], criterion: ChannelCriterion
) -> list[NDArray[np.float64]]:
    """Score units by their weights (Li et al. 2017) or BatchNorm scales (Liu et al., network slimming, 2017).

    Every weight's scores are divided by their mean, so that layers of different size are comparable; those of a group
    are averaged over its weights.

    Returns:
        `[U]` float64 for every group.

    Raises:
        RecipeError: A group has no BatchNorm behind it.
    """
    scales = {
        str(node.inputs[1].name)
        for node in model.graph
        if node.op_type == "BatchNormalization" and node.inputs[1] is not None
    }
    found = []
    for group in groups:
        parts = []
        for (name, axis), places in group.members.items():
            array = constant_array(model.graph.initializers[name])
            assert array is not None
            wanted = name in scales if criterion == "batch-norm" else group.roles[name, axis] == "makes"
            if not wanted:
                continue
            rows = np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)
            of_unit = rows[places].reshape(len(places), -1)
            norm = np.sqrt((of_unit**2).sum(axis=1)) if criterion == "l2" else np.abs(of_unit).sum(axis=1)
            parts.append(norm / max(float(norm.mean()), 1e-30))
        if not parts:
            raise RecipeError(
                f"the criterion batch-norm was asked for, but no BatchNorm scales the channels of {group.name}",
                remedy="exclude that operator, or use the criterion l2",
            )
        found.append(np.mean(parts, axis=0))
    return found


def gradient_scores(
    model: ir.Model,
    groups: Sequence[ChannelGroup],
    samples: Iterable[tuple[Feed, Any]],
    criterion: ChannelCriterion,
    *,
    loss: Callable[..., Any] | None = None,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> list[NDArray[np.float64]]:
    """Score units by what the loss does when they go, to first order, sample by sample.

    The derivative of the loss by a factor on all channels of a unit is the sum of `w · dL/dw` over the weights and
    biases that make them. `taylor` is the mean of its magnitude (Molchanov et al. 2017), `fisher` half the mean of its
    square (Theis et al. 2018; Liu et al., group Fisher pruning, 2021). Without a loss the outputs are multiplied with
    random signs, so that the square is that of the change of all outputs.

    Args:
        model: The cleaned model.
        groups: What to score.
        samples: Feeds, each with its labels or `None`.
        criterion: `taylor` or `fisher`.
        loss: Takes the tuple of outputs and the labels, returns a scalar tensor.
        seed: Of the random signs.
        advance: Called after every sample.

    Returns:
        `[U]` float64 for every group.
    """
    import torch

    from lowbit.interpreter import to_torch

    module = to_torch(model)
    parameters = dict(module.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    totals = [np.zeros(len(group.units)) for group in groups]
    count = 0
    for feed, labels in samples:
        outputs = module(**{name: torch.from_numpy(np.array(array)) for name, array in feed.items()})
        if loss is not None:
            value = loss(outputs, labels)
        else:
            real = [output for output in outputs if output.is_floating_point()]
            signs = [torch.randint(0, 2, output.shape, generator=generator) * 2 - 1 for output in real]
            value = sum((output * sign).sum() for output, sign in zip(real, signs, strict=True))
        module.zero_grad(set_to_none=True)
        value.backward()
        for total, group in zip(totals, groups, strict=True):
            slope = np.zeros(len(group.units))
            for (name, axis), places in group.members.items():
                parameter = parameters.get(name)
                if group.roles[name, axis] == "reads" or parameter is None or parameter.grad is None:
                    continue
                product = (parameter.detach() * parameter.grad).double().numpy()
                slope += np.moveaxis(product, axis, 0).reshape(product.shape[axis], -1).sum(axis=1)[places].sum(axis=1)
            total += np.abs(slope) if criterion == "taylor" else slope**2 / 2
        count += 1
        advance()
    return [total / max(count, 1) for total in totals]
