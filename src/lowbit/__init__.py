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
    from lowbit.methods.check import check
    from lowbit.methods.compare import compare
    from lowbit.methods.diagnose import Diagnosis, diagnose
    from lowbit.methods.inspect import inspect
    from lowbit.methods.prune import prune
    from lowbit.methods.pruned import PruneResult
    from lowbit.methods.quantize import quantize
    from lowbit.methods.result import Result
    from lowbit.plan.plan import Plan
    from lowbit.plan.recipe import Recipe, Rule

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "LowbitError",
    "Plan",
    "Preprocessing",
    "PruneResult",
    "Recipe",
    "Result",
    "Rule",
    "__version__",
    "check",
    "compare",
    "diagnose",
    "inspect",
    "prune",
    "quantize",
]

_HOMES = {
    "Diagnosis": "lowbit.methods.diagnose",
    "Plan": "lowbit.plan.plan",
    "Preprocessing": "lowbit.data",
    "PruneResult": "lowbit.methods.pruned",
    "Recipe": "lowbit.plan.recipe",
    "Result": "lowbit.methods.result",
    "Rule": "lowbit.plan.recipe",
    "check": "lowbit.methods.check",
    "compare": "lowbit.methods.compare",
    "diagnose": "lowbit.methods.diagnose",
    "inspect": "lowbit.methods.inspect",
    "prune": "lowbit.methods.prune",
    "quantize": "lowbit.methods.quantize",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
