"""Small graphs written as ONNX text, and the way from one to its artifact without verification."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import Applied, apply_plan
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import decide, make_plan, watch_list
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    import onnx_ir as ir

TARGET = "onnxruntime-x86-avx2"
Feeds = Sequence[Mapping[str, np.ndarray]]


def parse(text: str, *, opset: int = 21, seed: int = 0) -> onnx.ModelProto:
    """Return the model of a graph text; inputs called `w…` and `b…` become random weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    generator = np.random.default_rng(seed)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape) * (0.3 if value.name[0] == "w" else 1.0)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), value.name))
        proto.graph.input.remove(value)
    onnx.checker.check_model(proto)
    return proto


def noise(proto: onnx.ModelProto, count: int = 4, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Return Gaussian inputs for a model; unknown dimensions are 2."""
    generator = np.random.default_rng(seed)
    shapes = {
        value.name: [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim] for value in proto.graph.input
    }
    return [
        {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(count)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A cleaned float model and its artifact."""

    model: ir.Model
    applied: Applied
    float_bytes: bytes
    artifact_bytes: bytes

    def run(self, feeds: Feeds, *, options: Mapping[str, str] | None = None) -> list[tuple[np.ndarray, ...]]:
        """Return the first output of every feed: float, real kernels (with `options`), simulated."""
        sessions = (
            open_session(self.float_bytes, threads=1),
            open_session(self.artifact_bytes, threads=1, options=options),
            open_session(self.artifact_bytes, threads=1, optimized=False),
        )
        return [tuple(session.run(feed)[0] for session in sessions) for feed in feeds]

    def step(self) -> float:
        """Quantization step of the first output, or 0 if it leaves as float."""
        name = self.model.graph.outputs[0].name
        return max((item.scale for item in self.applied.plan.activations if item.tensor == name), default=0.0)


def build(proto: onnx.ModelProto, feeds: Feeds, **options: Any) -> Built:
    """Decide, calibrate, plan and apply as `quantize` does; static unless told otherwise."""
    recipe = Recipe.from_dict({"target": TARGET, "method": "static", "calibration": "minmax", **options})
    target = find_target(recipe.target)
    model = clean(load_model(proto)).model
    sites = find_sites(model, target)
    shapes = observed_shapes(model, feeds[0], threads=1)
    # Without costs: what is legal is done, however small the graph.
    decision = decide(sites, recipe, dataclasses.replace(target, costs=None), shapes)
    watch = watch_list(sites, decision, recipe)
    calibration = calibrate(model, feeds, watch, threads=1) if watch.tensors else None
    plan = make_plan(model, sites, recipe, target, decision, calibration, shapes)
    applied = apply_plan(model, plan)
    return Built(model=model, applied=applied, float_bytes=serialize(model), artifact_bytes=serialize(applied.model))


@pytest.fixture(name="parse")
def _parse() -> Callable[..., onnx.ModelProto]:
    return parse


@pytest.fixture(name="noise")
def _noise() -> Callable[..., list[dict[str, np.ndarray]]]:
    return noise


@pytest.fixture(name="build")
def _build() -> Callable[..., Built]:
    return build
