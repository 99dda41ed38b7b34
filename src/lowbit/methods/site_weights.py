"""Rewriting the weights of sites as their plan entries say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from lowbit.exceptions import RecipeError
from lowbit.formats import (
    Format,
    Parameters,
    PerBlock,
    PerChannel,
    PerTensor,
    choose_parameters,
    parse_format,
    quantize,
)
from lowbit.graph.codebook_weights import looked_up_at_load
from lowbit.graph.constants import constant_array
from lowbit.graph.qdq import dequantized_bias, dequantized_weight
from lowbit.graph.run_time_quantization import dynamic_convolution, dynamic_lstm, dynamic_matmul
from lowbit.graph.stored_weights import cast_weight, decoded_at_load, decoded_rows
from lowbit.methods.kept_beside import add_to_output, add_to_weight, beside_of
from lowbit.methods.planned_weight import planned_weight
from lowbit.methods.weights import EncodedWeight, corrected_bias, encode_matrix, encode_weight, rerounded
from lowbit.plan.packed import unpack_floats
from lowbit.rounding import fitted_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor
    from lowbit.plan.plan import ActivationPlan, SitePlan
    from lowbit.plan.sites import Site
    from lowbit.rounding import RangeMethod
    from lowbit.targets import Target

__all__ = ["AppliedWeight", "WeightEncoder", "final_bias", "input_mean"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AppliedWeight:
    """A weight before and after, for the report.

    Attributes:
        name: Name of the float weight.
        original: The float32 weight, in its own shape.
        encoded: The same as codes.
    """

    name: str
    original: NDArray[np.float32]
    encoded: EncodedWeight


class WeightEncoder:
    """Encodes the weights of one model, each only once for all the sites that share it.

    Args:
        editor: Editor of the model, which is changed.
        method: How weight ranges are chosen; see `lowbit.rounding.weight_range`.
        target: Where the model will run; decides whether weights must not saturate.
    """

    def __init__(self, editor: Editor, method: str, target: Target) -> None:
        self.editor = editor
        self.method = cast("RangeMethod", method)
        self.target = target
        self.encoded: dict[str, AppliedWeight] = {}
        self._shared: dict[tuple[Any, ...], tuple[ir.Value, EncodedWeight]] = {}

    def encode(self, site: Site, entry: SitePlan, coded: Mapping[ir.Value, ActivationPlan]) -> tuple[str, ...]:
        """Rewrite the weights of one site as its entry says, and return what is to be noted."""
        if entry.execution == "float" or (entry.weights is None and site.op_type != "LSTM"):
            if entry.execution == "static":
                self._constant_operand(site, coded)
            return ()
        assert entry.weights is not None
        fmt = parse_format(entry.weights)
        if fmt.element.kind == "codebook" and entry.execution != "weight-only":
            raise RecipeError(
                f"the plan wants {entry.node!r} as {entry.execution} with {fmt} weights",
                cause="their codes are indices of levels, which no kernel multiplies",
                remedy="plan it as weight-only, or with an integer format",
            )
        if fmt.element.kind == "float" and fmt.element.bits == 16:
            return self._half(site, fmt) if entry.activations is None else ()
        if site.op_type in {"LSTM", "GRU", "RNN"} and entry.execution == "weight-only":
            return self._recurrent(site, fmt)
        if site.op_type == "LSTM":
            return self._lstm(site, fmt)
        if entry.execution == "static":
            return self._static(site, fmt, entry, coded)
        if entry.execution == "dynamic":
            return self._dynamic(site, fmt)
        return self._weight_only(site, fmt, entry)

    def _static(
        self, site: Site, fmt: Format, entry: SitePlan, coded: Mapping[ir.Value, ActivationPlan]
    ) -> tuple[str, ...]:
        read = site.node.inputs[0]
        assert read is not None
        tensor = coded[read]
        saturates = self.target.saturates and tensor.format.startswith("uint8")
        encoded = encode_weight(
            site,
            fmt,
            saturates=saturates,
            input_scale=tensor.scale,
            method=self.method,
            by_tap=self.target.pairs == "tap",
            scale=unpack_floats(entry.scale) if entry.scale is not None else None,
        )
        encoded = rerounded(site, encoded, entry.rounding)
        self._remember(site, encoded)
        weight = site.weight
        assert weight is not None
        assert site.weight_index is not None
        key = ("static", weight, str(encoded.fmt), encoded.parameters, encoded.codes.tobytes())
        decoded = self._shared[key][0] if key in self._shared else None
        if decoded is None:
            decoded = dequantized_weight(
                self.editor,
                site.node,
                weight.name or "weight",
                encoded.codes,
                encoded.parameters,
                encoded.fmt,
                widened=self.target.widens_weights(encoded.fmt),
            )
            self._shared[key] = (decoded, encoded)
        # Before the site's weight becomes the decoded one, of which nothing is lost any more.
        bias = final_bias(site, encoded, entry)
        if bias is not None and self.target.float_bias:
            self._float_bias(site, bias)
        elif bias is not None:
            self._bias(site, bias, np.float32(tensor.scale), encoded)
        site.node.replace_input_with(site.weight_index, decoded)
        return encoded.notes

    def _bias(self, site: Site, bias: NDArray[np.float32], input_scale: Any, encoded: EncodedWeight) -> None:
        """Give the site an integer bias, on the node or on the Add behind it."""
        name = site.bias.name if site.bias is not None and site.bias.name else f"{site.weight.name}_bias"  # type: ignore[union-attr]
        before = site.bias_node or site.node
        decoded = dequantized_bias(self.editor, before, name, bias, input_scale, encoded.parameters.scale)
        if site.bias_node is not None:
            index = next(i for i, value in enumerate(site.bias_node.inputs) if value is site.bias)
            site.bias_node.replace_input_with(index, decoded)
        elif site.op_type in {"Conv", "Gemm"}:
            if len(site.node.inputs) < 3:
                site.node.resize_inputs(3)
            site.node.replace_input_with(2, decoded)

    def _float_bias(self, site: Site, bias: NDArray[np.float32]) -> None:
        """Give the site its corrected bias in float: under float activations, and where engines quantize biases."""
        graph = site.node.graph
        assert isinstance(graph, ir.Graph)
        name = site.bias.name if site.bias is not None and site.bias.name else f"{site.weight.name}_bias"  # type: ignore[union-attr]
        constant = self.editor.constant(graph, f"{name}_corrected", bias.astype(np.float32))
        node = site.bias_node or site.node
        if site.bias_node is not None:
            index = next(i for i, value in enumerate(node.inputs) if value is site.bias)
            node.replace_input_with(index, constant)
        elif site.op_type in {"Conv", "Gemm"}:
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, constant)

    def _constant_operand(self, site: Site, coded: Mapping[ir.Value, ActivationPlan]) -> None:
        """Quantize the constant operand of an Add, Mul or Concat per tensor, from its own range."""
        del coded
        for index in site.activations:
            value = site.node.inputs[index]
            array = constant_array(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            fmt = parse_format(self.target.activations)
            encoded = encode_constant(array, fmt)
            decoded = dequantized_weight(
                self.editor, site.node, value.name or "constant", encoded.codes, encoded.parameters, fmt
            )
            site.node.replace_input_with(index, decoded)

    def _dynamic(self, site: Site, fmt: Format) -> tuple[str, ...]:
        # ConvInteger multiplies weights by pixels, signed by unsigned, in a kernel that does not saturate.
        saturates = self.target.saturates and site.op_type != "Conv"
        encoded = encode_weight(site, fmt, saturates=saturates, method=self.method)
        self._remember(site, encoded)
        assert site.weight is not None
        name = site.weight.name or "weight"
        if site.op_type == "Conv":
            dynamic_convolution(self.editor, site.node, name, encoded.codes, encoded.parameters, encoded.fmt)
            return encoded.notes
        codes = encoded.codes
        if site.op_type == "Gemm" and site.attribute("transB", 0):
            codes = np.ascontiguousarray(codes.T)
        dynamic_matmul(self.editor, site.node, name, codes, encoded.parameters, encoded.fmt)
        return encoded.notes

    def _lstm(self, site: Site, fmt: Format) -> tuple[str, ...]:
        pairs = []
        notes: tuple[str, ...] = ()
        for index in (1, 2):
            array = constant_array(site.node.inputs[index])
            assert array is not None
            each = [
                encode_matrix(np.ascontiguousarray(direction.T), fmt, saturates=self.target.saturates)
                for direction in array
            ]
            scale = np.stack([np.broadcast_to(one.parameters.scale, (array.shape[1],)) for one in each])
            zero = np.zeros(scale.shape, dtype=fmt.element.dtype)
            pairs.append((np.stack([one.codes for one in each]), Parameters(scale.astype(np.float32), zero)))
            notes += tuple(note for one in each for note in one.notes)
        dynamic_lstm(self.editor, site.node, pairs[0], pairs[1], fmt)
        return notes

    def _recurrent(self, site: Site, fmt: Format) -> tuple[str, ...]:
        """Store both weights of a recurrent operator small, per row or block of a gate, decoded at load time."""
        notes: tuple[str, ...] = ()
        for index in (1, 2):
            value = site.node.inputs[index]
            array = constant_array(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            # [directions, gates · hidden, summed] as [rows, summed].
            rows = array.reshape(-1, array.shape[-1])
            granularity = fmt.granularity
            if isinstance(granularity, PerBlock) and rows.shape[1] % granularity.size == 0:
                granularity = PerBlock(1, granularity.size)
            elif isinstance(granularity, PerBlock):
                notes += (f"per row instead of blocks of {granularity.size}: {rows.shape[1]} does not divide",)
                granularity = PerChannel(0)
            elif isinstance(granularity, PerChannel):
                granularity = PerChannel(0)
            placed = Format(fmt.element, granularity, fmt.symmetric, fmt.narrow)
            parameters = fitted_parameters(rows, placed, self.method)
            store = looked_up_at_load if placed.element.kind == "codebook" else decoded_at_load
            decoded = store(
                self.editor,
                site.node,
                value.name or "weight",
                quantize(rows, parameters, placed),
                parameters,
                placed,
                shape=array.shape,
            )
            site.node.replace_input_with(index, decoded)
        return notes

    def _weight_only(self, site: Site, fmt: Format, entry: SitePlan) -> tuple[str, ...]:
        encoded = planned_weight(site, fmt, entry, self.method)
        self._remember(site, encoded)
        weight = site.weight
        assert weight is not None
        assert site.weight_index is not None
        name = weight.name or "weight"
        if entry.bias is not None or input_mean(site, entry) is not None:
            bias = final_bias(site, encoded, entry)
            assert bias is not None
            self._float_bias(site, bias)
        simple = encoded.fmt.symmetric and encoded.fmt.element.name == "int8" and encoded.beside is None
        rows = site.op_type == "Gather" and site.attribute("axis", 0) == 0
        if rows and simple and not isinstance(encoded.fmt.granularity, PerBlock):
            scale = np.broadcast_to(encoded.parameters.scale, (encoded.codes.shape[0],)).astype(np.float32)
            decoded_rows(self.editor, site.node, name, encoded.codes, scale, encoded.fmt)
            return encoded.notes
        blocks = isinstance(encoded.fmt.granularity, PerBlock) and entry.decode == "kernel"
        codes, where = encoded.codes.tobytes(), str(encoded.fmt.granularity)
        key = ("weight-only", weight, str(encoded.fmt), blocks, where, codes, entry.codebook, *beside_of(entry))
        if key in self._shared:
            value = self._shared[key][0]
        else:
            looked_up = encoded.fmt.element.kind == "codebook"
            store = dequantized_weight if blocks else looked_up_at_load if looked_up else decoded_at_load
            value = store(self.editor, site.node, name, encoded.codes, encoded.parameters, encoded.fmt)
            if encoded.beside is not None and not blocks:
                value = add_to_weight(self.editor, site, value, encoded.beside)
            self._shared[key] = (value, encoded)
        site.node.replace_input_with(site.weight_index, value)
        if encoded.beside is not None and blocks:
            add_to_output(self.editor, site, encoded.beside)
        return encoded.notes

    def _half(self, site: Site, fmt: Format) -> tuple[str, ...]:
        assert site.weight is not None
        assert site.weight_index is not None
        key = ("half", site.weight, fmt.element.name)
        if key not in self._shared:
            name = site.weight.name or "weight"
            half = site.weight_array().astype(fmt.element.dtype)
            encoded = EncodedWeight(
                codes=half,
                parameters=Parameters(np.float32(1.0), np.zeros((), dtype=fmt.element.dtype)),  # type: ignore[arg-type]
                fmt=Format(fmt.element, PerTensor()),
            )
            self._shared[key] = (cast_weight(self.editor, site.node, name, half, encoded.fmt), encoded)
        site.node.replace_input_with(site.weight_index, self._shared[key][0])
        return ()

    def _remember(self, site: Site, encoded: EncodedWeight) -> None:
        assert site.weight is not None
        self.encoded[site.path] = AppliedWeight(
            name=site.weight.name or site.path, original=site.weight_array(), encoded=encoded
        )


def final_bias(site: Site, encoded: EncodedWeight, entry: SitePlan) -> NDArray[np.float32] | None:
    """Return the bias of a site: learned, corrected or its own; `None` if there is none."""
    if entry.bias is None:
        return corrected_bias(site, encoded, input_mean(site, entry))
    bias = unpack_floats(entry.bias)
    if site.bias is None or site.bias.const_value is None or bias.size != site.bias.const_value.size:
        raise RecipeError(
            f"the plan has a bias of {bias.size} numbers for {site.path!r}, which does not fit",
            remedy="make the plan again with --save-plan",
        )
    return bias


def input_mean(site: Site, entry: SitePlan) -> NDArray[np.float32] | None:
    """Return the mean of every channel that a site reads, where calibration has measured it."""
    if not entry.input_mean:
        return None
    mean = unpack_floats(entry.input_mean)
    if site.op_type != "Conv":
        return mean
    # Channels that were added to the input are zero.
    missing = site.weight_array().shape[1] * site.attribute("group", 1) - mean.size
    return np.pad(mean, (0, missing))


def encode_constant(array: NDArray[np.float32], fmt: Format) -> EncodedWeight:
    parameters = choose_parameters(min(float(array.min()), 0.0), max(float(array.max()), 0.0), fmt)
    return EncodedWeight(codes=quantize(array, parameters, fmt), parameters=parameters, fmt=fmt)
