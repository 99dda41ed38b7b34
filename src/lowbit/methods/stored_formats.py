"""Reading the formats of a quantized graph back: Q/DQ pairs, decoded weights, integer operators, and their plumbing."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

from lowbit.graph.constants import is_constant
from lowbit.methods.stored_codebooks import lookup_format, stored_lookup
from lowbit.plan.sites import Site, walk

if TYPE_CHECKING:
    from lowbit.plan.plan import Execution

__all__ = ["StoredFormats"]

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
_DYNAMIC = frozenset(
    {"ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
)
_BLOCKED = frozenset({"GatherBlockQuantized", "MatMulBnb4", "MatMulNBits"})
_WEIGHT_AT = {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (1, 0), "Gemm": (1, 0), "Gather": (0,)}
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
# Where an integer operator holds its weight, and where the weight's scale (`None`: outside).
_INTEGER_WEIGHT: dict[str, tuple[int, int | None]] = {
    "ConvInteger": (1, None),
    "DynamicQuantizeLSTM": (1, 8),
    "DynamicQuantizeMatMul": (1, 2),
    "MatMulInteger": (1, None),
    "MatMulIntegerToFloat": (1, 3),
    "QGemm": (3, 4),
    "QLinearConv": (3, 4),
    "QLinearMatMul": (3, 4),
}
_HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


class StoredFormats:
    """What the nodes around an operator say of its formats.

    Args:
        model: A graph with inferred types; left unchanged.
    """

    def __init__(self, model: ir.Model) -> None:
        self._nodes = [node for _, node, _ in walk(model.graph)]
        self._fixed: dict[ir.Value, bool] = {}
        self._plumbing = {node for node in self._nodes if node.op_type in _CONVERSIONS or self._is_fixed_node(node)}
        for node in self._nodes:
            if node.op_type in {"ConvInteger", "MatMulInteger"}:
                self._mark_rescaling(node)
            elif node.op_type == "Gather" and self._coded_table(node):
                self._mark_row_decoding(node)

    def is_plumbing(self, node: ir.Node) -> bool:
        """Whether a node only converts or decodes for another operator."""
        return node in self._plumbing

    def conversions(self) -> dict[str, int]:
        """Return how many nodes convert activations when the model runs."""
        found = (node.op_type for node in self._nodes if node.op_type in _CONVERSIONS and not self._is_fixed_node(node))
        return dict(Counter(found))

    def has_weight(self, site: Site) -> bool:
        """Whether an operator has a constant weight in any format."""
        return self._weight(site.node) is not None

    def reads_codes(self, site: Site) -> bool:
        """Whether an operator reads at least one quantized activation."""
        return any(self._activation(value) for value in site.node.inputs)

    def writes_codes(self, site: Site) -> bool:
        """Whether everything that reads an operator's output reads it as codes."""
        if site.op_type.startswith("Q"):
            return True
        uses = site.output.uses()
        return bool(uses) and all(use.node.op_type == "QuantizeLinear" for use in uses)

    def of(self, site: Site) -> tuple[Execution, str | None, str | None]:
        """Return how an operator runs, and the formats of its weight and activations as text."""
        node = site.node
        if node.op_type in _DYNAMIC:
            return "dynamic", self._integer_weight(node), "uint8"
        if node.op_type.startswith("QLinear") or node.op_type == "QGemm":
            return "static", self._integer_weight(node), _type_name(node.inputs[0])
        if node.op_type in _BLOCKED:
            bits = node.attributes.get("bits")
            block = node.attributes.get("block_size")
            size = f":block={block.as_int()}" if block is not None else ""
            return "weight-only", f"int{bits.as_int() if bits is not None else 4}{size}", None
        weight = self._weight(node)
        stored = self._weight_format(weight) if weight is not None else None
        if node.op_type == "Gather" and self._coded_table(node):
            return "weight-only", f"{_type_name(node.inputs[0])}:per-channel", None
        read = [value for value in node.inputs if value is not None and not self._is_fixed(value) and _is_float(value)]
        codes = [self._activation(value) for value in read]
        if codes and all(codes) and (weight is None or stored is not None):
            return "static", stored, codes[0]
        if any(value.dtype in _HALVES for value in node.outputs) and node.op_type != "Cast":
            return "half", stored, None
        return ("weight-only" if stored is not None else "float"), stored, None

    def _weight(self, node: ir.Node) -> ir.Value | None:
        """Return the constant weight of an operator as it stands at its input."""
        positions = (1,) if node.op_type in _RECURRENT else _WEIGHT_AT.get(node.op_type, ())
        for index in positions:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and self._is_fixed(value):
                return value
        return None

    def _weight_format(self, value: ir.Value) -> str | None:
        """Return the format in which a constant weight is stored, `None` for plain float32."""
        if is_constant(value):
            return str(_type_name(value)) if value.dtype in _HALVES else None
        chain = _ancestors(value)
        decoder = next((node for node in chain if node.op_type == "DequantizeLinear"), None)
        if decoder is not None:
            name, block = _type_name(decoder.inputs[0]), decoder.attributes.get("block_size")
            if block is not None and block.as_int():
                return f"{name}:block={block.as_int()}"
            return f"{name}{_per_channel(decoder.inputs[1])}"
        lookup = stored_lookup(chain)
        if lookup is not None:
            return lookup_format(lookup, chain)
        casts = [node for node in chain if node.op_type == "Cast" and is_constant(node.inputs[0])]
        # Beside codes stand 16-bit floats that correct them.
        casts.sort(key=lambda node: not _is_integer(node.inputs[0]))
        codes = casts[0].inputs[0] if casts else None
        if codes is None:
            return None
        name = _type_name(codes)
        scaling = next((node for node in chain if node.op_type == "Mul"), None)
        scale = (
            next((item for item in scaling.inputs if item is not None and is_constant(item)), None) if scaling else None
        )
        if scale is None or scale.const_value is None or codes.const_value is None:
            return name
        reshaped = any(node.op_type == "Reshape" for node in chain)
        reshaped &= value.shape is None or len(value.shape) < codes.const_value.shape.rank()
        if reshaped and scale.const_value.size > 1:
            for length, scales in zip(codes.const_value.shape.numpy(), scale.const_value.shape.numpy(), strict=True):
                if scales == 1 and length > 1:
                    return f"{name}:block={length}"
        return f"{name}{_per_channel(scale)}"

    def _integer_weight(self, node: ir.Node) -> str | None:
        if node.op_type not in _INTEGER_WEIGHT:
            return None
        position, scale_at = _INTEGER_WEIGHT[node.op_type]
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None or not is_constant(value):
            return None
        scale = node.inputs[scale_at] if scale_at is not None and scale_at < len(node.inputs) else None
        if scale_at is None:
            scale = self._outer_scale(node)
        return f"{_type_name(value)}{_per_channel(scale)}"

    def _outer_scale(self, node: ir.Node) -> ir.Value | None:
        """Return the weight's scale that DynamicQuantizeLinear's is multiplied with."""
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is None or source.op_type != "DynamicQuantizeLinear":
            return None
        for use in source.outputs[1].uses():
            for value in use.node.inputs:
                if value is not None and is_constant(value):
                    return value
        return None

    def _activation(self, value: ir.Value | None) -> str | None:
        """Return the format of a tensor that is decoded from codes when the model runs."""
        producer = value.producer() if value is not None else None
        if value is None or producer is None or producer.op_type != "DequantizeLinear" or self._is_fixed(value):
            return None
        return _type_name(producer.inputs[0]) or _type_name(producer.inputs[-1])

    def _is_fixed(self, value: ir.Value) -> bool:
        """Whether a tensor is the same in every run: constant, or computed from constants only."""
        if value not in self._fixed:
            producer = value.producer()
            self._fixed[value] = is_constant(value) or (producer is not None and self._is_fixed_node(producer))
        return self._fixed[value]

    def _is_fixed_node(self, node: ir.Node) -> bool:
        if node.op_type.startswith("Random"):
            return False
        return node.op_type == "Constant" or (
            bool(node.inputs) and all(self._is_fixed(value) for value in node.inputs if value is not None)
        )

    def _mark_rescaling(self, node: ir.Node) -> None:
        """Mark `Cast → Mul` behind an integer product, and the product of both scales."""
        for use in node.outputs[0].uses():
            if use.node.op_type == "Cast":
                self._plumbing.add(use.node)
                for scaled in use.node.outputs[0].uses():
                    if scaled.node.op_type == "Mul":
                        self._plumbing.add(scaled.node)
        source = node.inputs[0].producer() if node.inputs[0] is not None else None
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            self._plumbing.update(use.node for use in source.outputs[1].uses() if use.node.op_type == "Mul")

    def _mark_row_decoding(self, node: ir.Node) -> None:
        """Mark `Cast → Mul(·, Gather(scale))` behind a lookup of codes."""
        for cast in (use.node for use in node.outputs[0].uses()):
            for product in (use.node for use in cast.outputs[0].uses() if use.node.op_type == "Mul"):
                self._plumbing.update((cast, product))
                for value in product.inputs:
                    producer = value.producer() if value is not None else None
                    if producer is not None and producer.op_type == "Gather":
                        self._plumbing.add(producer)

    def _coded_table(self, node: ir.Node) -> bool:
        """Whether a Gather looks up rows of codes that are decoded behind it."""
        table, uses = node.inputs[0], node.outputs[0].uses()
        if table is None or not is_constant(table) or table.dtype is None or not uses:
            return False
        return (
            table.dtype.is_integer() and table.dtype.itemsize <= 1 and all(use.node.op_type == "Cast" for use in uses)
        )


def _ancestors(value: ir.Value) -> list[ir.Node]:
    """Return the nodes from which a tensor is computed, the nearest first."""
    found: list[ir.Node] = []
    pending = [value]
    while pending:
        producer = pending.pop(0).producer()
        if producer is not None and producer not in found:
            found.append(producer)
            pending.extend(source for source in producer.inputs if source is not None)
    return found


def _per_channel(scale: ir.Value | None) -> str:
    constant = scale.const_value if scale is not None else None
    return ":per-channel" if constant is not None and constant.size > 1 else ""


def _type_name(value: ir.Value | None) -> str | None:
    if value is None or value.dtype is None:
        return None
    return value.dtype.name.lower()


def _is_integer(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_integer()


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()
