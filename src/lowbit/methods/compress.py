"""The verb that chains what makes files small: prune, share, quantize, code, each keeping what the former made."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import DataError
from lowbit.graph import load_model, save_model
from lowbit.methods.compression import Compression
from lowbit.methods.compression_account import model_row, output_judge, own_bytes, packed_row
from lowbit.methods.compression_checkpoint import CompressionCheckpoint
from lowbit.methods.distillation import Distillation
from lowbit.methods.stages import Stages, silent
from lowbit.plan.compression import Code, CompressionRecipe, Prune, Quantize, Share

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    import onnx_ir as ir

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
    kept = CompressionCheckpoint(None if checkpoint is None else Path(checkpoint), model, settings)
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
        error = output_judge(source, work.optional_samples(), preprocessing, settings.seed)
        first = model_row("float", source, 0.0, measure=measure, error=error(source))
        rows = [dataclasses.replace(first, bytes=own_bytes(model) or first.bytes)]
        packed: bytes | None = None
        current = source
        for number, step in enumerate(settings.steps):
            started = time.perf_counter()
            if isinstance(step, Code):
                packed = work.coded(current, step)
                rows.append(packed_row(rows[-1], len(packed), time.perf_counter() - started))
                continue
            current = work.done(number, step, current)
            seconds = time.perf_counter() - started
            rows.append(model_row(step.name, current, seconds, measure=measure, error=error(current)))
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
    kept: CompressionCheckpoint
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

                criterion: Any = step.criterion
                data = self._samples()
                prune(current, step.amount, data, criterion=criterion, seed=self.settings.seed, **self.shared).save(
                    path
                )
            case Prune():
                from lowbit.training.gradual import GradualPruning

                gradual: Any = step.criterion or "magnitude"
                masks = GradualPruning(amount=step.amount, criterion=gradual)
                self._learn(number, step, current, path, quantized=False, masks=masks)
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
                from lowbit.methods.finalize import finalize
                from lowbit.methods.trainable import trainable

                module = trainable(current, data=self._samples(), **self._formats(step), **self.shared)
                finalize(module, measure_seconds=0.0, stages=self.shared["stages"]).save(path)
            case Quantize():
                self._learn(number, step, current, path, **self._formats(step))

    def _formats(self, step: Quantize) -> dict[str, Any]:
        """Return what quantizing is told, so that it keeps what was made before."""
        return {
            "keep_zeros": self.zeros,
            "keep_clusters": self.clusters,
            "weights": step.weights,
            "activations": step.activations,
            "rules": list(step.rules),
            "edges": step.edges,
        }

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
            bfloat16=settings.bfloat16,
            checkpoint=self.kept.training(number),
            progress=self.progress,
            measure_seconds=0.0,
            **self.shared,
            **options,
        )
        assert trained.result is not None
        trained.result.save(path)

    def coded(self, current: Path, step: Code) -> bytes:
        """Return the packed file; packing has read it back and compared."""
        from lowbit.methods.pack import pack

        packed = self.folder / "model.lbz"
        pack(current, packed, smallest=step.smallest, stages=self.shared["stages"])
        return packed.read_bytes()

    def optional_samples(self) -> Any:
        """Return the calibration samples; `None` if there are none but in batches."""
        if self.samples is not None:
            return self.samples
        if isinstance(self.data, dict):
            return {name: array for name, array in self.data.items() if name not in {"target", "targets"}}
        return self.data if isinstance(self.data, (str, Path)) else None

    def _samples(self) -> Any:
        samples = self.optional_samples()
        if samples is not None:
            return samples
        raise DataError(
            "a step that does not learn needs calibration samples",
            cause="the training data come as batches",
            remedy="give samples=, as for lowbit.quantize",
        )
