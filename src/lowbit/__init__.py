"""lowbit makes trained neural networks small and fast for the device they will run on, and proves that they still work.

    import lowbit
    result = lowbit.quantize("model.onnx", data=batches)
    result.save("model.int8.onnx")
    print(result)

Heavy libraries are imported when a verb is called, so that importing lowbit costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lowbit.exceptions import LowbitError

if TYPE_CHECKING:
    from lowbit.data import Preprocessing
    from lowbit.importing import import_model
    from lowbit.methods.channel_pruning import ChannelPruning
    from lowbit.methods.check import check
    from lowbit.methods.compare import compare
    from lowbit.methods.compress import compress
    from lowbit.methods.compression import Compression
    from lowbit.methods.diagnose import Diagnosis, diagnose
    from lowbit.methods.export import Exported, export
    from lowbit.methods.finalize import finalize
    from lowbit.methods.inspect import inspect
    from lowbit.methods.pack import pack, unpack
    from lowbit.methods.prune import Pruning, prune
    from lowbit.methods.prune_branches import prune_branches
    from lowbit.methods.prune_channels import prune_channels
    from lowbit.methods.qat import Distillation, Training, distill, qat
    from lowbit.methods.quantize import quantize
    from lowbit.methods.result import Result
    from lowbit.methods.share import Shared, share
    from lowbit.methods.trainable import trainable
    from lowbit.plan.compression import CompressionRecipe
    from lowbit.plan.plan import Plan
    from lowbit.plan.recipe import Recipe, Rule
    from lowbit.training.gradual import GradualPruning

__version__ = "0.1.0"

__all__ = [
    "ChannelPruning",
    "Compression",
    "CompressionRecipe",
    "Diagnosis",
    "Distillation",
    "Exported",
    "GradualPruning",
    "LowbitError",
    "Plan",
    "Preprocessing",
    "Pruning",
    "Recipe",
    "Result",
    "Rule",
    "Shared",
    "Training",
    "__version__",
    "check",
    "compare",
    "compress",
    "diagnose",
    "distill",
    "export",
    "finalize",
    "import_model",
    "inspect",
    "pack",
    "prune",
    "prune_branches",
    "prune_channels",
    "qat",
    "quantize",
    "share",
    "trainable",
    "unpack",
]

_HOMES = {
    "ChannelPruning": "lowbit.methods.channel_pruning",
    "Compression": "lowbit.methods.compression",
    "CompressionRecipe": "lowbit.plan.compression",
    "Diagnosis": "lowbit.methods.diagnose",
    "Distillation": "lowbit.methods.qat",
    "GradualPruning": "lowbit.training.gradual",
    "Exported": "lowbit.methods.export",
    "Plan": "lowbit.plan.plan",
    "Preprocessing": "lowbit.data",
    "Pruning": "lowbit.methods.prune",
    "Recipe": "lowbit.plan.recipe",
    "Result": "lowbit.methods.result",
    "Rule": "lowbit.plan.recipe",
    "Shared": "lowbit.methods.share",
    "Training": "lowbit.methods.qat",
    "check": "lowbit.methods.check",
    "compare": "lowbit.methods.compare",
    "compress": "lowbit.methods.compress",
    "diagnose": "lowbit.methods.diagnose",
    "distill": "lowbit.methods.qat",
    "finalize": "lowbit.methods.finalize",
    "export": "lowbit.methods.export",
    "import_model": "lowbit.importing",
    "inspect": "lowbit.methods.inspect",
    "pack": "lowbit.methods.pack",
    "prune": "lowbit.methods.prune",
    "prune_branches": "lowbit.methods.prune_branches",
    "prune_channels": "lowbit.methods.prune_channels",
    "qat": "lowbit.methods.qat",
    "quantize": "lowbit.methods.quantize",
    "share": "lowbit.methods.share",
    "trainable": "lowbit.methods.trainable",
    "unpack": "lowbit.methods.pack",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
