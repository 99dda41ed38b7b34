"""Every error that lowbit raises on purpose.

All of them derive from `LowbitError` and say three things: the value that is wrong, the cause, and the remedy. The
command line prints them on one line and exits with status 2; a traceback from lowbit is therefore always a bug.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "EngineError",
    "FormatError",
    "LowbitError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "TargetError",
    "TrainingError",
]


class LowbitError(Exception):
    """Base class of lowbit's errors.

    Args:
        what: The offending value and what is wrong with it, as one sentence without a final full stop.
        cause: Why it happened, where that is not plain from `what`.
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, *, cause: str = "", remedy: str = "") -> None:
        self.what = what
        self.cause = cause
        self.remedy = remedy
        super().__init__(what, cause, remedy)

    def __str__(self) -> str:
        """Return the error as one line: value, cause, remedy."""
        parts = [part.strip().rstrip(".") for part in (self.what, self.cause, self.remedy) if part]
        return " ".join(". ".join(parts).split()) + "."


class ModelError(LowbitError):
    """The model cannot be read, is not valid ONNX, or refers to data that may not be read."""


class DataError(LowbitError):
    """The calibration or test data do not fit the model, are empty, or hold NaN or infinity."""


class FormatError(LowbitError):
    """A number format does not exist, or cannot hold what it was asked to hold."""


class RecipeError(LowbitError):
    """A recipe, plan or option is malformed or contradicts itself."""


class TargetError(LowbitError):
    """A target is unknown, or cannot do what was asked of it."""


class EngineError(LowbitError):
    """An inference engine is missing, refused a model, or failed while running it."""


class OutputError(LowbitError):
    """An output cannot be written; whatever stood at its path before is untouched."""


class TrainingError(LowbitError):
    """Training cannot begin or go on: no gradient reaches a weight, or the loss is no number."""
