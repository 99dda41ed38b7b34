"""Run by an interpreter that has TensorFlow: reads one of its models, writes ONNX, and says in JSON how it went.

    python tensorflow_worker.py MODEL OUT.onnx OPSET

It imports nothing of lowbit, which need not be installed there. The last line of stdout is the answer:
`{"notes": [...]}`, or `{"error": ..., "cause": ..., "remedy": ...}` and exit status 3.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Files beside this one must not be taken for packages of the environment that runs it.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# oneDNN may add up in another order; the converter folds constants with it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

_EXPORT = (
    "Save it as a SavedModel where its class is known, with model.export('folder'), and import the folder: that holds "
    "the computation and needs no class"
)


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of this program
    """Why there is no ONNX: the three sentences of an error."""

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what)
        self.answer = {"error": what, "cause": cause, "remedy": remedy}


def convert(source: Path, opset: int) -> tuple[Any, list[str]]:
    """Return a model as an ONNX protobuf, and what was found on the way."""
    if source.suffix.lower() == ".tflite":
        proto, notes = _from_tflite(source, opset)
    elif source.is_dir():
        proto, notes = _from_saved_model(source, opset)
    else:
        proto, notes = _from_keras(source, opset)
    _write_error_functions(proto)
    unknown = _unknown_operators(proto)
    if unknown:
        raise Refusal(
            f"{source} has operators that ONNX does not know: {', '.join(unknown)}",
            "tf2onnx has no translation for them; custom operators, and those of TensorFlow (SELECT_TF_OPS), have no "
            "meaning outside of their own runtime",
            "Convert the model without them, cut the part off that needs them, or import the model that the file was "
            "made from: its SavedModel or .keras file",
        )
    return proto, notes


def _from_keras(source: Path, opset: int) -> tuple[Any, list[str]]:
    import keras
    import tensorflow as tf
    import tf2onnx

    try:
        model = keras.models.load_model(source, compile=False)
    except Exception as error:
        said = _first_line(error)
        text = str(error)
        if "safe_mode" in text or ("Lambda" in text and "unsafe" in text):
            raise Refusal(
                f"{source} holds a Lambda layer", "it is Python code, which lowbit never runs", _EXPORT
            ) from error
        if (
            "Could not locate" in text
            or "Unknown layer" in text
            or "custom_object" in text
            or "Unable to revive" in text
        ):
            raise Refusal(f"{source} has a layer whose class is not known here", said, _EXPORT) from error
        raise Refusal(f"{source} is not a Keras model that Keras {keras.__version__} reads", said) from error
    notes = []
    if any(None in tuple(tensor.shape[1:]) for tensor in model.inputs):
        notes.append("inputs have open dimensions besides the batch")
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype, name=f"input_{n}") for n, tensor in enumerate(model.inputs)]
    structure = getattr(model, "input", None) if len(model.inputs) > 1 else None

    # NOTE: not tf2onnx's from_keras: it looks outputs up by names that a Sequential of Keras 3 does not have.
    @tf.function(input_signature=signature)
    def call(*arrays: Any) -> Any:
        given = arrays[0] if structure is None else keras.tree.pack_sequence_as(structure, arrays)
        return keras.tree.flatten(model(given, training=False))

    # Keras compiles a few layers (grouped convolutions) as functions of their own, which tf2onnx cannot look into.
    tf.config.run_functions_eagerly(True)
    proto, _ = tf2onnx.convert.from_function(call, input_signature=signature, opset=opset)
    # A Sequential has no names of outputs; its own output is that of its last layer.
    outputs = getattr(model, "output_names", None) or [layer.name for layer in model.layers[-1:]]
    _name_interface(proto, [tensor.name for tensor in model.inputs], [_plain(name) for name in outputs])
    return proto, notes


def _from_saved_model(source: Path, opset: int) -> tuple[Any, list[str]]:
    import tensorflow as tf
    import tf2onnx

    try:
        with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
            loaded = tf.saved_model.load(str(_uncompiled(source, Path(folder))))
    except Exception as error:
        raise Refusal(f"{source} is not a SavedModel that TensorFlow reads", _first_line(error)) from error
    signatures = dict(loaded.signatures)
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if name is None:
        raise Refusal(
            f"{source} has no signature",
            "nothing says which function to convert",
            "Save it with model.export('folder'), or tf.saved_model.save(..., signatures=function)",
        )
    function = signatures[name]
    given = function.structured_input_signature[1]
    signature = [tf.TensorSpec(spec.shape, spec.dtype, name=key) for key, spec in given.items()]

    @tf.function(input_signature=signature)
    def call(*arrays: Any) -> Any:
        return function(**dict(zip(given, arrays, strict=True)))

    proto, _ = tf2onnx.convert.from_function(call, input_signature=signature, opset=opset)
    # Outputs come sorted by their names, as TensorFlow flattens a dict.
    _name_interface(proto, [_plain(key) for key in given], [_plain(key) for key in sorted(function.structured_outputs)])
    others = sorted(set(signatures) - {name})
    return proto, [f"the signature {name!r} was converted, not {', '.join(others)}"] if others else []


def _uncompiled(source: Path, folder: Path) -> Path:
    """Return a SavedModel whose functions may be inlined: Keras marks some for XLA, which tf2onnx cannot look into."""
    from tensorflow.core.protobuf import saved_model_pb2

    content = (source / "saved_model.pb").read_bytes()
    if b"_XlaMustCompile" not in content:
        return source
    saved = saved_model_pb2.SavedModel.FromString(content)
    for graph in saved.meta_graphs:
        for function in graph.graph_def.library.function:
            for marked in (function, *function.node_def):
                marked.attr.pop("_XlaMustCompile", None)
    for entry in source.iterdir():
        if entry.name != "saved_model.pb":
            (folder / entry.name).symlink_to(entry.resolve())
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def _from_tflite(source: Path, opset: int) -> tuple[Any, list[str]]:
    import tensorflow as tf
    import tf2onnx

    data = source.read_bytes()
    if data[4:8] != b"TFL3":
        raise Refusal(f"{source} is not a TFLite file, or is cut off", remedy="Convert or download it again")
    interpreter = tf.lite.Interpreter(model_content=data)
    try:
        interpreter.allocate_tensors()
    except Exception as error:
        # A file with operators that only its author's runtime has does not load without them.
        raise Refusal(
            f"{source} does not run in TensorFlow Lite",
            _first_line(error),
            "Custom operators have no meaning outside of their own runtime: convert the model without them, or cut the "
            "part off that needs them (a detector's selection of boxes is such a part)",
        ) from error
    proto, _ = tf2onnx.convert.from_tflite(str(source), opset=opset)
    notes = []
    codes = [
        (detail["name"], detail["dtype"].__name__, *detail["quantization"])
        for detail in (*interpreter.get_input_details(), *interpreter.get_output_details())
        if detail["dtype"].__name__ in {"int8", "uint8", "int16"} and detail["quantization"][0]
    ]
    for name, dtype, scale, zero in codes:
        notes.append(f"{_plain(name)} carries {dtype} codes: real = (code - {zero}) * {scale:.9g}")
    inputs = [_plain(detail["name"]) for detail in interpreter.get_input_details()]
    outputs = [_plain(detail["name"]) for detail in interpreter.get_output_details()]
    _name_interface(proto, inputs, outputs)
    return proto, notes


def _unknown_operators(proto: Any) -> list[str]:
    """Return the operators that no ONNX engine has: tf2onnx leaves what it cannot translate under a name of its own."""
    import onnx

    known = {"", "ai.onnx", "ai.onnx.ml"}
    return sorted(
        {
            node.op_type.removeprefix("TFL_")
            for node in proto.graph.node
            if node.domain not in known
            or not onnx.defs.has(node.op_type, "" if node.domain == "ai.onnx" else node.domain)
        }
    )


def _write_error_functions(proto: Any) -> None:
    """Write what tf2onnx does not know of TensorFlow's error function with standard operators: Erfc, and TFLite's GELU.

    erfc(x) = 1 - erf(x); gelu(x) = 0.5 x (1 + erf(x / sqrt 2)), or where it is approximate
    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
    """
    import numpy as np
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    for node in proto.graph.node:
        if node.op_type not in {"Erfc", "TFL_GELU"}:
            nodes.append(node)
            continue

        def put(op_type: str, *inputs: str | float, output: str = "", own: Any = node) -> str:
            names = []
            for value in inputs:
                if not isinstance(value, str):
                    tensor = numpy_helper.from_array(np.array(value, np.float32), f"{own.output[0]}/c{len(nodes)}")
                    proto.graph.initializer.append(tensor)
                    value = tensor.name
                names.append(value)
            output = output or f"{own.output[0]}/t{len(nodes)}"
            nodes.append(helper.make_node(op_type, names, [output], name=output))
            return output

        x, y = node.input[0], node.output[0]
        if node.op_type == "Erfc":
            put("Sub", 1.0, put("Erf", x), output=y)
            continue
        if any(attribute.name == "approximate" and attribute.i for attribute in node.attribute):
            cubic = put("Mul", put("Pow", x, 3.0), 0.044715)
            bent = put("Tanh", put("Mul", put("Add", x, cubic), (2 / np.pi) ** 0.5))
        else:
            bent = put("Erf", put("Mul", x, 0.5**0.5))
        put("Mul", put("Mul", x, 0.5), put("Add", bent, 1.0), output=y)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _name_interface(proto: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give inputs and outputs the names that the user knows, and the open first axis the name `batch`."""
    taken = {name for node in proto.graph.node for name in node.output} | {t.name for t in proto.graph.initializer}
    renamed: dict[str, str] = {}
    for values, names in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        if len(values) == len(names) == len(set(names)):
            for value, name in zip(values, names, strict=True):
                if name and (name not in taken or name == value.name) and name not in renamed.values():
                    renamed[value.name] = name
    for node in proto.graph.node:
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = renamed.get(name, name)
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = renamed.get(value.name, value.name)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and axis == 0:
                dim.dim_param = "batch"
    del proto.graph.value_info[:]
    proto.graph.name = "imported"
    proto.graph.doc_string = ""


def _plain(name: str) -> str:
    """Return a tensor's name without what TensorFlow puts around it."""
    name = name.partition(":")[0]
    return name.removeprefix("serving_default_")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def main(arguments: list[str]) -> int:
    """Convert, write, answer."""
    source, out, opset = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    try:
        proto, notes = convert(source, opset)
        out.write_bytes(proto.SerializeToString(deterministic=True))
    except Refusal as refusal:
        print("\n" + json.dumps(refusal.answer))
        return 3
    except ModuleNotFoundError as error:
        print("\n" + json.dumps({"missing": error.name}))
        return 4
    except Exception as error:  # noqa: BLE001 - the converter raises anything; the caller makes one error of it
        print("\n" + json.dumps({"error": f"{source} cannot be converted to ONNX", "cause": _first_line(error)}))
        return 3
    print("\n" + json.dumps({"notes": notes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
