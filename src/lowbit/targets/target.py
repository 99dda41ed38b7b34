"""What a target is: an engine on an instruction set, described as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lowbit.formats import PerBlock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lowbit.formats import Format

__all__ = ["CostModel", "OperatorSupport", "Role", "Target"]

_INT8_MAXIMUM = 127
_BYTE = 8
# Engines that fold a Cast of a constant before they look for integer kernels.
_FOLDS_CASTS = ("onnxruntime",)

Role = Literal["convolution", "matmul", "binary", "unary", "pool", "global-pool", "concat", "passive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSupport:
    """How a target runs one operator between DequantizeLinear and QuantizeLinear.

    Attributes:
        role: What kind of operator it is; decides its inputs, its cost formula and its scales.
        float_output: Whether the integer kernel can also write float, so that no QuantizeLinear has to follow.
        attributes: Attribute values that the integer kernel demands, e.g. `{"mode": ("nearest",)}`.
        constants: Values that a constant input has to have, by its position, e.g. `{1: (2.0,)}` for squares.
        output_range: Fixed range of the output, where the engine or the mathematics imply one.
        gate: Whether the product of its input and output, as of a HardSwish, is one kernel, in which it has no codes.
    """

    role: Role
    float_output: bool = False
    attributes: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    constants: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    output_range: tuple[float, float] | None = None
    gate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Cost of kernels in nanoseconds on one thread, as a few measured constants.

    The formulas are in `lowbit.plan.cost`. `mac` is one multiply-accumulate, `out` one output element, `tap` one kernel
    position of one output pixel (what gathering the input costs; in float, per block of eight output channels), `entry`
    a convolution of an image with few channels, `node` one kernel launch.
    """

    float_pointwise_mac: float
    float_conv_mac: float
    float_conv_out: float
    float_conv_tap: float
    float_entry_mac: float
    float_matmul_mac: float
    float_matvec_weight: float
    int_conv_mac: float
    int_conv_out: float
    int_conv_tap: float
    int_matmul_mac: float
    int_matmul_out: float
    int_matvec_weight: float
    float_depthwise_out: float
    float_depthwise_mac: float
    float_depthwise_border: float
    int_depthwise_out: float
    int_depthwise_mac: float
    float_elementwise: Mapping[str, float]
    int_elementwise: Mapping[str, float]
    quantize: float
    dequantize: float
    layout: float
    dynamic_quantize: float
    node: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine on an instruction set: what it fuses to integer kernels, what saturates there, and what it costs.

    Attributes:
        name: Name as users type it, e.g. `onnxruntime-x86-avx2`.
        engine: The engine's package, e.g. `onnxruntime`.
        description: One line for `lowbit targets`.
        saturates: Whether the u8×s8 kernel adds pairs of products in a saturating 16-bit lane.
        weights: Default weight format as text.
        activations: Default activation format as text.
        weight_elements: Weight element types that have integer kernels.
        activation_elements: Activation element types that have integer kernels.
        operators: Support by ONNX operator; what is missing has no integer kernel.
        fused_activations: Operators that disappear into the QuantizeLinear behind an integer kernel.
        dynamic_operators: Operators that have a kernel with activation ranges at run time.
        depth_multiple: Integer convolutions read this many numbers (channels × kernel positions) at once, and are slow
            where the last group is not full: images then get channels of zeros.
        pairs: Which products the saturating lane adds: neighbours in the whole `sequence` of (kernel row, kernel
            column, channel), or, starting anew at every `tap`, neighbouring channels only.
        provider: The engine's part that runs there, e.g. `NNAPI`; empty for what `lowbit` can run itself.
        symmetric_activations: Whether the zero points of activations have to be 0.
        float_bias: Whether biases stay in float, because the engine quantizes them itself.
        stepwise_operators: Operators without an integer kernel that are computed in several steps which have one.
        step_activations: Format of the tensors between such steps as text.
        fixed_shapes: Whether every dimension has to be known.
        integer_only: Whether it runs a whole model in integers or not at all, so that `auto` leaves nothing in float.
        highest_opset: Latest operator set that is read, `None` if there is no limit.
        source: Where the rules come from, for targets that are not run here.
        costs: Cost constants; `None` if nobody measured this target.
        measured: Where and with which version the data below were measured, in words.
    """

    name: str
    engine: str
    description: str
    saturates: bool
    weights: str
    activations: str
    weight_elements: tuple[str, ...]
    activation_elements: tuple[str, ...]
    operators: Mapping[str, OperatorSupport]
    fused_activations: tuple[str, ...]
    dynamic_operators: tuple[str, ...]
    costs: CostModel | None
    measured: str
    depth_multiple: int = 1
    pairs: Literal["sequence", "tap"] = "sequence"
    provider: str = ""
    symmetric_activations: bool = False
    float_bias: bool = False
    stepwise_operators: tuple[str, ...] = ()
    step_activations: str = ""
    fixed_shapes: bool = False
    integer_only: bool = False
    highest_opset: int | None = None
    source: str = ""

    def runs_weights(self, fmt: Format) -> bool:
        """Whether it has integer kernels for weights of a format: by itself, or cast to int8 when the model loads."""
        return fmt.element.name in self.weight_elements or self.widens_weights(fmt)

    def runs_activations(self, fmt: Format) -> bool:
        """Whether it has integer kernels for activations of a format: by itself, or clipped codes of 8 bits."""
        element = fmt.element
        carried = "int8" if element.signed else "uint8"
        narrower = element.kind == "integer" and element.bits <= _BYTE
        return element.name in self.activation_elements or (narrower and carried in self.activation_elements)

    def widens_weights(self, fmt: Format) -> bool:
        """Whether weights of a format become int8 for an integer kernel: narrower signed integers, not in blocks."""
        return (
            not self.provider
            and self.engine in _FOLDS_CASTS
            and "int8" in self.weight_elements
            and fmt.element.name not in self.weight_elements
            and fmt.element.kind == "integer"
            and fmt.element.signed
            and fmt.element.maximum < _INT8_MAXIMUM
            and fmt.symmetric
            and not isinstance(fmt.granularity, PerBlock)
        )

    @property
    def loads_here(self) -> bool:
        """Whether its engine loads artifacts on whatever processor this is, so that fusions can be read back."""
        return not self.provider
