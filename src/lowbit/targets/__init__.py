"""What each engine and instruction set can do: data, one file a target. May import `lowbit.formats` and below."""

from lowbit.targets.registry import TARGETS, find_target, host_target
from lowbit.targets.target import CostModel, OperatorSupport, Target

__all__ = ["TARGETS", "CostModel", "OperatorSupport", "Target", "find_target", "host_target"]
