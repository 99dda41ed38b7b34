"""The recipe: what the user asks for, as a value."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from lowbit.exceptions import FormatError, LowbitError, RecipeError
from lowbit.formats import parse_format

__all__ = [
    "CALIBRATIONS",
    "METHODS",
    "OPTIMIZE",
    "RULE_METHODS",
    "Calibration",
    "Io",
    "Method",
    "Optimize",
    "Recipe",
    "Rule",
    "matches",
]

Method = Literal["auto", "best", "static", "dynamic", "weight-only"]
Calibration = Literal["auto", "minmax", "moving-average", "percentile", "mse", "entropy", "output-mse"]
Io = Literal["float", "int8"]
Optimize = Literal["latency", "size", "accuracy"]
Smooth = Literal["none", "smoothquant", "awq"]
Rotate = Literal["none", "offline", "online"]
Rounding = Literal["nearest", "compensated", "gptq", "adaround", "learned"]
RoundingInputs = Literal["float", "quantized"]
METHODS: tuple[Method, ...] = get_args(Method)
RULE_METHODS: tuple[str, ...] = (*(method for method in METHODS if method != "best"), "float")
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
OPTIMIZE: tuple[Optimize, ...] = get_args(Optimize)
_ACTIVATION_WORDS = ("none", "dynamic")
# Of so many bits and fewer, the level that symmetric codes do not use is worth a zero point.
_FEW_BITS = 4
_EXTREME_DB = 200.0
# Beyond this, weights that are kept apart take more room than codes of twice the bits.
_MOST_OUTLIERS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """An override for the operators whose path, weight or operator type matches a pattern.

    Attributes:
        pattern: A name with wildcards (`*`, `?`), `re:` and a regular expression, or `op:` and an operator type.
        weights: Weight format as text; `None` leaves the recipe's.
        method: `float` keeps the operator in float; the others as in the recipe; `None` leaves the recipe's.
    """

    pattern: str
    weights: str | None = None
    method: Literal["auto", "static", "dynamic", "weight-only", "float"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is to be quantized. Everything has a default that is right for most models.

    Attributes:
        target: Name of a target, or `host`.
        method: `auto` chooses per operator; `best` does so too, and learns what restores accuracy; `static` calibrates
            activations; `dynamic` finds their ranges at run time; `weight-only` leaves activations in float.
        optimize: `latency` takes the fastest plan; `size` stores every weight small, then takes the fastest; `accuracy`
            takes the least noisy of the plans that are nearly as fast as the fastest.
        min_sqnr: Lowest signal to quantization noise ratio at the model's output, in decibel, that a plan is chosen
            for; `None` sets no limit.
        max_sqnr_loss: How many decibel of that ratio integers may cost, compared with the same weights in float.
        max_drop: How much lower the metric may be than the float model's on the verification data, in the metric's own
            unit: 0.01 of a top-1 accuracy that counts from 0 to 1 is one percentage point.
        weights: Weight format as text, e.g. `int8:per-channel`; `None` takes the target's.
        activations: Activation format as text, `none` or `dynamic`; `None` takes the target's.
        calibration: How activation ranges are chosen; `auto` is `mse`, and `output-mse` looks at the outputs of the
            layers that read the activations.
        percentile: Percentage of values that `percentile` keeps.
        weight_range: How weight ranges are chosen.
        bias_correction: Whether biases make up for the mean error that rounding the weights causes.
        rounding: `compensated` rounds weights so that their errors cancel at the output, as far as the inputs in
            calibration are correlated; `gptq` goes further for it, which pays at 4 bits and fewer; `learned` then
            restores the float outputs block by block, learning roundings, scales and biases by gradient; `adaround`
            learns layer by layer whether each weight is rounded down or up; `nearest` rounds each to nearest.
        rounding_inputs: Whose inputs weights are rounded for: those that layers have in the `float` model, or, layer by
            layer, those that the `quantized` layers before really give, so that each makes up for errors of those.
        reestimate: Whether layers get back the mean and spread that each of their outputs has in float, by a factor in
            the weight scales and a shift in the biases, as far as it helps; what BatchNorms would do, were they not
            folded.
        time: Seconds that learning may take; `None` sets no limit.
        equalize: Whether the channels between two layers are scaled so that their ranges are alike on both sides.
        absorb_bias: Whether high biases in front of a Relu or Clip move into the layer behind it, which makes the range
            of the activations smaller. Kept where it helps.
        rotate: Whether channels are rotated so that outliers spread over all of them: `offline` where linear layers on
            both sides take the rotation, `online` also by MatMuls that are added. Kept where it helps.
        smooth: Whether scales move from activations to the weights that read them: `smoothquant` where activations have
            outliers, `awq` where only weights are rounded.
        outliers: Fraction of the weights of a weight-only operator that are kept apart at 16 bits, so that all others
            get finer codes; 0.005 is usual at 2 and 3 bits. Kept where it helps.
        low_rank: Rank of a product of two thin matrices of 16 bits that makes up for what the codes of weight-only
            operators lack. Kept where it helps.
        exclude: Patterns of operators that stay in float; see `Rule.pattern`.
        rules: Overrides, the last one that matches wins.
        io: `int8` lets the model take and return codes where its inputs and outputs are quantized.
        seed: Seed of everything random: the cut between calibration and verification samples.
        samples: Largest number of calibration samples.

    Raises:
        RecipeError: A value does not exist or contradicts another one.
    """

    target: str = "host"
    method: Method = "auto"
    optimize: Optimize = "latency"
    min_sqnr: float | None = None
    max_sqnr_loss: float | None = None
    max_drop: float | None = None
    weights: str | None = None
    activations: str | None = None
    calibration: Calibration = "auto"
    percentile: float = 99.99
    weight_range: Literal["minmax", "percentile", "mse", "entropy"] = "minmax"
    bias_correction: bool = True
    rounding: Rounding = "compensated"
    rounding_inputs: RoundingInputs = "float"
    reestimate: bool = False
    time: float | None = None
    equalize: bool = False
    absorb_bias: bool = False
    rotate: Rotate = "none"
    smooth: Smooth = "none"
    outliers: float = 0.0
    low_rank: int = 0
    exclude: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    io: Io = "float"
    seed: int = 0
    samples: int = 300

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("optimize", self.optimize, OPTIMIZE)
        _one_of("calibration", self.calibration, CALIBRATIONS)
        _one_of("weight_range", self.weight_range, ("minmax", "percentile", "mse", "entropy"))
        _one_of("rounding", self.rounding, get_args(Rounding))
        _one_of("rounding_inputs", self.rounding_inputs, get_args(RoundingInputs))
        if self.rounding == "nearest" and self.rounding_inputs == "quantized":
            raise RecipeError(
                "rounding is nearest and rounding_inputs is quantized",
                cause="rounding to nearest looks at no inputs",
                remedy="use --rounding gptq, or leave rounding_inputs out",
            )
        _one_of("rotate", self.rotate, get_args(Rotate))
        _one_of("smooth", self.smooth, get_args(Smooth))
        _one_of("io", self.io, get_args(Io))
        for label, switch in (
            ("equalize", self.equalize),
            ("absorb_bias", self.absorb_bias),
            ("reestimate", self.reestimate),
        ):
            if not isinstance(switch, bool):
                raise RecipeError(f"{label} is {switch!r}", remedy="use true or false")
        if not 50.0 <= self.percentile <= 100.0:
            raise RecipeError(f"percentile is {self.percentile}", remedy="use a percentage from 50 to 100")
        for label, limit, lowest in (
            ("min_sqnr", self.min_sqnr, -_EXTREME_DB),
            ("max_sqnr_loss", self.max_sqnr_loss, 0.0),
            ("max_drop", self.max_drop, 0.0),
            ("time", self.time, 0.0),
        ):
            _check_limit(label, limit, lowest)
        if self.samples < 1:
            raise RecipeError(f"samples is {self.samples}", remedy="use at least 1, better 100 to 300")
        for label, text in (("weights", self.weights), ("activations", self.activations)):
            if text is None or (label == "activations" and text in _ACTIVATION_WORDS):
                continue
            try:
                parse_format(text)
            except FormatError as error:
                raise RecipeError(f"{label} is {text!r}", cause=str(error)) from error
        self._check_codebooks()
        if isinstance(self.outliers, bool) or not 0.0 <= self.outliers <= _MOST_OUTLIERS:
            raise RecipeError(
                f"outliers is {self.outliers}", remedy=f"give a fraction from 0 to {_MOST_OUTLIERS}, e.g. 0.005"
            )
        if isinstance(self.low_rank, bool) or not isinstance(self.low_rank, int) or self.low_rank < 0:
            raise RecipeError(f"low_rank is {self.low_rank!r}", remedy="give a rank, e.g. 8, or 0 for none")
        for pattern in (*self.exclude, *(rule.pattern for rule in self.rules)):
            _check_pattern(pattern)

    def _check_codebooks(self) -> None:
        """Refuse codebooks where codes are multiplied: they are indices, not numbers."""
        multiplied = self.activations not in {None, "none"}
        if self.activations is not None and _codebook(self.activations):
            raise RecipeError(
                f"activations is {self.activations!r}",
                cause="its codes are indices of levels, which no kernel multiplies",
                remedy="codebooks are for weights; use uint8, or none",
            )
        formats: list[tuple[str, str | None, str]] = [("weights", self.weights, self.method)]
        formats += [(f"weights of {rule.pattern!r}", rule.weights, rule.method or self.method) for rule in self.rules]
        for label, text, method in formats:
            if text is not None and _codebook(text) and (multiplied or method in {"static", "dynamic"}):
                asked = f"activations {self.activations}" if multiplied else f"the method {method}"
                raise RecipeError(
                    f"{label} is {text!r} with {asked}",
                    cause="its codes are indices of levels, which no kernel multiplies",
                    remedy="use --method weight-only, or an integer format",
                )

    def rule_for(self, path: str, op_type: str, weight: str | None) -> Rule:
        """Return the overrides for one operator, exclusions included; later rules win field by field."""
        chosen = Rule(pattern=path)
        for rule in self.rules:
            if matches(rule.pattern, path, op_type, weight):
                chosen = Rule(
                    pattern=rule.pattern, weights=rule.weights or chosen.weights, method=rule.method or chosen.method
                )
        for pattern in self.exclude:
            if matches(pattern, path, op_type, weight):
                chosen = dataclasses.replace(chosen, method="float", pattern=pattern)
        return chosen

    def resolved(self) -> Recipe:
        """Return the recipe with `best` spelled out: what `auto` chooses, learned, from ranges of least error.

        Weights of 4 bits and fewer that are only stored get a zero point, unless their format says what it wants: at 3
        bits that is 8 levels where they are needed instead of 7 around zero.
        """
        if self.method != "best":
            return self
        weight_range = "mse" if self.weight_range == "minmax" else self.weight_range
        rounding: Rounding = "learned" if self.rounding == "compensated" else self.rounding
        weights = self.weights
        if weights is not None and self.activations == "none":
            weights = _with_zero_point(weights)
        return dataclasses.replace(self, method="auto", weight_range=weight_range, rounding=rounding, weights=weights)

    @property
    def learns(self) -> bool:
        """Whether roundings are learned by gradient."""
        return self.rounding in {"adaround", "learned"}

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain values, ready for YAML."""
        return {
            **dataclasses.asdict(self),
            "exclude": list(self.exclude),
            "rules": [{key: value for key, value in dataclasses.asdict(rule).items() if value} for rule in self.rules],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Build a recipe from plain values.

        Raises:
            RecipeError: A key or value is unknown.
        """
        values = known_values(data, [item.name for item in dataclasses.fields(cls)])
        values["exclude"] = _strings("exclude", values.get("exclude", ()))
        values["rules"] = tuple(_rule(item) for item in values.get("rules") or ())
        try:
            return cls(**values)
        except TypeError as error:
            raise RecipeError("the recipe has a value of the wrong kind", cause=str(error)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: The file cannot be read or is no recipe.
        """
        return cls.from_dict(read_yaml(path, "recipe"))


def _with_zero_point(weights: str) -> str:
    """Return a format of few bits with a zero point, if it leaves that open."""
    words = weights.split(":")
    element = parse_format(weights).element
    said = {"symmetric", "asymmetric", "narrow"} & set(words)
    if said or element.kind != "integer" or not element.signed or element.bits > _FEW_BITS:
        return weights
    return f"{weights}:asymmetric"


def _codebook(text: str) -> bool:
    """Whether a format is a codebook; words that are no format are none."""
    return text not in _ACTIVATION_WORDS and parse_format(text).element.kind == "codebook"


def read_yaml(path: str | Path, what: str) -> Any:
    """Return the content of a YAML file.

    Raises:
        RecipeError: It cannot be read or is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the {what} '{path}' cannot be read", cause=str(error)) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"the {what} '{path}' is not YAML", cause=str(error)) from error


def known_values(data: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return what a recipe says, by key.

    Raises:
        RecipeError: It is no mapping, or a key is unknown.
    """
    if not isinstance(data, Mapping):
        raise RecipeError("the recipe is not a mapping", remedy=f"write lines like `seed: 1`; keys: {', '.join(known)}")
    for key in data:
        if key not in known:
            raise RecipeError(f"unknown recipe key {key!r}", remedy=f"use one of {', '.join(known)}")
    return dict(data)


def matches(pattern: str, path: str, op_type: str, weight: str | None) -> bool:
    """Whether a pattern means an operator: by its path, by the name of its weight, or by `op:` and its type."""
    if pattern.startswith("op:"):
        return fnmatch.fnmatchcase(op_type, pattern[3:])
    names = [path] if weight is None else [path, weight]
    if pattern.startswith("re:"):
        return any(re.search(pattern[3:], name) for name in names)
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _check_limit(label: str, value: float | None, lowest: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < lowest:
        what = "a number" if lowest < 0 else "a number from 0 on"
        raise RecipeError(f"{label} is {value!r}", remedy=f"give {what}, or leave it out")


def _check_pattern(pattern: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise RecipeError(f"the pattern {pattern!r} is no regular expression", cause=str(error)) from error


def _one_of(label: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise RecipeError(f"{label} is {value!r}", remedy=f"use one of {', '.join(allowed)}")


def _strings(label: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise RecipeError(f"{label} is {value!r}", remedy="give a list of patterns")


def _rule(item: Any) -> Rule:
    if isinstance(item, Rule):
        return item
    known = [entry.name for entry in dataclasses.fields(Rule)]
    if not isinstance(item, Mapping) or "pattern" not in item or set(item) - set(known):
        raise RecipeError(f"the rule {item!r} is malformed", remedy=f"give a mapping with {', '.join(known)}")
    rule = Rule(**cast("dict[str, Any]", dict(item)))
    _one_of("a rule's method", rule.method or "auto", RULE_METHODS)
    if rule.weights is not None:
        try:
            parse_format(rule.weights)
        except LowbitError as error:
            raise RecipeError(f"a rule's weights is {rule.weights!r}", cause=str(error)) from error
    return rule
