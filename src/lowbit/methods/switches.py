"""A float model in which every quantization can be switched on and off while it runs.

Measuring what each of a hundred operators adds to the error at the output would take a hundred quantized models, loaded
and optimized one by one. Here it takes one: behind every tensor that may carry codes stands an `If` that rounds it or
hands it on, and every weight that may be rounded is an input with the float weight as its default.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx_ir as ir

from lowbit.formats import choose_parameters, minimum_opset, parse_format, quantize
from lowbit.formats import dequantize as decode
from lowbit.graph import opset_of, raise_opset
from lowbit.graph.constants import constant_array, is_constant
from lowbit.graph.editor import Editor
from lowbit.graph.qdq import bias_codes
from lowbit.methods.planned_weight import planned_weight
from lowbit.methods.weights import EncodedWeight, corrected_bias, encode_matrix, encode_weight, rerounded
from lowbit.plan.packed import unpack_floats
from lowbit.plan.sites import Site, find_sites

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from lowbit.plan.plan import ActivationPlan, Execution, Plan, SitePlan
    from lowbit.rounding import RangeMethod
    from lowbit.targets import Target

__all__ = ["Switched", "switched_model"]

# Q/DQ with codes from 8 bits on and DynamicQuantizeLinear.
_LOWEST_OPSET = 13
_STATIC: Execution = "static"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Switches:
    """What has to be fed for one site to run quantized.

    Attributes:
        reads: Flags of the tensors that it reads as codes.
        writes: The flag of its output, empty if that stays float.
        forced: Whether something that can never read codes reads its output, so that nobody else pays for its rounding.
        arrays: Weights, biases and constants as the codes decode.
    """

    reads: tuple[str, ...] = ()
    writes: str = ""
    forced: bool = False
    arrays: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Switched:
    """A model with switches.

    Attributes:
        model: The float model; whatever its additional inputs are fed with replaces their defaults.
        switches: By path and execution (`static`, `dynamic`, `weight-only`), what to feed.
        readers: By path of a site, the sites that may read its output as codes.
    """

    model: ir.Model
    switches: Mapping[tuple[str, Execution], _Switches]
    readers: Mapping[str, frozenset[str]]

    def feed(self, executions: Mapping[str, Execution]) -> dict[str, NDArray[Any]]:
        """Return what to feed, besides the model's own inputs, so that it computes what a plan would."""
        result: dict[str, NDArray[Any]] = {}
        for path, execution in executions.items():
            found = self.switches.get((path, execution))
            if found is None:
                continue
            result.update(found.arrays)
            result.update(dict.fromkeys(found.reads, np.asarray(True)))
            if found.writes and self._is_coded(path, executions):
                result[found.writes] = np.asarray(True)
        return result

    def share(self, path: str, execution: Execution) -> dict[str, NDArray[Any]]:
        """Return what to feed so that one site adds its share of the noise of a whole plan.

        A tensor between two integer sites is rounded once, and its reader pays for it; the writer pays where there is
        no such reader.
        """
        found = self.switches[path, execution]
        result: dict[str, NDArray[Any]] = {**found.arrays, **dict.fromkeys(found.reads, np.asarray(True))}
        if found.writes and found.forced:
            result[found.writes] = np.asarray(True)
        return result

    def weights(self, path: str, execution: Execution) -> Mapping[str, NDArray[Any]]:
        """Return what to feed so that only the weights of one site are rounded."""
        return self.switches[path, execution].arrays

    def _is_coded(self, path: str, executions: Mapping[str, Execution]) -> bool:
        """Whether a static site's output is coded: always, unless its kernel writes float and nobody reads codes."""
        if path not in self.readers:
            return True
        return any(executions.get(reader) == "static" for reader in self.readers[path])


def switched_model(model: ir.Model, plan: Plan, target: Target, alternatives: Mapping[str, SitePlan]) -> Switched:
    """Build a model in which everything that `plan` quantizes has a switch.

    Args:
        model: The cleaned float model; left unchanged.
        plan: A plan in which everything that may be static is static.
        target: Where the model will run.
        alternatives: By path, entries of sites that may be dynamic instead.
    """
    formats = [parse_format(tensor.format) for tensor in plan.activations]
    opset = max([_LOWEST_OPSET, *(minimum_opset(fmt) for fmt in formats)])
    copy = raise_opset(model, opset) if opset_of(model) < opset else model.clone()
    return _Builder(copy, plan, target).build(alternatives)


