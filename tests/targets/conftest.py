"""Small graphs written as ONNX text, quantized by hand: every operator of the graph that may be static is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.formats import parse_format
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import calibrate
from lowbit.methods.decide import Decision, make_plan, watch_list
from lowbit.plan.choose import Choice
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import Site, find_sites
from lowbit.runtime.kernels import Kernel, read_kernels
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    import onnx_ir as ir

    from lowbit.plan.plan import Plan

TARGET = "onnxruntime-x86-avx2"
Feeds = list[dict[str, np.ndarray]]


def parse(text: str, *, opset: int = 21, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a graph text; inputs called `w…` and `b…` become random weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    generator = np.random.default_rng(seed)
    weights = [value for value in proto.graph.input if value.name[0] in "wb"]
    for value in weights:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape) * (0.3 if value.name[0] == "w" else 1.0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), value.name))
        proto.graph.input.remove(value)
    return proto


def samples(model: ir.Model, count: int = 3, seed: int = 1) -> Feeds:
    """Return Gaussian inputs for a model; unknown dimensions are 2."""
    generator = np.random.default_rng(seed)
    shapes = {
        value.name: [dim if isinstance(dim, int) else 2 for dim in value.shape or ()] for value in model.graph.inputs
    }
    return [
        {str(name): generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A float graph and its artifact, with what the engine made of it."""

    model: ir.Model
    sites: tuple[Site, ...]
    plan: Plan
    float_bytes: bytes
    artifact: ir.Model
    artifact_bytes: bytes
    kernels: tuple[Kernel, ...]
    feeds: Feeds

    def counts(self) -> dict[str, int]:
        """How often each kernel occurs."""
        return {name: sum(kernel.op_type == name for kernel in self.kernels) for name in self.names()}

    def names(self) -> set[str]:
        """Which kernels occur."""
        return {kernel.op_type for kernel in self.kernels}

    def step(self, index: int = 0) -> float:
        """Quantization step of an output, or 0 if it leaves an integer kernel as float."""
        name = self.artifact.graph.outputs[index].name
        return max((tensor.scale for tensor in self.plan.activations if tensor.tensor == name), default=0.0)

    def outputs(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """First output of every sample: float, real kernels, simulated."""
        reference = open_session(self.float_bytes, threads=1)
        real = open_session(self.artifact_bytes, threads=1)
        simulated = open_session(self.artifact_bytes, threads=1, optimized=False)
        return [(reference.run(feed)[0], real.run(feed)[0], simulated.run(feed)[0]) for feed in self.feeds]


QuantizeText = Callable[..., Quantized]


def quantize_text(text: str, *, opset: int = 21, weights: str | None = None, floats: tuple[str, ...] = ()) -> Quantized:
    """Quantize everything that the target can run statically, except operators of the types in `floats`."""
    target = find_target(TARGET)
    model = clean(load_model(parse(text, opset=opset))).model
    sites = find_sites(model, target)
    executions = {
        site.path: "static" if site.allows("static") and site.op_type not in floats else "float" for site in sites
    }
    weight_format = weights or target.weights
    decision = Decision(
        executions=executions,
        weights={
            site.path: weight_format
            for site in sites
            if site.weight_index is not None and executions[site.path] == "static"
        },
        reasons=dict.fromkeys(executions, "by hand"),
        choices={
            path: Choice(execution=execution, float_ns=None, chosen_ns=None, reason="by hand")
            for path, execution in executions.items()
        },
        activations=parse_format(target.activations),
    )
    recipe = Recipe(target=TARGET, calibration="minmax", bias_correction=False)
    feeds = samples(model)
    calibration = calibrate(model, feeds, watch_list(sites, decision, recipe), threads=1)
    plan = make_plan(model, sites, recipe, target, decision, calibration, {})
    artifact = apply_plan(model, plan).model
    data = serialize(artifact)
    return Quantized(
        model=model,
        sites=sites,
        plan=plan,
        float_bytes=serialize(model),
        artifact=artifact,
        artifact_bytes=data,
        kernels=read_kernels(data).kernels,
        feeds=feeds,
    )


@pytest.fixture(name="quantize_text")
def _quantize_text() -> QuantizeText:
    return quantize_text


@pytest.fixture(name="parse")
def _parse() -> Callable[..., onnx.ModelProto]:
    return parse
