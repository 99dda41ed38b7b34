"""Finished steps of a chain on disk, from which it goes on."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import RecipeError
from lowbit.graph import load_model
from lowbit.graph.digest import digest

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.plan.compression import CompressionRecipe

__all__ = ["CompressionCheckpoint"]

_IDENTITY = "identity"


class CompressionCheckpoint:
    """Finished steps in a folder, and the identity of the call that they belong to.

    Args:
        folder: Where; `None` keeps nothing.
        model: As for `compress`.
        settings: The recipe.

    Raises:
        RecipeError: The folder belongs to another call, or holds something else.
    """

    def __init__(self, folder: Path | None, model: Any, settings: CompressionRecipe) -> None:
        self._folder = folder
        if folder is None:
            return
        text = json.dumps(settings.to_dict(), sort_keys=True) + digest(load_model(model))
        identity = hashlib.sha256(text.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        named = folder / _IDENTITY
        if not named.exists() and any(folder.iterdir()):
            raise RecipeError(
                f"the checkpoint '{folder}' holds other files",
                cause="what a chain keeps there is deleted when it is done",
                remedy="name a folder that is empty, or does not exist",
            )
        if named.exists() and named.read_text(encoding="utf-8") != identity:
            raise RecipeError(
                f"the checkpoint '{folder}' is of another model or recipe", remedy="delete it, or name another folder"
            )
        named.write_text(identity, encoding="utf-8")
        self._steps = len(settings.steps)

    def finished(self, number: int) -> bytes | None:
        """Return the file of a step that was finished before."""
        path = None if self._folder is None else self._folder / f"{number}.onnx"
        return path.read_bytes() if path is not None and path.exists() else None

    def finish(self, number: int, file: Path) -> None:
        """Keep the file of a step."""
        if self._folder is not None:
            part = self._folder / f"{number}.part"
            part.write_bytes(file.read_bytes())
            part.replace(self._folder / f"{number}.onnx")

    def training(self, number: int) -> Path | None:
        """Return where the training of a step keeps its state."""
        return None if self._folder is None else self._folder / f"{number}.training"

    def clear(self) -> None:
        """Delete what was kept, and nothing else."""
        if self._folder is None:
            return
        kept = [f"{number}{suffix}" for number in range(self._steps) for suffix in (".onnx", ".training", ".part")]
        for name in (_IDENTITY, *kept):
            (self._folder / name).unlink(missing_ok=True)
        if not any(self._folder.iterdir()):
            self._folder.rmdir()
