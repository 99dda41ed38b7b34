"""The loop: steps, validation, averages, checkpoints, and what stops it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lowbit.exceptions import DataError, TrainingError
from lowbit.training.averaging import Average
from lowbit.training.masking import Masking
from lowbit.training.optimizers import optimizers_of
from lowbit.training.randomness import own_randomness, random_state, seed_all, set_random_state
from lowbit.training.schedule import rate_at, strength_at
from lowbit.training.settings import Epoch, Settings
from lowbit.training.snapshot import load_masks, load_snapshot, save_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.training.batches import Batch, Batches
    from lowbit.training.module import TrainableModel
    from lowbit.training.schedule import MaskSchedule

__all__ = ["Loop", "Watcher"]

_BETWEEN_EPOCHS = 7919

Watcher = Callable[[int, int, float, float | None], None]
"""Told of every step: its number, the number of all steps, the loss, and the last metric."""


@dataclass(slots=True, kw_only=True, eq=False)
class Loop:
    """Trains a module.

    Attributes:
        module: The module; in its place afterwards is the best of what was validated, or the average.
        batches: The training data.
        loss: From a batch, the loss.
        validate: Measures the module as it is, higher is better; `None` without validation.
        settings: How.
        masks: Prunes on the way.
        checkpoint: Where the state is kept; `None` keeps none.
        identity: What a checkpoint belongs to.
        watch: Told of every step.
        on_epoch: Told of every epoch.
        first_step: Called after the first gradients, to see whether there are any.
        history: Epochs so far.
        stopped: Why training ended early, in words; empty if it did not.
    """

    module: TrainableModel
    batches: Batches
    loss: Callable[[Batch], torch.Tensor]
    validate: Callable[[], float] | None = None
    settings: Settings = field(default_factory=Settings)
    masks: MaskSchedule | None = None
    checkpoint: Path | None = None
    identity: str = ""
    watch: Watcher = lambda *_: None
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None
    first_step: Callable[[], None] = lambda: None
    history: list[Epoch] = field(default_factory=list)
    stopped: str = ""
    _best: float = -math.inf
    _best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    _good: dict[str, torch.Tensor] = field(default_factory=dict)
    _good_step: int = 0
    _sparsity: float = 0.0
    _since: int = 0
    _random: dict[str, Any] = field(default_factory=dict)
    _masking: Masking | None = None

    def run(self) -> list[Epoch]:
        """Train, and leave the module with what was best.

        Raises:
            TrainingError: The loss became NaN or infinite before anything was learned.
            DataError: There are no batches.
        """
        self._masking = Masking(self.module, self.masks)
        try:
            with own_randomness():
                seed_all(self.settings.seed)
                self._run()
        finally:
            self._masking.close()
        self.module.set_strength(1.0)
        return self.history

    def _run(self) -> None:
        settings, module = self.settings, self.module
        per_epoch = len(self.batches)
        if per_epoch == 0:
            raise DataError(f"{self.batches.name} is empty", remedy="give at least one batch")
        steps = per_epoch * settings.epochs
        optimizers = optimizers_of(module, settings)
        average = Average(module, settings.ema) if settings.ema else None
        start_epoch, start_step, total = self._resumed(optimizers, average)
        rates = [[group["lr"] for group in one.param_groups] for one in optimizers]
        if not self._good:
            self._good = self._state(None)
        for epoch in range(start_epoch, settings.epochs):
            if self.stopped:
                break
            # Every epoch has a seed of its own, so that one that is resumed meets the same batches.
            seed_all(settings.seed + _BETWEEN_EPOCHS * (epoch + 1))
            iterator = iter(self.batches)
            for _ in itertools.islice(iterator, start_step):
                pass
            if start_step:
                set_random_state(self._random)
            module.train()
            for index, batch in enumerate(iterator, start_step):
                step = epoch * per_epoch + index
                value = self._step(batch, step, steps, optimizers, rates, average)
                if not math.isfinite(value):
                    self._diverged(value, step, epoch)
                    return
                total += value
                self.watch(step + 1, steps, value, self._last_metric())
                if settings.every and (step + 1) % settings.every == 0 and index + 1 < per_epoch:
                    self._save(optimizers, average, epoch, index + 1, total)
            start_step = 0
            self._ended(epoch, per_epoch, total, optimizers, average)
            total = 0.0
            self._save(optimizers, average, epoch + 1, 0, 0.0)
        self._finish(average)

    def _step(
        self,
        batch: Batch,
        step: int,
        steps: int,
        optimizers: list[torch.optim.Optimizer],
        rates: list[list[float]],
        average: Average | None,
    ) -> float:
        settings, module = self.settings, self.module
        factor = rate_at(step, steps, warmup=int(settings.warmup * steps))
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        strength = strength_at(step, steps, gradual=settings.gradual if module.quantized else 0.0)
        module.set_strength(strength)
        if self._masking is not None:
            self._masking.step(step, steps)
        loss = self.loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        if step == 0 and not loss.requires_grad:
            self.first_step()
        loss.backward()
        if step == 0:
            self.first_step()
        if settings.clip:
            learned = [one for one in module.parameters() if one.grad is not None]
            norm = torch.nn.utils.clip_grad_norm_(learned, settings.clip)
            if not bool(torch.isfinite(norm)):
                return float(norm)
        for optimizer in optimizers:
            optimizer.step()
        if average is not None and strength == 1.0:
            if average.steps == 0:
                average.values = {
                    name: one.detach().clone() for name, one in module.named_parameters() if one.requires_grad
                }
            average.update(module)
        return value

    def _ended(
        self,
        epoch: int,
        per_epoch: int,
        total: float,
        optimizers: list[torch.optim.Optimizer],
        average: Average | None,
    ) -> None:
        """Validate, and keep what is best."""
        ready = strength_at((epoch + 1) * per_epoch, per_epoch * self.settings.epochs, gradual=self.settings.gradual)
        used = average if average is not None and average.steps and ready == 1.0 else None
        metric = self._validated(used)
        self._good, self._good_step = self._state(used), (epoch + 1) * per_epoch
        row = Epoch(
            epoch=epoch + 1,
            steps=(epoch + 1) * per_epoch,
            loss=total / per_epoch,
            metric=metric,
            lr=float(optimizers[0].param_groups[0]["lr"]),
        )
        self.history.append(row)
        self.on_epoch(row)
        sparsity = self.module.sparsity()
        if ready < 1.0 or sparsity > self._sparsity:
            # What was better with less rounding or pruning is no better model.
            self._best, self._best_state, self._since = -math.inf, {}, len(self.history) - 1
            self._sparsity = sparsity
        if metric is not None and ready == 1.0 and metric > self._best:
            self._best, self._best_state = metric, self._good
        if metric is not None and self.settings.patience:
            rows = [one.metric for one in self.history[self._since :] if one.metric is not None]
            since = len(rows) - 1 - max(range(len(rows)), key=lambda index: (rows[index], -index))
            if since >= self.settings.patience:
                self.stopped = f"the metric has not risen for {since} epochs"

    def _validated(self, average: Average | None) -> float | None:
        if self.validate is None:
            return None
        strengths = self.module.strength
        self.module.eval()
        self.module.set_strength(1.0)
        try:
            with torch.no_grad():
                if average is None:
                    return float(self.validate())
                with average.applied(self.module):
                    return float(self.validate())
        finally:
            self.module.set_strength(strengths)
            self.module.train()

    def _last_metric(self) -> float | None:
        return self.history[-1].metric if self.history else None

    def _finish(self, average: Average | None) -> None:
        if self._best_state:
            self.module.load_state_dict(self._best_state)
        elif average is not None and average.steps:
            self.module.load_state_dict(self._state(average))

    def _state(self, average: Average | None) -> dict[str, torch.Tensor]:
        values = average.values if average is not None else {}
        return {name: one.detach().clone() for name, one in {**self.module.state_dict(), **values}.items()}

    def _diverged(self, value: float, step: int, epoch: int) -> None:
        what = "NaN" if math.isnan(value) else "infinite"
        if self._good_step == 0:
            raise TrainingError(
                f"the loss became {what} in step {step + 1}, in the first epoch",
                cause="the learning rate is too high, or the data hold values that the model was not made for",
                remedy=f"try lr={self.settings.lr / 10:g}, or check the data",
            )
        self.module.load_state_dict(self._best_state or self._good)
        self.stopped = (
            f"the loss became {what} in step {step + 1} (epoch {epoch + 1}); the model is that of step "
            f"{self._good_step}, the last good one"
        )

    def _save(
        self, optimizers: list[torch.optim.Optimizer], average: Average | None, epoch: int, step: int, total: float
    ) -> None:
        if self.checkpoint is None:
            return
        state = {
            "epoch": epoch,
            "step": step,
            "total": total,
            "module": self.module.state_dict(),
            "optimizers": [one.state_dict() for one in optimizers],
            "average": None if average is None else {"steps": average.steps, "values": average.values},
            "random": random_state(),
            "history": [asdict(one) for one in self.history],
            "best": [self._best, self._best_state],
            "good": [self._good_step, self._good],
            "stopped": self.stopped,
            "pruned": [self._sparsity, self._since],
            "masking": None if self._masking is None else self._masking.state(),
        }
        save_snapshot(self.checkpoint, state, self.identity)

    def _resumed(self, optimizers: list[torch.optim.Optimizer], average: Average | None) -> tuple[int, int, float]:
        """Continue from the checkpoint, if there is one; return the epoch, the step in it and its loss so far."""
        state = None if self.checkpoint is None else load_snapshot(self.checkpoint, self.identity)
        if state is None:
            return 0, 0, 0.0
        load_masks(self.module, state["module"])
        self.module.load_state_dict(state["module"])
        for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(own)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        if average is not None and state["average"] is not None:
            average.steps, average.values = state["average"]["steps"], state["average"]["values"]
        self.history[:] = [Epoch(**one) for one in state["history"]]
        (self._best, self._best_state), (self._good_step, self._good) = state["best"], state["good"]
        self.stopped = state["stopped"]
        self._sparsity, self._since = state["pruned"]
        self._random = state["random"]
        if self._masking is not None:
            self._masking.load(state["masking"])
        return int(state["epoch"]), int(state["step"]), float(state["total"])
