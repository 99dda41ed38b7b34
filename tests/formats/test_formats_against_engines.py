"""Oracles: ONNX Runtime's own kernels, and the casts of ml_dtypes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx.parser
import pytest

from lowbit.formats import Format, choose_parameters, dequantize, fake_quantize, parse_format, quantize, to_ir_tensor

SHAPE = (6, 40)


def session(text: str, fmt: Format, parameters: object) -> object:
    import onnx_ir as ir
    import onnxruntime

    model = onnx.parser.parse_model(text)
    for name, value in (("scale", parameters.scale), ("zero_point", parameters.zero_point)):
        wrapped = ir.Tensor(value, name=name) if name == "scale" else to_ir_tensor(value, fmt, name)
        model.graph.initializer.append(ir.to_proto(wrapped))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(
    "text",
    [
        *(f"{name}{where}" for name in ("int8", "uint8", "int16", "uint16") for where in ("", ":per-channel")),
        *(f"{name}{where}" for name in ("int4", "uint4") for where in ("", ":per-channel", ":block=16")),
        "int8:asymmetric",
        "uint8:block=16",
        "uint8:per-channel:symmetric",
        "float8_e4m3",
        "float8_e5m2",
    ],
)
def test_onnxruntime_computes_the_same_numbers(text: str, spread: float) -> None:
    fmt = parse_format(text)
    generator = np.random.default_rng(len(text))
    x = (generator.standard_normal(SHAPE) * spread).astype(np.float32)
    shape = fmt.granularity.scale_shape(SHAPE)
    # Narrower than the data, so that saturation is compared too.
    low, high = -generator.uniform(1, 2, shape) * spread, generator.uniform(1, 2, shape) * spread
    parameters = choose_parameters(low, high, fmt)
    # Ties, half a step between two codes, are where roundings differ.
    scale = fmt.granularity.broadcast(parameters.scale, SHAPE)
    x[:, ::3] = (np.rint(x / scale) * scale + scale / 2)[:, ::3]

    axis = getattr(fmt.granularity, "axis", 0)
    block = f", block_size={fmt.granularity.size}" if "block" in text else ""
    codes_in_numpy = fmt.element.bits >= 8 and fmt.element.kind == "integer"
    size = f"{SHAPE[0]}, {SHAPE[1]}"
    second = f", {fmt.element.name}[{size}] q" if codes_in_numpy else ""
    graph = f"""
        <ir_version: 10, opset_import: ["": 21]>
        round_trip (float[{size}] x) => (float[{size}] y{second})
        {{
            q = QuantizeLinear<axis={axis}{block}>(x, scale, zero_point)
            y = DequantizeLinear<axis={axis}{block}>(q, scale, zero_point)
        }}
    """
    decoded, *codes = session(graph, fmt, parameters).run(None, {"x": x})
    assert np.array_equal(fake_quantize(x, parameters, fmt), decoded)
    for each in codes:
        assert np.array_equal(quantize(x, parameters, fmt), each)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float8_e4m3", ml_dtypes.float8_e4m3fn),
        ("float8_e5m2", ml_dtypes.float8_e5m2),
        ("float4_e2m1", ml_dtypes.float4_e2m1fn),
    ],
)
def test_floats_round_as_ml_dtypes(name: str, dtype: type) -> None:
    fmt = parse_format(name)
    largest = float(ml_dtypes.finfo(dtype).max)
    parameters = choose_parameters(-largest, largest, fmt)
    assert parameters.scale == 1.0 or name == "bfloat16"
    reach = min(largest, 1e30)
    x = np.random.default_rng(0).uniform(-reach, reach, 10_000).astype(np.float32)
    small = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    for values in (x, small):
        expected = values.astype(dtype)
        assert np.array_equal(quantize(values, parameters, fmt).astype(np.float32), expected.astype(np.float32))
        assert np.array_equal(dequantize(expected, parameters, fmt), expected.astype(np.float32))
    # Beyond the largest value ml_dtypes gives NaN or infinity, where ONNX saturates.
    if fmt.element.bits <= 8:
        beyond = quantize(np.array([largest * 1.5, -largest * 1.5], dtype=np.float32), parameters, fmt)
        assert beyond.astype(np.float32).tolist() == [largest, -largest]
