"""Training what an ONNX graph computes: quantizers, masks and codebooks as modules, losses, and the loop around them.

Knows tensors and modules; plans and engines are above it. May import from `interpreter`, `reconstruction` and below.
"""

from __future__ import annotations

from lowbit.training.activation import LearnedActivation
from lowbit.training.module import TrainableModel
from lowbit.training.weight import TrainableWeight

__all__ = ["LearnedActivation", "TrainableModel", "TrainableWeight"]
