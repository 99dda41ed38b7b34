"""`--metric module:function`: finding the user's own measure of quality, and saying what is wrong with it."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import DataError, LowbitError, RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.methods.verify import Metric

__all__ = ["load_metric"]


def load_metric(text: str | None) -> Metric | None:
    """Import a metric; modules in the current folder are found too.

    Args:
        text: `module:function`, where the function may lie deeper (`module:Class.method`).

    Raises:
        RecipeError: The text is not of this form, the module cannot be imported or has no such function.
    """
    if text is None:
        return None
    module_name, colon, name = text.partition(":")
    if not (colon and module_name and name):
        raise RecipeError(f"--metric is {text!r}", remedy="write module:function, e.g. my_metrics:accuracy")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise RecipeError(
                f"--metric {text!r} names the module {module_name!r}, which is not found",
                remedy=f"put {module_name.split('.')[0]}.py into {here}, or install it",
            ) from error
        raise _broken(text, module_name, error) from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise _broken(text, module_name, error) from error
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise RecipeError(
            f"--metric {text!r}: the module {module_name!r} has no function {name!r}",
            remedy=f"it has {', '.join(known[:8])}" if known else "define it there",
        )
    return _guarded(found, name.rpartition(".")[2])


def _broken(text: str, module: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"--metric {text!r}: importing {module!r} failed",
        cause=f"{type(error).__name__}: {error}",
        remedy="`python -c 'import " + module + "'` shows where",
    )


def _guarded(function: Any, name: str) -> Metric:
    """Return the metric with its failures as errors that name it."""

    @functools.wraps(function)
    def metric(outputs: list[list[NDArray[Any]]], labels: NDArray[Any] | None) -> float:
        try:
            return float(function(outputs, labels))
        except LowbitError:
            raise
        except Exception as error:
            without = " (there are no labels: None was passed)" if labels is None else ""
            raise DataError(
                f"the metric {name!r} failed{without}",
                cause=f"{type(error).__name__}: {error}",
                remedy="it is called as metric(outputs, labels), outputs being one list of arrays per sample, and "
                "returns a number; LOWBIT_TRACEBACK=1 shows where it failed",
            ) from error

    metric.__name__ = name
    return metric
