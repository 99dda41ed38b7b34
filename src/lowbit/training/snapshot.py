"""The state of a training on disk, from which it continues bit for bit."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowbit.exceptions import OutputError, RecipeError

if TYPE_CHECKING:
    from lowbit.training.module import TrainableModel

__all__ = ["load_masks", "load_snapshot", "save_snapshot"]

_VERSION = 2


def save_snapshot(path: Path, state: dict[str, Any], identity: str) -> None:
    """Write a state; whatever stood at the path stays until all of it is on disk.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"the checkpoint '{path}' cannot be written", cause=str(error)) from error
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"version": _VERSION, "identity": identity, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(f"the checkpoint '{path}' cannot be written", cause=str(error)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_snapshot(path: Path, identity: str) -> dict[str, Any] | None:
    """Return the state of a training that was interrupted, `None` if there is none.

    Raises:
        RecipeError: The file belongs to another training, or is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known, version = state["identity"], state["version"]
    except Exception as error:  # A damaged file makes PyTorch raise whatever it meets first.
        raise RecipeError(
            f"the checkpoint '{path}' cannot be read", cause=str(error).splitlines()[0], remedy="delete it"
        ) from error
    if known != identity or version != _VERSION:
        raise RecipeError(
            f"the checkpoint '{path}' belongs to another training",
            cause="model, plan or settings differ",
            remedy="give the same arguments as before, another path, or delete it",
        )
    return state


def load_masks(module: TrainableModel, state: dict[str, torch.Tensor]) -> None:
    """Make room for the masks of a state that a module does not have yet."""
    for name, weight in module.weights.items():
        mask = state.get(f"weights.{name}.mask")
        if mask is not None and weight.mask is None:
            weight.set_mask(torch.ones_like(mask))
