"""Quantization-aware training: a good loop around a trainable model, with or without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lowbit.data import input_specs
from lowbit.methods.distillation import Distillation, logits_of, open_teacher
from lowbit.methods.finalize import finalize
from lowbit.methods.stages import Stages, silent
from lowbit.methods.student import Student, check_gradients, scores_classes
from lowbit.methods.trainable import Origin, trainable
from lowbit.methods.trained_layers import train_only
from lowbit.methods.training_data import calibration_batches, verification_batches
from lowbit.methods.training_graph import build_module
from lowbit.methods.training_progress import TensorBoard, progress_on
from lowbit.methods.training_settings import chosen_distillation, loop_settings, training_identity, with_gradual
from lowbit.training.batches import Batches
from lowbit.training.loop import Loop
from lowbit.training.randomness import own_randomness, seed_all
from lowbit.training.rate_finder import STEPS, find_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx
    import onnx_ir as ir

    from lowbit.data import Preprocessing
    from lowbit.methods.result import Result
    from lowbit.plan.recipe import Recipe
    from lowbit.training.module import TrainableModel
    from lowbit.training.schedule import MaskSchedule
    from lowbit.training.settings import Epoch

__all__ = ["Distillation", "Training", "distill", "qat"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """What a training gave.

    Attributes:
        result: The artifact with its account; `None` if it was not asked for.
        module: The trained module.
        history: One entry for every epoch.
        stopped: Why it ended early, in words; empty if it did not.
        layers: Paths of the operators that were trained, where only some were.
        lr: The learning rate at its highest, as given or found.
    """

    result: Result | None
    module: TrainableModel
    history: tuple[Epoch, ...]
    stopped: str = ""
    layers: tuple[str, ...] = ()
    lr: float = 0.0


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
    lr: float | Literal["auto"] | None = None,
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
    bfloat16: bool = False,
    log_dir: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
    finalized: bool | Mapping[str, Any] = True,
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
            square), 5e-3 by default; for `sgd` it is 1e-2 by default. `auto` finds one by a
            range test (Smith, 2017): 80 steps, which are forgotten.
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
        bfloat16: Whether a teacher, and a model of which nothing is rounded (`quantized=False`), compute products in
            bfloat16, which is faster where the processor has units for it. Weights, losses and the optimizer stay
            in float32; so does a model with codes, which bfloat16 would not hold.
        log_dir: Folder for TensorBoard, which has to be installed (`pip install lowbit[tensorboard]`).
        seed: Of everything random.
        progress: Whether a bar with loss and metric is shown; by default where stderr is a terminal.
        finalized: Whether the artifact is written and measured; or, as that does, what `lowbit.finalize` is told.
        measure_seconds: How long its latency is measured.
        recipe: A `Recipe` or the path of a YAML file.
        stages: Shows progress of what is not training.
        **options: What `lowbit.trainable` takes: `weights`, `activations`, `keep_zeros`, `quantized` …

    Raises:
        DataError: The data do not fit the model, can be read only once, or have no labels where a loss needs them.
        TrainingError: No gradient reaches a weight, or the loss is no number in the first epoch.
        RecipeError: A setting is out of its range, or a checkpoint belongs to another training.
    """
    settings = loop_settings(
        epochs, lr, optimizer, weight_decay, warmup, gradual, ema, clip, patience, seed, checkpoint_every, bfloat16
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
        teach = chosen_distillation(distillation, labels=target is not None, loss=loss)
        if module is None:
            module = trainable(model, recipe, data=calibration_batches(batches), stages=stages, **options)
        origin: Origin = module.origin
        logits = logits_of(origin.model)
        positions = teach.tensors(origin) if teach is not None else ()
        module = _tapped(module, tuple(dict.fromkeys((*positions, *((logits,) if logits else ())))))
        settings = with_gradual(settings, gradual, module)
        classes = scores_classes(target, logits)
        student = Student(
            module=module,
            logits=logits,
            loss=loss,
            teach=teach,
            classes=classes,
            positions=positions,
            bfloat16=bfloat16,
        )
        student.check(target)
        chosen = train_only(module, layers, student, batches)
        if teach is not None:
            student.teacher = dataclasses.replace(open_teacher(teach, origin, logits), bfloat16=bfloat16)
        if lr == "auto":
            with stages("Find a learning rate", STEPS) as advance:
                found = find_rate(module, batches, student.loss_of, settings, advance=advance)
            settings = dataclasses.replace(settings, lr=found.rate)
        identity = training_identity(module, settings, loss, teach, chosen, masks)
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
                first_step=lambda: check_gradients(module, inputs),
            )
            loop.run()
        module.eval()
        result = None
        if finalized:
            told: dict[str, Any] = {"measure_seconds": measure_seconds, "stages": stages}
            told |= dict(finalized) if isinstance(finalized, Mapping) else {}
            if "test_data" not in told:
                told["test_data"] = verification_batches(validation, tests)
            result = finalize(module, **told)
        if checkpoint is not None:
            Path(checkpoint).unlink(missing_ok=True)
        return Training(
            result=result,
            module=module,
            history=tuple(loop.history),
            stopped=loop.stopped,
            layers=chosen,
            lr=settings.lr,
        )


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


def _tapped(module: TrainableModel, taps: tuple[str, ...]) -> TrainableModel:
    """Return the module with more taps; what it has learned stays."""
    if set(taps) <= set(module.taps):
        return module
    fresh: TrainableModel = build_module(module.origin, taps=tuple(dict.fromkeys((*module.taps, *taps))), like=module)
    return fresh
