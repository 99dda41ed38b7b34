"""A recipe of several steps: prune, share, quantize, code, each of which keeps what the former made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from lowbit.exceptions import RecipeError
from lowbit.plan.recipe import Rule, known_values, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Code", "CompressionRecipe", "Prune", "Quantize", "Share", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prune:
    """Weights that matter least become 0.

    Attributes:
        amount: Fraction of the weights of all Conv, MatMul and Gemm, from 0 to below 1.
        epochs: Passes over the data in which weights go gradually while the others learn; 0 prunes at once.
        rate: Highest learning rate, in units of every tensor's own size; `None` is the recipe's.
        criterion: While learning, `magnitude` or `movement`; at once, `magnitude`, `wanda` or `sparsegpt`. `None` is
            `magnitude`, and at once `sparsegpt`.
    """

    name: ClassVar[str] = "prune"
    amount: float = 0.8
    epochs: int = 10
    rate: float | None = None
    criterion: str | None = None

    def __post_init__(self) -> None:
        _check_number("amount", self.amount, self.name, below_one=True)
        _check_training(self)
        known = ("magnitude", "movement") if self.epochs else ("magnitude", "wanda", "sparsegpt")
        if self.criterion is not None and self.criterion not in known:
            when = f"with {self.epochs} epochs" if self.epochs else "without epochs"
            raise RecipeError(
                f"criterion of prune is {self.criterion!r} {when}", remedy=f"use one of {', '.join(known)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Weights share a few values.

    Attributes:
        entries: Values that a codebook has, 2 to 256.
        granularity: What shares a codebook: a `tensor`, an output `channel`, or so many output channels.
        grid: `int8` puts the values where 8-bit codes have them; `float` anywhere.
        epochs: Passes over the data in which the values learn; 0 leaves them where k-means put them.
        rate: As in `Prune`; by default a fifth of the recipe's.
    """

    name: ClassVar[str] = "share"
    entries: int = 16
    granularity: str | int = "tensor"
    grid: str = "float"
    epochs: int = 0
    rate: float | None = None

    def __post_init__(self) -> None:
        _check_training(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantize:
    """Weights and activations get few bits.

    Attributes:
        weights: Format of the weights.
        activations: Format of the activations, or `none`.
        rules: Other formats for some operators.
        edges: Whether the first and the last layers keep 8 bits where others have fewer.
        epochs: Passes over the data in which the model learns to live with them; 0 rounds to nearest.
        rate: As in `Prune`; by default a fifth of the recipe's.
    """

    name: ClassVar[str] = "quantize"
    weights: str = "int4:per-tensor"
    activations: str = "uint8"
    rules: tuple[Rule, ...] = ()
    edges: bool = True
    epochs: int = 10
    rate: float | None = None

    def __post_init__(self) -> None:
        _check_training(self)
        object.__setattr__(
            self, "rules", tuple(Rule(**rule) if isinstance(rule, Mapping) else rule for rule in self.rules)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The file is packed.

    Attributes:
        smallest: Whether large models too are coded by the slow models of small ones.
    """

    name: ClassVar[str] = "code"
    smallest: bool = True


Step = Prune | Share | Quantize | Code
_STEPS: dict[str, type[Step]] = {step.name: step for step in (Prune, Share, Quantize, Code)}
# What must not come before what, and why.
_AFTER = {
    ("share", "prune"): "pruning would part weights that share a value",
    ("quantize", "prune"): "codes are rounded to what is left: prune first",
    ("quantize", "share"): "codes already share their values: share first, or leave it out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionRecipe:
    """Steps and how all of them learn.

    Attributes:
        steps: What is done, in this order; every step at most once.
        labels: Weight of the labels beside the float model in the loss, where the data have labels.
        temperature: Of the softened classes of the float model, from which every step learns.
        rate: Highest learning rate, in units of every tensor's own size, of steps that name none.
        batch: Size of batches, where the data are samples.
        seed: Of everything random.
        bfloat16: Whether learning before anything is rounded computes products in bfloat16, as in `lowbit.qat`.

    Raises:
        RecipeError: The steps make no sense in this order, or a value is out of its range.
    """

    steps: tuple[Step, ...] = field(default_factory=lambda: (Prune(), Quantize(), Code()))
    labels: float = 0.3
    temperature: float = 4.0
    rate: float = 2e-2
    batch: int = 64
    seed: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if not names:
            raise RecipeError("the recipe has no steps", remedy=f"list some of {', '.join(_STEPS)}")
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"the step {name} is there twice", remedy="list every step once")
        for place, name in enumerate(names):
            if name == "code" and place != len(names) - 1:
                raise RecipeError(
                    f"{names[place + 1]} comes after code", cause="a packed file is the last", remedy="put code last"
                )
            for later in names[place + 1 :]:
                if (name, later) in _AFTER:
                    raise RecipeError(
                        f"{later} comes after {name}", cause=_AFTER[name, later], remedy=f"put {later} before {name}"
                    )
        if not 0.0 <= self.labels <= 1.0:
            raise RecipeError(f"labels is {self.labels}", remedy="give a share from 0 to 1")
        if self.temperature <= 0 or self.rate <= 0 or self.batch < 1:
            raise RecipeError(
                f"temperature is {self.temperature}, rate {self.rate}, batch {self.batch}",
                remedy="give positive numbers",
            )
        if not isinstance(self.bfloat16, bool):
            raise RecipeError(f"bfloat16 is {self.bfloat16!r}", remedy="give true or false")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, ready for YAML."""
        steps = []
        for step in self.steps:
            values = {key: value for key, value in dataclasses.asdict(step).items() if value not in (None, ())}
            if isinstance(step, Quantize) and step.rules:
                values["rules"] = [
                    {key: value for key, value in dataclasses.asdict(rule).items() if value} for rule in step.rules
                ]
            steps.append({step.name: values})
        plain = {name: getattr(self, name) for name in ("labels", "temperature", "rate", "batch", "seed", "bfloat16")}
        return {"steps": steps, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CompressionRecipe:
        """Build a recipe from plain values: `steps` is a list of names, or of names with their values.

        Raises:
            RecipeError: A key or value is unknown.
        """
        values = known_values(data, [item.name for item in dataclasses.fields(cls)])
        if "steps" in values:
            if not isinstance(values["steps"], (list, tuple)):
                raise RecipeError(f"steps is {values['steps']!r}", remedy="list them, e.g. `- prune: {amount: 0.8}`")
            values["steps"] = tuple(_step(item) for item in values["steps"])
        try:
            return cls(**values)
        except TypeError as error:
            raise RecipeError("the recipe has a value of the wrong kind", cause=str(error)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> CompressionRecipe:
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: The file cannot be read or is no recipe.
        """
        return cls.from_dict(read_yaml(path, "recipe"))


def _step(item: object) -> Step:
    if isinstance(item, (Prune, Share, Quantize, Code)):
        return item
    named: Mapping[Any, Any] = item if isinstance(item, Mapping) else {item: {}}
    if len(named) != 1:
        raise RecipeError(f"a step is {item!r}", remedy="give one name a step, e.g. `- prune: {amount: 0.8}`")
    ((name, values),) = named.items()
    if name not in _STEPS:
        raise RecipeError(f"unknown step {name!r}", remedy=f"use one of {', '.join(_STEPS)}")
    kind = _STEPS[name]
    values = values or {}
    known = [one.name for one in dataclasses.fields(kind)]
    if not isinstance(values, Mapping) or set(values) - set(known):
        raise RecipeError(f"the step {name} has {values!r}", remedy=f"its keys are {', '.join(known)}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"the step {name} has a value of the wrong kind", cause=str(error)) from error


def _check_training(step: Prune | Share | Quantize) -> None:
    if isinstance(step.epochs, bool) or not isinstance(step.epochs, int) or step.epochs < 0:
        raise RecipeError(f"epochs of {step.name} is {step.epochs!r}", remedy="give a whole number from 0 on")
    if step.rate is not None:
        _check_number("rate", step.rate, step.name, below_one=False)


def _check_number(label: str, value: object, step: str, *, below_one: bool) -> None:
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    if not right or (below_one and not float(value) < 1):  # type: ignore[arg-type]
        raise RecipeError(
            f"{label} of {step} is {value!r}",
            remedy="give a fraction from 0 to below 1" if below_one else "give a positive number",
        )
