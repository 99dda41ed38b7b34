"""What a weight whose rounding is learned can do, whatever it learns by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["SoftWeight"]


class SoftWeight(Protocol):
    """A weight on its way to codes; what `decoded` returns is what the model gets in the end."""

    position: torch.nn.Parameter
    """What the rounding is learned by, shaped like the weight."""

    def __call__(self) -> torch.Tensor:
        """Return the weight that gradients pass through."""

    def scales(self) -> list[torch.nn.Parameter]:
        """Return the logarithms of scales that are learned; none if they stay."""

    def codes(self) -> torch.Tensor:
        """Return the codes: float32 that hold integers."""

    def scale(self) -> torch.Tensor:
        """Return the scale that decodes, in the shape that it was given in."""

    def decoded(self) -> torch.Tensor:
        """Return the decoded weight."""

    def confine(self) -> None:
        """Move back what went too far; called after every step."""

    def undecided(self, progress: float) -> torch.Tensor | None:
        """Return how far the weight is from codes, summed over its elements; `None` where it always is at codes.

        Args:
            progress: Fraction of the steps that are done.
        """

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield everything that is learned, always in the same order."""
