"""Learning by gradient what a quantized block should be: roundings, scales and biases that restore its float outputs.

Knows tensors, modules and blocks of a graph; plans and engines are above it.
"""

from __future__ import annotations

from lowbit.reconstruction.partition import Block, partition

__all__ = ["Block", "partition"]
