"""Oracle: the node tests that the ONNX specification ships for QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lowbit.formats import (
    Format,
    Granularity,
    Parameters,
    PerBlock,
    PerChannel,
    PerTensor,
    dequantize,
    element_of_storage,
    quantize,
)

EXCLUDED = {
    "test_dequantizelinear_e4m3fn_float16": "decodes to float16 with a float16 scale; lowbit's scales are float32",
}


def collect() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised while onnx computes its expected values
        package = importlib.import_module("onnx.backend.test.case.node")
        for module in ("quantizelinear", "dequantizelinear"):
            importlib.import_module(f"{package.__name__}.{module}")
    # Not collect_testcases(): it imports the cases of all operators, which takes eight seconds.
    cases = {}
    for case in package._NodeTestCases:
        operators = [node.op_type for node in case.model.graph.node]
        if operators in (["QuantizeLinear"], ["DequantizeLinear"]):
            cases[case.name] = case
    return cases


CASES = collect()


def array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def test_the_cases_are_there() -> None:
    assert len(CASES) >= 20
    assert set(EXCLUDED) <= set(CASES)


@pytest.mark.parametrize("name", sorted(set(CASES) - set(EXCLUDED)))
def test_case(name: str) -> None:
    case = CASES[name]
    graph = case.model.graph
    node = graph.node[0]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    x, scale, *rest = (array(value) for value in case.data_sets[0][0])
    expected = array(case.data_sets[0][1][0])
    codes = graph.output[0] if node.op_type == "QuantizeLinear" else graph.input[0]
    element = element_of_storage(ir.DataType(codes.type.tensor_type.elem_type))

    granularity: Granularity
    if "block_size" in attributes:
        granularity = PerBlock(attributes["axis"], attributes["block_size"])
    else:
        granularity = PerChannel(attributes.get("axis", 1)) if scale.ndim else PerTensor()
    # Some cases give a zero point [1] with a scalar scale, against the letter of the specification.
    zero_point = rest[0].reshape(scale.shape) if rest else np.zeros(scale.shape, dtype=element.dtype)
    fmt = Format(element, granularity)
    parameters = Parameters(scale, zero_point)

    found = quantize(x, parameters, fmt) if node.op_type == "QuantizeLinear" else dequantize(x, parameters, fmt)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)
