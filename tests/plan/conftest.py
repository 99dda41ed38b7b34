"""Sites of small graphs written as ONNX text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.parser
import pytest

from lowbit.graph import load_model
from lowbit.graph.clean import infer_shapes
from lowbit.plan.sites import find_sites
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from lowbit.plan.sites import Site


def sites_of(text: str, *, opset: int = 21) -> tuple[Site, ...]:
    """Return the sites of a graph; inputs called `w…` and `b…` become random weights and biases."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "local" : 1]> {text}')
    generator = np.random.default_rng(0)
    for value in [value for value in proto.graph.input if value.name[0] in "wb"]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.input.remove(value)
    for index, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{index}"
    return find_sites(infer_shapes(load_model(proto)), find_target("onnxruntime-x86-avx2"))


@pytest.fixture(name="sites_of")
def _sites_of() -> Callable[..., tuple[Site, ...]]:
    return sites_of
