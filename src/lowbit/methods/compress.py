"""The verb that chains what makes files small: prune, share, quantize, code, each keeping what the former made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import DataError, RecipeError
from lowbit.graph import load_model, save_model
from lowbit.graph.constants import constant_array
from lowbit.graph.digest import digest
from lowbit.methods.compression import Compression, CompressionStep
from lowbit.methods.distillation import Distillation
from lowbit.methods.stages import Stages, silent
from lowbit.plan.compression import Code, CompressionRecipe, Prune, Quantize, Share

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from lowbit.data import Preprocessing

__all__ = ["compress"]

_LATER = 0.2  # of the rate, for what comes after pruning


def compress(
    model: str | Path | onnx.ModelProto | ir.Model,
    data: Any,
    *,
    recipe: CompressionRecipe | str | Path | None = None,
    samples: Any = None,
    preprocessing: Preprocessing | None = None,
    measure: Callable[[Path], float] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    stages: Stages = silent,
    **options: Any,
) -> Compression:
    """Make a model many times smaller: prune, share, quantize and code it, in the order of a recipe.

    Every step learns from the float model, and from labels if the data have them, and keeps what the former made: zeros
    stay zero, and what shares a value keeps sharing it (Han et al., Deep Compression, 2016).

    Args:
        model: Path of an ONNX file, a `ModelProto` or an `onnx_ir.Model`; never changed.
        data: Training data as for `lowbit.qat`, with labels or without.
        recipe: A `CompressionRecipe` or the path of a YAML file.
        samples: Calibration samples as for `lowbit.quantize`, for what a step does without learning; by default `data`,
            as far as they are of such a kind.
        preprocessing: What to do to pictures.
        measure: Called with the ONNX file of every step; what it returns, such as an accuracy, is noted beside it.
        checkpoint: A folder in which finished steps, and the training of the one that was interrupted, are kept: the
            same call continues there, to the same bytes. It is emptied when everything is done.
        progress: Whether training shows a bar; by default where stderr is a terminal.
        stages: Shows progress of what is not training.
        **options: Fields of `CompressionRecipe`, e.g. `steps=[{"prune": {"amount": 0.9}}, "quantize", "code"]`.

    Raises:
        RecipeError: The steps make no sense, or a checkpoint belongs to another call.
        DataError: The data do not fit.
        ModelError: The model cannot be read, or a step finds nothing in it to work on.
        TrainingError: No gradient reaches a weight, or the loss is no number.
    """
    settings = _settings(recipe, options)
    kept = _Checkpoints(None if checkpoint is None else Path(checkpoint), model, settings)
    with tempfile.TemporaryDirectory(prefix="lowbit-compress-") as name:
        folder = Path(name)
        source = folder / "float.onnx"
        save_model(load_model(model), source)
        work = _Work(
            settings=settings,
            source=source,
            folder=folder,
            data=data,
            samples=samples,
            shared={"preprocessing": preprocessing, "stages": stages},
            progress=progress,
            kept=kept,
        )
        first = _row("float", source, 0.0, measure)
        rows = [dataclasses.replace(first, bytes=_own_bytes(model) or first.bytes)]
        packed: bytes | None = None
        current = source
        for number, step in enumerate(settings.steps):
            started = time.perf_counter()
            if isinstance(step, Code):
                packed = work.coded(current, step)
                rows.append(_packed_row(rows[-1], len(packed), time.perf_counter() - started))
                continue
            current = work.done(number, step, current)
            rows.append(_row(step.name, current, time.perf_counter() - started, measure))
        result = Compression(
            content=current.read_bytes(),
            packed=packed,
            steps=tuple(rows),
            recipe=settings,
            source=Path(model).name if isinstance(model, (str, Path)) else "model",
        )
    kept.clear()
    return result


def _settings(recipe: CompressionRecipe | str | Path | None, options: dict[str, Any]) -> CompressionRecipe:
    base = CompressionRecipe.from_yaml(recipe) if isinstance(recipe, (str, Path)) else recipe or CompressionRecipe()
    return CompressionRecipe.from_dict({**base.to_dict(), **options}) if options else base


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """Does one step after the other, from file to file."""

    settings: CompressionRecipe
    source: Path
    folder: Path
    data: Any
    samples: Any
    shared: dict[str, Any]
    progress: bool | None
    kept: _Checkpoints
    zeros: bool = False
    clusters: bool = False

    def done(self, number: int, step: Prune | Share | Quantize, current: Path) -> Path:
        """Return the file that a step makes, which a checkpoint may have already."""
        path = self.folder / f"{number}-{step.name}.onnx"
        before = self.kept.finished(number)
        if before is not None:
            path.write_bytes(before)
        else:
            self._do(number, step, current, path)
            self.kept.finish(number, path)
        self.zeros |= isinstance(step, Prune)
        self.clusters |= isinstance(step, Share)
        return path

    def _do(self, number: int, step: Prune | Share | Quantize, current: Path, path: Path) -> None:
        match step:
            case Prune(epochs=0):
                from lowbit.methods.prune import prune

                prune(current, step.amount, self._samples(), seed=self.settings.seed, **self.shared).save(path)
            case Prune():
                from lowbit.training.gradual import GradualPruning

                self._learn(number, step, current, path, quantized=False, masks=GradualPruning(amount=step.amount))
            case Share():
                from lowbit.methods.share import share

                found = share(
                    current,
                    step.entries,
                    granularity=step.granularity,
                    grid=step.grid,
                    data=self._samples(),
                    preprocessing=self.shared["preprocessing"],
                    seed=self.settings.seed,
                )
                found.save(path)
                if step.epochs:
                    self._learn(number, step, path, path, quantized=False, keep_zeros=self.zeros, keep_clusters=True)
            case Quantize(epochs=0):
                from lowbit.methods.quantize import quantize

                # Roundings that make up for each other would move zeros and part what shares a value.
                result = quantize(
                    current,
                    self._samples(),
                    weights=step.weights,
                    activations=step.activations,
                    rules=step.rules,
                    rounding="nearest" if self.zeros or self.clusters else "compensated",
                    seed=self.settings.seed,
                    measure_seconds=0.0,
                    **self.shared,
                )
                result.save(path)
            case Quantize():
                self._learn(
                    number,
                    step,
                    current,
                    path,
                    keep_zeros=self.zeros,
                    keep_clusters=self.clusters,
                    weights=step.weights,
                    activations=step.activations,
                    rules=list(step.rules),
                    edges=step.edges,
                )

    def _learn(self, number: int, step: Prune | Share | Quantize, current: Path, path: Path, **options: Any) -> None:
        from lowbit.methods.qat import qat

        settings = self.settings
        rate = settings.rate if isinstance(step, Prune) else _LATER * settings.rate
        trained = qat(
            current,
            self.data,
            epochs=step.epochs,
            lr=rate if step.rate is None else step.rate,
            batch=settings.batch,
            distillation=Distillation(
                teacher=self.source, weight=1.0 - settings.labels, temperature=settings.temperature
            ),
            seed=settings.seed,
            checkpoint=self.kept.training(number),
            progress=self.progress,
            measure_seconds=0.0,
            **self.shared,
            **options,
        )
        assert trained.result is not None
        trained.result.save(path)

    def coded(self, current: Path, step: Code) -> bytes:
        """Return the packed file, which is known to unpack to the same bytes."""
        from lowbit.methods.pack import pack, unpack

        packed, back = self.folder / "model.lbz", self.folder / "unpacked.onnx"
        pack(current, packed, smallest=step.smallest, stages=self.shared["stages"])
        unpack(packed, back)
        if back.read_bytes() != current.read_bytes():
            raise RuntimeError("the packed model does not unpack to itself")
        return packed.read_bytes()

    def _samples(self) -> Any:
        if self.samples is not None:
            return self.samples
        if isinstance(self.data, (str, Path, dict)):
            return self.data
        raise DataError(
            "a step that does not learn needs calibration samples",
            cause="the training data come as batches",
            remedy="give samples=, as for lowbit.quantize",
        )


class _Checkpoints:
    """Finished steps in a folder, and the identity of the call that they belong to."""

    def __init__(self, folder: Path | None, model: Any, settings: CompressionRecipe) -> None:
        self._folder = folder
        if folder is None:
            return
        text = json.dumps(settings.to_dict(), sort_keys=True) + digest(load_model(model))
        identity = hashlib.sha256(text.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        named = folder / "identity"
        if named.exists() and named.read_text(encoding="utf-8") != identity:
            raise RecipeError(
                f"the checkpoint '{folder}' is of another model or recipe", remedy="delete it, or name another folder"
            )
        named.write_text(identity, encoding="utf-8")

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
        """Delete what was kept."""
        if self._folder is None:
            return
        for path in self._folder.iterdir():
            if path.name == "identity" or path.suffix in {".onnx", ".training", ".part"}:
                path.unlink()
        if not any(self._folder.iterdir()):
            self._folder.rmdir()


def _own_bytes(model: Any) -> int | None:
    """Return the size of the user's file and its data files; `None` if there is none."""
    if not isinstance(model, (str, Path)):
        return None
    own = Path(model)
    tensors = (value.const_value for value in load_model(own).graph.initializers.values())
    outside = {own.parent / tensor.location for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return sum(path.stat().st_size for path in (own, *outside))


def _row(name: str, path: Path, seconds: float, measure: Callable[[Path], float] | None) -> CompressionStep:
    model = load_model(path)
    arrays = [constant_array(value) for value in model.graph.initializers.values()]
    weights = [array for array in arrays if array is not None and array.ndim > 1 and array.size > 1]
    return CompressionStep(
        name=name,
        bytes=path.stat().st_size,
        zeros=sum(int(np.count_nonzero(array == 0)) for array in weights) / max(sum(a.size for a in weights), 1),
        distinct=max((len(np.unique(array)) for array in weights), default=0),
        seconds=seconds,
        score=None if measure is None else measure(path),
    )


def _packed_row(last: CompressionStep, size: int, seconds: float) -> CompressionStep:
    return CompressionStep(
        name="code", bytes=size, zeros=last.zeros, distinct=last.distinct, seconds=seconds, score=last.score
    )
