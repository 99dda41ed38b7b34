"""Learning that survives an interruption: every block that is done, on disk, and what it belongs to."""

from __future__ import annotations

import hashlib
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowbit.exceptions import OutputError, RecipeError
from lowbit.graph.digest import digest
from lowbit.methods.checkpoint import write_arrays
from lowbit.reconstruction.learning import LearnedBlock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from lowbit.plan.plan import Plan
    from lowbit.runtime.session import Feed

__all__ = ["LearningCheckpoint", "identity_of"]

_REMEDY = "delete the folder to start over, or name another checkpoint"
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def identity_of(model: ir.Model, plan: Plan, feeds: Iterable[Feed], settings: Sequence[object]) -> str:
    """Return what learning depends on, as 64 hexadecimal digits.

    Args:
        model: The cleaned float model.
        plan: The plan that learning starts from.
        feeds: The samples; their bytes count.
        settings: Whatever else, with a `repr` that tells values apart.
    """
    found = hashlib.sha256(digest(model).encode())
    found.update(json.dumps(plan.to_dict(), sort_keys=True, default=repr).encode())
    for feed in feeds:
        for name, array in sorted(feed.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
    found.update(repr(list(settings)).encode())
    return found.hexdigest()


class LearningCheckpoint:
    """Where one learning stores the blocks that are done, one file each, and finds them again.

    Args:
        folder: Made when the first block is stored.
        identity: What the blocks depend on; see `identity_of`.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def load(self, name: str, start: Sequence[torch.Tensor]) -> tuple[LearnedBlock, list[torch.Tensor]] | None:
        """Return what was learned for a block, or `None` if it is not there yet.

        Args:
            name: Name of the block.
            start: What it starts from: as many tensors, of the same shapes.

        Raises:
            RecipeError: The file belongs to other learning, or is damaged.
        """
        path = self.folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays: dict[str, Any] = {key: stored[key] for key in stored.files}
            if str(arrays["identity"]) != self.identity:
                raise self._foreign(path)
            before, after = (float(value) for value in arrays["errors"])
            result = LearnedBlock(before=before, after=after, steps=int(arrays["steps"]))
            state = [torch.from_numpy(arrays[f"state{index}"].copy()) for index in range(len(start))]
        except _DAMAGED as error:
            raise RecipeError(f"the checkpoint '{path}' cannot be read", cause=str(error), remedy=_REMEDY) from error
        if any(one.shape != other.shape for one, other in zip(state, start, strict=True)):
            raise self._foreign(path)
        return result, state

    def save(self, name: str, result: LearnedBlock, state: Sequence[torch.Tensor]) -> None:
        """Store what was learned for a block.

        Raises:
            OutputError: The file cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the checkpoint '{self.folder}' cannot be made",
                cause=error.strerror or str(error),
                remedy="name a place in a folder that exists and has space",
            ) from error
        arrays = {
            "identity": np.asarray(self.identity),
            "errors": np.asarray([result.before, result.after], dtype=np.float64),
            "steps": np.asarray(result.steps),
            **{f"state{index}": tensor.numpy() for index, tensor in enumerate(state)},
        }
        write_arrays(self.folder / f"{name}.npz", arrays)

    @staticmethod
    def _foreign(path: Path) -> RecipeError:
        return RecipeError(
            f"the checkpoint '{path}' belongs to other learning",
            cause="the model, the plan, the data or the schedule differ",
            remedy=_REMEDY,
        )