class _Builder:
    def __init__(self, model: ir.Model, plan: Plan, target: Target) -> None:
        self.model = model
        self.plan = plan
        self.target = target
        self.method = cast("RangeMethod", plan.options.get("weight_range", "minmax"))
        self.editor = Editor(model)
        self.sites = {site.path: site for site in find_sites(model, target)}
        self.scales = {tensor.tensor: tensor for tensor in plan.activations}
        self.inputs: dict[tuple[str, str], str] = {}
        self.pending: list[tuple[ir.Node, int, ir.Value]] = []

    def build(self, alternatives: Mapping[str, SitePlan]) -> Switched:
        static = {entry.node: entry for entry in self.plan.sites if entry.execution == "static"}
        arrays: dict[tuple[str, Execution], dict[str, NDArray[np.float32]]] = {}
        entries = {entry.node: entry for entry in self.plan.sites}
        for path, site in self.sites.items():
            if path in static:
                arrays[path, "static"] = self._static_arrays(site, static[path])
            if path in alternatives:
                arrays[path, "dynamic"] = self._dynamic_arrays(site, alternatives[path])
            stored = alternatives.get(path) or entries.get(path)
            if site.weight_index is not None and stored is not None and stored.weights is not None:
                arrays[path, "weight-only"] = self._stored_arrays(site, stored)
        for node, index, value in self.pending:
            if index >= len(node.inputs):
                node.resize_inputs(index + 1)
            node.replace_input_with(index, value)
            self._expose(value)
        reads, writes, forced, readers = self._activations(static)
        for path in alternatives:
            reads[path, "dynamic"].append(self._dynamic_read(self.sites[path]))
        switches: dict[tuple[str, Execution], _Switches] = {}
        for key in dict.fromkeys((*arrays, *((path, _STATIC) for path in static))):
            path, execution = key
            written = execution == "static"
            switches[key] = _Switches(
                reads=tuple(reads[key]),
                writes=writes.get(path, "") if written else "",
                forced=written and path in forced,
                arrays=arrays.get(key, {}),
            )
        self.editor.model.graph.sort()
        return Switched(model=self.model, switches=switches, readers=readers)

    # ---- weights

    def _input(self, site: Site, node: ir.Node, index: int, default: NDArray[np.float32] | None, what: str) -> str:
        """Let an input of a node be fed from outside; return the name to feed."""
        known = self.inputs.get((site.path, what))
        if known is not None:
            return known
        name = self.editor.name(f"switch_{len(self.inputs)}_{what}")
        array = constant_array(node.inputs[index]) if default is None else default
        assert array is not None
        tensor = ir.tensor(np.asarray(array, dtype=np.float32), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
        )
        # Not yet: what comes next reads the site's constants where they are.
        self.pending.append((node, index, value))
        self.inputs[site.path, what] = name
        return name

    def _expose(self, value: ir.Value) -> None:
        """Make a constant an input of the model, with itself as the default."""
        self.model.graph.register_initializer(value)
        self.model.graph.inputs.append(value)

    def _static_arrays(self, site: Site, entry: SitePlan) -> dict[str, NDArray[np.float32]]:
        if site.weight_index is None or entry.weights is None:
            return self._constant_arrays(site)
        read = site.node.inputs[0]
        assert read is not None
        tensor = self.scales[read.name or ""]
        saturates = self.target.saturates and tensor.format.startswith("uint8")
        encoded = encode_weight(
            site, parse_format(entry.weights), saturates=saturates, input_scale=tensor.scale, method=self.method
        )
        encoded = rerounded(site, encoded, entry.rounding)
        result = self._bias_arrays(site, encoded, entry, input_scale=tensor.scale)
        result[self._weight_input(site)] = encoded.decode()
        return result

    def _bias_arrays(
        self, site: Site, encoded: EncodedWeight, entry: SitePlan, *, input_scale: float | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the bias that makes up for the rounded weights, as its codes decode where it gets any."""
        bias = corrected_bias(site, encoded, unpack_floats(entry.input_mean) if entry.input_mean else None)
        if bias is not None and input_scale is not None and not self.target.float_bias:
            codes, scale = bias_codes(bias, np.asarray(input_scale, dtype=np.float32), encoded.parameters.scale)
            bias = (codes * scale).astype(np.float32)
        result: dict[str, NDArray[np.float32]] = {}
        if bias is not None and site.op_type in {"Conv", "Gemm"}:
            default = np.zeros_like(bias) if site.bias is None else None
            result[self._input(site, site.node, 2, default, "bias")] = bias
        elif bias is not None and site.bias_node is not None:
            index = next(i for i, value in enumerate(site.bias_node.inputs) if value is site.bias)
            array = constant_array(site.bias)
            assert array is not None
            result[self._input(site, site.bias_node, index, None, "bias")] = bias.reshape(array.shape)
        return result

    def _weight_input(self, site: Site) -> str:
        assert site.weight_index is not None
        known = self.inputs.get((site.path, "weight"))
        return known or self._input(site, site.node, site.weight_index, site.weight_array(), "weight")

    def _constant_arrays(self, site: Site) -> dict[str, NDArray[np.float32]]:
        result = {}
        for index in site.activations:
            array = constant_array(site.node.inputs[index])
            if array is None or array.dtype != np.float32:
                continue
            fmt = parse_format(self.target.activations)
            parameters = choose_parameters(min(float(array.min()), 0.0), max(float(array.max()), 0.0), fmt)
            name = self._input(site, site.node, index, None, f"constant{index}")
            result[name] = decode(quantize(array, parameters, fmt), parameters, fmt)
        return result

    def _dynamic_arrays(self, site: Site, entry: SitePlan) -> dict[str, NDArray[np.float32]]:
        assert entry.weights is not None
        fmt = parse_format(entry.weights)
        if site.op_type == "LSTM":
            result = {}
            for index, what in ((1, "weight"), (2, "recurrent")):
                array = constant_array(site.node.inputs[index])
                assert array is not None
                each = [
                    encode_matrix(np.ascontiguousarray(one.T), fmt, saturates=self.target.saturates) for one in array
                ]
                name = self._input(site, site.node, index, array, what)
                result[name] = np.stack([one.decode().T for one in each])
            return result
        saturates = self.target.saturates and site.op_type != "Conv"
        encoded = encode_weight(site, fmt, saturates=saturates, method=self.method)
        return {self._weight_input(site): encoded.decode()}

    def _stored_arrays(self, site: Site, entry: SitePlan) -> dict[str, NDArray[np.float32]]:
        assert entry.weights is not None
        if site.op_type in {"LSTM", "GRU", "RNN"}:
            return self._dynamic_arrays(site, entry) if site.op_type == "LSTM" else {}
        encoded = planned_weight(site, parse_format(entry.weights), entry, self.method)
        corrected = self._bias_arrays(site, encoded, entry) if entry.input_mean else {}
        return {**corrected, self._weight_input(site): encoded.decode()}

    # ---- activations

    def _activations(
        self, static: Mapping[str, SitePlan]
    ) -> tuple[defaultdict[tuple[str, Execution], list[str]], dict[str, str], set[str], dict[str, frozenset[str]]]:
        reads: defaultdict[tuple[str, Execution], list[str]] = defaultdict(list)
        writes: dict[str, str] = {}
        forced: set[str] = set()
        readers: dict[str, frozenset[str]] = {}
        site_of = {self.sites[path].node: self.sites[path] for path in static}
        writer_of = {value: self.sites[path] for path in static for value in self.sites[path].last.outputs}
        values = {value.name: value for value in self.model.graph.inputs}
        values.update({value.name: value for node in self.model.graph for value in node.outputs})
        for name, tensor in self.scales.items():
            value = values.get(name)
            if value is None or is_constant(value):
                continue
            writer = writer_of.get(value)
            uses = [(use.node, use.idx) for use in value.uses()]
            coding: dict[str, list[tuple[ir.Node, int]]] = defaultdict(list)
            for node, index in uses:
                reader = site_of.get(node)
                if reader is not None and index in reader.activations:
                    coding[reader.path].append((node, index))
            everyone = sum(len(found) for found in coding.values()) == len(uses) and not value.is_graph_output()
            if writer is not None:
                if not everyone or not uses:
                    forced.add(writer.path)
                if writer.support is not None and writer.support.float_output:
                    readers[writer.path] = readers.get(writer.path, frozenset()) | frozenset(coding)
                flag, current = self._behind(value, tensor, uses, outputs=True)
                writes[writer.path] = flag
                if everyone and len(coding) == 1:
                    reads[next(iter(coding)), "static"].append(flag)  # the only reader: one switch serves both
                    continue
            else:
                current = value
            for path, places in coding.items():
                flag, _ = self._behind(current, tensor, places, outputs=False)
                reads[path, "static"].append(flag)
        for path in [path for path in readers if path in forced and not readers[path]]:
            forced.discard(path)  # its kernel writes float
        return reads, writes, forced, readers

    def _behind(
        self, value: ir.Value, tensor: ActivationPlan, places: Sequence[tuple[ir.Node, int]], *, outputs: bool
    ) -> tuple[str, ir.Value]:
        """Round a tensor where a flag says so; return the flag's name and the tensor for `places`."""
        graph = self.model.graph
        fmt = parse_format(tensor.format)
        name = f"switch_{len(graph.inputs)}"
        scale = self.editor.constant(graph, f"{name}_scale", np.asarray(tensor.scale, dtype=np.float32))
        zero = self.editor.constant(
            graph, f"{name}_zero_point", np.asarray(tensor.zero_point, dtype=fmt.element.dtype), fmt
        )
        rounded = self.editor.node(
            "QuantizeLinear", [value, scale, zero], name=f"{name}_quantize", outputs=[f"{name}_codes"]
        )
        decoded = self.editor.node(
            "DequantizeLinear", [rounded.outputs[0], scale, zero], name=f"{name}_decode", outputs=[f"{name}_decoded"]
        )
        return self._switch(value, [rounded, decoded], places, outputs=outputs)

    def _dynamic_read(self, site: Site) -> str:
        """Round what a site reads with the range of the very tensor; return the flag's name."""
        value = site.node.inputs[0]
        assert value is not None
        name = f"switch_{len(self.model.graph.inputs)}"
        rounded = self.editor.node(
            "DynamicQuantizeLinear",
            [value],
            name=f"{name}_quantize",
            outputs=[f"{name}_codes", f"{name}_scale", f"{name}_zero_point"],
        )
        decoded = self.editor.node(
            "DequantizeLinear", list(rounded.outputs), name=f"{name}_decode", outputs=[f"{name}_decoded"]
        )
        return self._switch(value, [rounded, decoded], [(site.node, 0)], outputs=False)[0]

    def _switch(
        self, value: ir.Value, nodes: list[ir.Node], places: Sequence[tuple[ir.Node, int]], *, outputs: bool
    ) -> tuple[str, ir.Value]:
        graph = self.model.graph
        name = self.editor.name(f"switch_{len(graph.inputs)}_flag")
        flag = ir.Value(
            name=name,
            shape=ir.Shape(()),
            type=ir.TensorType(ir.DataType.BOOL),
            const_value=ir.tensor(np.asarray(False), name=name),
        )
        self._expose(flag)
        plain = self.editor.node("Identity", [value], name=f"{name}_hand_on", outputs=[f"{name}_plain"])
        for node, last in ((nodes[-1], nodes[-1].outputs[0]), (plain, plain.outputs[0])):
            del node
            last.type = ir.TensorType(ir.DataType.FLOAT)
            last.shape = value.shape
        branches = {
            "then_branch": ir.Graph([], [nodes[-1].outputs[0]], nodes=nodes, name=f"{name}_on"),
            "else_branch": ir.Graph([], [plain.outputs[0]], nodes=[plain], name=f"{name}_off"),
        }
        switch = self.editor.node(
            "If", [flag], name=name, outputs=[f"{name}_out"], dtypes=[ir.DataType.FLOAT], shape=value.shape
        )
        for key, branch in branches.items():
            switch.attributes[key] = ir.AttrGraph(key, branch)
        reader = places[0][0].graph if places else None
        producer = value.producer()
        home = (producer.graph if outputs and producer is not None else reader) or graph
        assert isinstance(home, ir.Graph)
        home.append(switch)
        result = switch.outputs[0]
        for node, index in places:
            node.replace_input_with(index, result)
        if outputs and value.is_graph_output():
            for index, output in enumerate(graph.outputs):
                if output is value:
                    graph.outputs[index] = result
            wanted = value.name
            self.editor.rename(value, f"{wanted}_float")
            assert wanted is not None
            self.editor.rename(result, wanted)
        return name, result
