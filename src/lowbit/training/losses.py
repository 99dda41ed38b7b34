"""What training minimizes: distance to labels, and to what a teacher computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import functional

from lowbit.exceptions import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["attention_distance", "feature_distance", "label_loss", "relative_error", "soft_loss"]

_SMALLEST = 1e-12


def label_loss(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy for classes, the mean squared error for numbers.

    Args:
        scores: `[N, C]` or `[N, ..., C]` logits for classes; the output otherwise.
        target: `[N]` or `[N, ...]` whole numbers: classes; or of the shape of `scores`.

    Raises:
        DataError: The target fits neither.
    """
    if not target.is_floating_point() and target.shape == scores.shape[:-1]:
        return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), target.reshape(-1).long())
    if target.is_floating_point() and target.shape == scores.shape:
        return functional.mse_loss(scores, target)
    raise DataError(
        f"the targets are {str(target.dtype).removeprefix('torch.')} {list(target.shape)}, the model's output "
        f"{list(scores.shape)}",
        remedy="give classes as whole numbers, targets like the output, or a loss= of your own",
    )


def soft_loss(scores: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return `T² · KL(softmax(t / T) ‖ softmax(s / T))` (Hinton et al., Distilling the Knowledge in a Network, 2015).

    Args:
        scores: `[..., C]` logits of the student.
        wanted: The same of the teacher.
        temperature: T; higher ones look at the classes that are not the answer.
    """
    classes = scores.shape[-1]
    student = functional.log_softmax(scores.reshape(-1, classes) / temperature, dim=-1)
    teacher = functional.log_softmax(wanted.reshape(-1, classes) / temperature, dim=-1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the squared error over the square of what is wanted."""
    return (found - wanted).square().mean() / wanted.square().mean().clamp_min(_SMALLEST)


def attention_distance(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return how differently two feature maps look at their positions.

    Zagoruyko and Komodakis, Paying More Attention to Attention, 2017: the mean square over channels at every position,
    normalized. What is no map of features (rank 3 or 4 of a transformer's attention) is compared as it is.

    Args:
        found: `[N, C, H, W]`, or probabilities.
        wanted: The same of the teacher.
    """
    if found.ndim != 4:
        return relative_error(found, wanted)
    maps = [functional.normalize(one.square().mean(dim=1).flatten(1), dim=1) for one in (found, wanted)]
    return (maps[0] - maps[1]).square().sum(dim=1).mean()


def feature_distance(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> Any:
    """Return the mean relative error of all tensors that both have."""
    names = [name for name in found if name in wanted]
    if not names:
        return 0.0
    return sum(relative_error(found[name], wanted[name]) for name in names) / len(names)
