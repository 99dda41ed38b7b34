"""Samples that an artifact and what was exported of it both run: the user's, or random codes of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import Preprocessing, input_specs, open_data
from lowbit.exceptions import DataError
from lowbit.graph.constants import constant_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.data import InputSpec
    from lowbit.runtime.session import Feed

__all__ = ["Samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Where samples come from.

    Attributes:
        data: The user's data, as `lowbit.quantize` takes them; `None` for random codes.
        preprocessing: What to do to images.
        count: How many samples.
    """

    data: Any = None
    preprocessing: Preprocessing | None = None
    count: int = 8

    def of(self, graph: ir.Model) -> list[Feed]:
        """Return samples as the ONNX model takes them.

        Raises:
            DataError: The data do not fit the model, or it leaves sizes open and there are none.
        """
        if self.data is not None:
            specs = input_specs(graph)
            with open_data(self.data, specs, preprocessing=self.preprocessing, limit=self.count) as dataset:
                return list(dataset)
        values = {value.name: value for value in graph.graph.inputs}
        generator = np.random.default_rng(0)
        return [
            {spec.name: _random(values[spec.name], spec, generator) for spec in input_specs(graph)}
            for _ in range(self.count)
        ]

    def shaped(self, graph: ir.Model) -> ir.Model:
        """Return a graph with the shapes of the first sample of the user's data where it leaves dimensions open.

        Args:
            graph: It is changed.

        Raises:
            DataError: The data do not fit the model.
        """
        open_ = [value for value in graph.graph.inputs if value.shape is None or not value.shape.is_static()]
        if self.data is None or not open_:
            return graph
        first = Samples(data=self.data, preprocessing=self.preprocessing, count=1).of(graph)[0]
        for value in open_:
            value.shape = ir.Shape(first[value.name or ""].shape)
        return graph


def _random(value: ir.Value, spec: InputSpec, generator: np.random.Generator) -> NDArray[Any]:
    """Return random codes decoded, random rows of a table, or normally distributed numbers."""
    shape = tuple(1 if axis == 0 and not isinstance(dim, int) else dim for axis, dim in enumerate(spec.shape))
    if not all(isinstance(dim, int) for dim in shape):
        raise DataError(
            f"the sizes of the input {spec} are open",
            cause="random samples need a size for every axis but the first, the batch",
            remedy="give samples with --data",
        )
    sizes = tuple(int(dim) for dim in shape)  # type: ignore[arg-type]
    if spec.dtype.kind in "iu":
        if spec.dtype.itemsize == 1:
            limits = np.iinfo(spec.dtype)
            return generator.integers(limits.min, limits.max, size=sizes, endpoint=True, dtype=spec.dtype)
        return np.asarray(generator.integers(0, _rows(value), size=sizes)).astype(spec.dtype)
    if spec.dtype.kind == "b":
        return np.ones(sizes, dtype=spec.dtype)
    quantize = next((use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"), None)
    scale = constant_array(quantize.inputs[1]) if quantize is not None else None
    if quantize is None or scale is None or scale.size != 1:
        return np.asarray(generator.standard_normal(sizes)).astype(spec.dtype)
    zero_point = constant_array(quantize.inputs[2]) if len(quantize.inputs) > 2 else np.zeros((), dtype=np.uint8)
    if zero_point is None:
        return np.asarray(generator.standard_normal(sizes)).astype(spec.dtype)
    lowest, highest = (-128, 127) if zero_point.dtype == np.int8 else (0, 255)
    codes = generator.integers(lowest, highest, size=sizes, endpoint=True)
    return np.asarray((codes - int(zero_point.reshape(()))) * np.float32(scale.reshape(())), dtype=spec.dtype)


def _rows(value: ir.Value) -> int:
    """Return how many rows the tables have that an input looks up; 2 if it looks up none."""
    tables = [use.node.inputs[0] for use in value.uses() if use.node.op_type == "Gather" and use.idx == 1]
    shapes = [table.shape for table in tables if table is not None and table.shape is not None]
    return min((shape[0] for shape in shapes if len(shape) and isinstance(shape[0], int)), default=2)
