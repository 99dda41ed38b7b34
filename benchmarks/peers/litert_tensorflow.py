"""What TensorFlow's converter and ai-edge-quantizer make of a float model; runs in an environment of its own.

Called with a folder, it reads the `graph.json`, `weights.npz` and `calibration.npz` that `benchmarks.litert` wrote,
and writes `tensorflow.tflite` and `ai_edge_quantizer.tflite` beside them. Imports nothing of lowbit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def main(folder: Path) -> None:
    """Convert and quantize the graph in a folder with both tools."""
    graph = json.loads((folder / "graph.json").read_text())
    weights = dict(np.load(folder / "weights.npz"))
    samples = np.load(folder / "calibration.npz")["x"]
    network = tf.function(
        lambda x: _run(graph, weights, x), input_signature=[tf.TensorSpec(samples.shape[1:], tf.float32, name="x")]
    ).get_concrete_function()
    module = tf.Module()
    module.network = network
    saved = str(folder / "saved")
    tf.saved_model.save(module, saved, signatures={"serving_default": network})
    (folder / "float.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(saved).convert())

    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "tensorflow.tflite").write_bytes(converter.convert())

    from ai_edge_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(folder / "float.tflite"))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    calibrated = tool.calibrate({"serving_default": [{"x": sample} for sample in samples]})
    (folder / "ai_edge_quantizer.tflite").write_bytes(bytes(tool.quantize(calibrated).quantized_model))


def _run(graph: dict[str, Any], weights: dict[str, np.ndarray], x: tf.Tensor) -> tf.Tensor:
    """Compute a graph of ONNX operators; pictures are channels last throughout."""
    values: dict[str, Any] = {graph["input"]: x}
    for node in graph["nodes"]:
        inputs = [values[name] if name in values else weights.get(name) for name in node["inputs"]]
        values[node["output"]] = _node(node, inputs)
    return {"y": values[graph["output"]]}


def _padded(x: tf.Tensor, pads: list[int]) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]]) if any(pads) else x


def _convolution(node: dict[str, Any], x: tf.Tensor, w: np.ndarray, b: np.ndarray | None) -> tf.Tensor:
    attributes = node["attributes"]
    strides, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
    dilations, group = attributes.get("dilations", [1, 1]), attributes.get("group", 1)
    padding = "VALID"
    outs = [-(-size // stride) for size, stride in zip(x.shape[1:3], strides, strict=True)]
    totals = [
        max((out - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        for out, stride, taps, dilation, size in zip(outs, strides, w.shape[2:], dilations, x.shape[1:3], strict=True)
    ]
    if any(pads) and pads == [total // 2 for total in totals] + [total - total // 2 for total in totals]:
        padding = "SAME"
    else:
        x = _padded(x, pads)
    if group > 1:
        kernel = w.transpose(2, 3, 0, 1)
        y = tf.nn.depthwise_conv2d(x, kernel, [1, *strides, 1], padding, dilations=dilations)
    else:
        y = tf.nn.conv2d(x, w.transpose(2, 3, 1, 0), strides, padding, dilations=dilations)
    return y if b is None else tf.nn.bias_add(y, b)


def _node(node: dict[str, Any], inputs: list[Any]) -> tf.Tensor:
    attributes, x = node["attributes"], inputs[0]
    match node["op"]:
        case "Conv":
            return _convolution(node, x, inputs[1], inputs[2] if len(inputs) > 2 else None)
        case "Relu":
            return tf.nn.relu(x)
        case "Clip":
            return tf.nn.relu6(x) if float(inputs[2]) == 6.0 else tf.clip_by_value(x, inputs[1], inputs[2])
        case "Add":
            return tf.add(x, inputs[1])
        case "GlobalAveragePool":
            return tf.reduce_mean(x, [1, 2], keepdims=True)
        case "AveragePool" | "MaxPool":
            pool = tf.nn.avg_pool2d if node["op"] == "AveragePool" else tf.nn.max_pool2d
            kernel = attributes["kernel_shape"]
            return pool(_padded(x, attributes.get("pads", [0] * 4)), kernel, attributes.get("strides", [1, 1]), "VALID")
        case "Pad":
            flat = inputs[1].tolist()
            return _padded(x, [flat[2], flat[3], flat[6], flat[7]])
        case "Gemm" | "MatMul":
            w = inputs[1].T if attributes.get("transB", 0) else inputs[1]
            y = tf.matmul(x, w)
            return y if len(inputs) < 3 else tf.nn.bias_add(y, inputs[2])
        case "Softmax":
            return tf.nn.softmax(x)
        case "Transpose":
            return x  # between the two layouts of pictures
        case "Reshape" | "Flatten" | "Squeeze":
            shape = node["shape"]
            return tf.reshape(x, [shape[axis] for axis in (0, 2, 3, 1)] if len(shape) == 4 else shape)
        case other:
            raise NotImplementedError(other)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
