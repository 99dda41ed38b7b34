"""Quantization-aware training: a good loop around a trainable model, with or without labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowbit.data import input_specs
from lowbit.exceptions import DataError, RecipeError, TrainingError
from lowbit.formats import parse_format
from lowbit.graph import digest
from lowbit.methods.distillation import Distillation, logits_of, open_teacher, teacher_loss
from lowbit.methods.finalize import finalize
from lowbit.methods.stages import Stages, silent
from lowbit.methods.trainable import Origin, trainable
from lowbit.methods.training_graph import build_module
from lowbit.methods.training_progress import TensorBoard, progress_on
from lowbit.training.batches import Batches
from lowbit.training.gradient_path import cutting_operator
from lowbit.training.hurt import freeze_others, hurt_layers, layer_noise
from lowbit.training.loop import Epoch, Loop, Settings
from lowbit.training.losses import label_loss
from lowbit.training.randomness import own_randomness, seed_all

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    import onnx_ir as ir

    from lowbit.data import Preprocessing
    from lowbit.methods.result import Result
    from lowbit.plan.recipe import Recipe
    from lowbit.training.batches import Batch
    from lowbit.training.module import TrainableModel
    from lowbit.training.schedule import MaskSchedule

__all__ = ["Distillation", "Training", "distill", "qat"]

# From so few bits on, rounding errors grow in over the first part of the training.
_FEW_BITS = 4
_GRADUAL = 0.1
_SCORED_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """What a training gave.

    Attributes:
        result: The artifact with its account; `None` if it was not asked for.
        module: The trained module.
        history: One entry for every epoch.
        stopped: Why it ended early, in words; empty if it did not.
        layers: Paths of the operators that were trained, where only some were.
    """

    result: Result | None
    module: TrainableModel
    history: tuple[Epoch, ...]
    stopped: str = ""
    layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def qat(
    model: str | Path | onnx.ModelProto | ir.Model | TrainableModel,
    data: Any,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    validation: Any = None,
    metric: Callable[[torch.Tensor, torch.Tensor], float] | None = None,
    preprocessing: Preprocessing | None = None,
    epochs: int = 10,
    batch: int = 64,
    lr: float | None = None,
    optimizer: str = "adamw",
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    gradual: float | None = None,
    ema: float = 0.998,
    clip: float = 5.0,
    patience: int = 0,
    distillation: Distillation | bool | None = None,
    layers: str | Sequence[str] | None = None,
    masks: MaskSchedule | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    log_dir: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
    finalized: bool = True,
    measure_seconds: float = 2.0,
    recipe: Recipe | str | Path | None = None,
    stages: Stages = silent,
    **options: Any,
) -> Training:
    """Train a model so that it computes well with few bits, and write the artifact.

    Args:
        model: An ONNX model, or a module that `lowbit.trainable` returned; an ONNX model is never changed.
        data: The training data: a `DataLoader` or another re-readable iterable of `(x, y)`, `x` or dicts; a map-style
            data set; a dict of arrays; or the path of arrays or pictures. Without labels the model learns from its
            float self.
        loss: Function of the outputs and the target. By default cross entropy for whole numbers and the mean squared
            error for others; where the model ends in a Softmax, of what goes into it.
        validation: Data with labels that are not trained on. With them the best epoch is kept.
        metric: Function of the scores and the targets of all validation data, higher is better; top-1 accuracy for
            classes by default, the negative loss for others.
        preprocessing: What to do to pictures.
        epochs: Passes over the data.
        batch: Size of batches, where `data` are samples.
        lr: Highest learning rate. For `adamw` it counts in units of every tensor's own size (the root of its mean
            square), 5e-3 by default; for `sgd` it is 1e-2 by default.
        optimizer: `adamw` or `sgd`.
        weight_decay: Of weights.
        warmup: Fraction of the steps in which the learning rate rises; then it falls as a half cosine.
        gradual: Fraction of the steps over which rounding errors grow to what they are; by default a tenth where
            something has 4 bits or fewer, and nothing otherwise.
        ema: Share of the moving average of all parameters that a step keeps; 0 leaves the average out.
        clip: Largest norm of the gradient; 0 sets none.
        patience: Epochs without a better metric that end the training; 0 never ends it.
        distillation: How the model learns from a teacher; `True` is a `Distillation()`, which is also what `None` is
            without labels and without a loss; `False` is none.
        layers: Only these operators learn; `hurt` finds those that make most of the noise at the output.
        masks: Prunes on the way, see `MaskSchedule`.
        checkpoint: A file from which the same call continues after an interruption, to the same bytes. It is deleted
            when the training is done.
        checkpoint_every: Steps between checkpoints; 0 writes them after every epoch.
        log_dir: Folder for TensorBoard, which has to be installed (`pip install lowbit[tensorboard]`).
        seed: Of everything random.
        progress: Whether a bar with loss and metric is shown; by default where stderr is a terminal.
        finalized: Whether the artifact is written and measured.
        measure_seconds: How long its latency is measured.
        recipe: A `Recipe` or the path of a YAML file.
        stages: Shows progress of what is not training.
        **options: What `lowbit.trainable` takes: `weights`, `activations`, `keep_zeros`, `quantized` …

    Raises:
        DataError: The data do not fit the model, can be read only once, or have no labels where a loss needs them.
        TrainingError: No gradient reaches a weight, or the loss is no number in the first epoch.
        RecipeError: A setting is out of its range, or a checkpoint belongs to another training.
    """
    settings = _settings(
        epochs, lr, optimizer, weight_decay, warmup, gradual, ema, clip, patience, seed, checkpoint_every
    )
    with own_randomness():
        seed_all(seed)
        module = model if isinstance(model, torch.nn.Module) else None
        base: Origin | None = module.origin if module is not None else None
        specs = input_specs(base.model) if base is not None else None
        if specs is None:
            from lowbit.graph import load_model

            specs = input_specs(load_model(model))
        batches = Batches(data, specs, batch=batch, shuffle=True, name="the training data", preprocessing=preprocessing)
        tests = (
            Batches(validation, specs, batch=batch, name="the validation data", preprocessing=preprocessing)
            if validation is not None
            else None
        )
        inputs, target = batches.first()
        teach = _distillation(distillation, labels=target is not None, loss=loss)
        if module is None:
            module = trainable(model, recipe, data=_calibrating(batches), stages=stages, **options)
        origin: Origin = module.origin
        logits = logits_of(origin.model)
        positions = teach.tensors(origin) if teach is not None else ()
        module = _tapped(module, tuple(dict.fromkeys((*positions, *((logits,) if logits else ())))))
        settings = _with_gradual(settings, gradual, module)
        classes = _classes(target, logits)
        student = _Student(module=module, logits=logits, loss=loss, teach=teach, classes=classes, positions=positions)
        student.check(target)
        chosen = _chosen(module, layers, student, batches)
        if teach is not None:
            student.teacher = open_teacher(teach, origin, logits)
        identity = _identity(module, settings, loss, teach, chosen)
        with progress_on(progress, epochs) as shown, TensorBoard.opened(log_dir) as board:

            def ended(row: Epoch) -> None:
                shown.epoch(row)
                board.epoch(row)

            def stepped(step: int, steps: int, value: float, score: float | None) -> None:
                shown.step(step, steps, value, score)
                board.step(step, value)

            loop = Loop(
                module=module,
                batches=batches,
                loss=student.loss_of,
                validate=(lambda: student.score(tests, metric)) if tests is not None else None,
                settings=settings,
                masks=masks,
                checkpoint=Path(checkpoint) if checkpoint is not None else None,
                identity=identity,
                watch=stepped,
                on_epoch=ended,
                first_step=lambda: _check_gradients(module, inputs),
            )
            loop.run()
        module.eval()
        result = None
        if finalized:
            result = finalize(
                module,
                test_data=_verifying(validation, tests),
                measure_seconds=measure_seconds,
                stages=stages,
            )
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        return Training(result=result, module=module, history=tuple(loop.history), stopped=loop.stopped, layers=chosen)


def distill(
    model: str | Path | onnx.ModelProto | ir.Model | TrainableModel,
    data: Any,
    *,
    teacher: Any = "float",
    temperature: float = 2.0,
    features: tuple[str, ...] | str = (),
    attention: bool = False,
    **options: Any,
) -> Training:
    """Let a quantized model learn from a teacher alone; labels in the data are not looked at.

    Args:
        model: As in `qat`.
        data: As in `qat`.
        teacher: `float` is the model itself before it was quantized; or a module or the path of a larger model.
        temperature: Of softened classes.
        features: Inner tensors that are compared too, or `blocks`.
        attention: Whether attention is compared too.
        **options: What `qat` takes.

    Raises:
        What `qat` does.
    """
    settings = Distillation(
        teacher=teacher, weight=1.0, temperature=temperature, features=features, attention=attention
    )
    return qat(model, data, distillation=settings, **options)


@dataclass(slots=True, kw_only=True, eq=False)
class _Student:
    """From a batch to its loss."""

    module: TrainableModel
    logits: str | None
    loss: Callable[[Any, Any], torch.Tensor] | None
    teach: Distillation | None
    classes: bool
    positions: tuple[str, ...]
    teacher: Any = None

    def check(self, target: Any) -> None:
        needs = self.teach is None or self.teach.weight < 1.0
        if target is None and needs and self.teach is None:
            raise DataError(
                "the training data have no targets",
                cause="the loss compares outputs with them",
                remedy="yield (x, y); or learn from the float model, which needs no labels: distillation=True",
            )

    def loss_of(self, batch: Batch) -> torch.Tensor:
        inputs, target = batch
        output, inner = self.module(tapped=True, **inputs)
        scores = self.scores(output, inner)
        if self.teach is None:
            return self.labelled(output, scores, target)
        taught = teacher_loss(
            self.teach, scores, inner, self.teacher, inputs, classes=self.classes, positions=self.positions
        )
        if target is None or self.teach.weight == 1.0:
            return taught
        return self.teach.weight * taught + (1.0 - self.teach.weight) * self.labelled(output, scores, target)

    def labelled(self, output: Any, scores: torch.Tensor, target: Any) -> torch.Tensor:
        return self.loss(output, target) if self.loss is not None else label_loss(scores, target)

    def scores(self, output: Any, inner: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.logits is not None:
            return inner[self.logits]
        found: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def score(self, tests: Batches, metric: Callable[[torch.Tensor, torch.Tensor], float] | None) -> float:
        found, targets, losses = [], [], []
        for inputs, target in tests:
            output, inner = self.module(tapped=True, **inputs)
            scores = self.scores(output, inner)
            if target is None:
                losses.append(float(self.loss_of((inputs, target))))
                continue
            if self.loss is not None and metric is None and not self.classes:
                losses.append(float(self.loss(output, target)))
                continue
            found.append(scores)
            targets.append(target)
        if losses:
            return -sum(losses) / len(losses)
        whole, wanted = torch.cat(found), torch.cat(targets)
        if metric is not None:
            return float(metric(whole, wanted))
        if not wanted.is_floating_point() and wanted.shape == whole.shape[:-1]:
            return float((whole.argmax(-1) == wanted).double().mean())
        return -float(label_loss(whole, wanted))


def _settings(
    epochs: int,
    lr: float | None,
    optimizer: str,
    weight_decay: float,
    warmup: float,
    gradual: float | None,
    ema: float,
    clip: float,
    patience: int,
    seed: int,
    every: int,
) -> Settings:
    if optimizer not in {"adamw", "sgd"}:
        raise RecipeError(f"the optimizer is {optimizer!r}", remedy="use adamw or sgd, or a loop of your own")
    rate = lr if lr is not None else (5e-3 if optimizer == "adamw" else 1e-2)
    for name, value, highest in (
        ("epochs", epochs, 1e9),
        ("lr", rate, 1e3),
        ("warmup", warmup, 1.0),
        ("ema", ema, 1.0),
        ("gradual", gradual or 0.0, 1.0),
    ):
        if not 0 <= value <= highest or (name in {"epochs", "lr"} and not value):
            raise RecipeError(f"{name} is {value}", remedy="give a number in its range; see lowbit.qat")
    return Settings(
        epochs=epochs,
        lr=rate,
        optimizer=optimizer,
        weight_decay=weight_decay,
        warmup=warmup,
        gradual=gradual or 0.0,
        ema=ema,
        clip=clip,
        patience=patience,
        seed=seed,
        every=every,
    )


def _with_gradual(settings: Settings, given: float | None, module: TrainableModel) -> Settings:
    import dataclasses

    if given is not None:
        return settings
    origin: Origin = module.origin
    texts = [entry.weights for entry in origin.plan.sites if entry.weights]
    texts += [tensor.format for tensor in origin.plan.activations]
    few = any(parse_format(text).element.bits <= _FEW_BITS for text in texts)
    return dataclasses.replace(settings, gradual=_GRADUAL if few else 0.0)


def _distillation(given: Distillation | bool | None, *, labels: bool, loss: object) -> Distillation | None:
    if isinstance(given, Distillation):
        return given
    if given is None:
        given = not labels and loss is None
    return Distillation() if given else None


def _calibrating(batches: Batches) -> list[Any]:
    """Return the first batches as calibration data."""
    found: list[Any] = []
    samples = 0
    for inputs, target in batches:
        values = {name: tensor.numpy() for name, tensor in inputs.items()}
        if isinstance(target, torch.Tensor) and target.ndim == 1:
            values["labels"] = target.numpy()
        found.append(values)
        samples += len(next(iter(inputs.values())))
        if samples >= _CALIBRATING:
            break
    return found


_CALIBRATING = 500


def _verifying(validation: Any, tests: Batches | None) -> Any:
    if tests is None or validation is None:
        return None
    found, samples = [], 0
    for inputs, target in tests:
        values = {name: tensor.numpy() for name, tensor in inputs.items()}
        if isinstance(target, torch.Tensor) and target.ndim == 1 and not target.is_floating_point():
            values["labels"] = target.numpy()
        found.append(values)
        samples += len(next(iter(inputs.values())))
        if samples >= _VERIFYING:
            break
    return found


_VERIFYING = 2000


def _tapped(module: TrainableModel, taps: tuple[str, ...]) -> TrainableModel:
    """Return the module with more taps; what it has learned stays."""
    if set(taps) <= set(module.taps):
        return module
    fresh: TrainableModel = build_module(module.origin, taps=tuple(dict.fromkeys((*module.taps, *taps))), like=module)
    return fresh


def _classes(target: Any, logits: str | None) -> bool:
    whole = isinstance(target, torch.Tensor) and not target.is_floating_point() and target.ndim >= 1
    return logits is not None or whole


def _chosen(
    module: TrainableModel, layers: str | Sequence[str] | None, student: _Student, batches: Batches
) -> tuple[str, ...]:
    if layers is None:
        return ()
    known = module.layers()
    if layers == "hurt":
        samples = []
        for inputs, _ in batches:
            samples.append(inputs)
            if len(samples) == _SCORED_BATCHES:
                break

        def compute() -> torch.Tensor:
            found = []
            for inputs in samples:
                output, inner = module(tapped=True, **inputs)
                found.append(student.scores(output, inner))
            return torch.cat(found)

        chosen = hurt_layers(layer_noise(module, compute))
    else:
        chosen = (layers,) if isinstance(layers, str) else tuple(layers)
        unknown = [path for path in chosen if path not in known]
        if unknown:
            raise RecipeError(
                f"there is no operator {unknown[0]!r} with a weight", remedy=f"use 'hurt' or some of {', '.join(known)}"
            )
    freeze_others(module, chosen)
    return chosen


def _check_gradients(module: TrainableModel, inputs: dict[str, torch.Tensor]) -> None:
    grown = [one.grad for one in module.parameters() if one.grad is not None]
    if any(bool((one != 0).any()) for one in grown):
        return
    found = cutting_operator(module.origin.model, inputs)
    if found is None and grown:
        return  # The first step of a model that still equals its teacher.
    if found is None:
        raise TrainingError(
            "the loss does not depend on any weight",
            cause="it was computed without a gradient from the model's outputs",
            remedy="compute it with PyTorch from the outputs that it is given",
        )
    name, kind = found
    raise TrainingError(
        f"no gradient reaches a weight: the operator {name!r} ({kind}) cuts it off",
        cause=f"{kind} has no derivative",
        remedy=f"train the part of the model before {name!r}: extract it with that tensor as its output",
    )


def _identity(
    module: TrainableModel, settings: Settings, loss: object, teach: Distillation | None, chosen: tuple[str, ...]
) -> str:
    origin: Origin = module.origin
    named = getattr(loss, "__qualname__", type(loss).__name__)
    teacher = None if teach is None else (teach.weight, teach.temperature, teach.features, teach.attention)
    parts = (digest(origin.model), repr(origin.plan.to_dict()), repr(settings), named, repr(teacher), repr(chosen))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
