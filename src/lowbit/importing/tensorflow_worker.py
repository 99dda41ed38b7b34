"""Run by an interpreter that has TensorFlow: reads one of its models, writes ONNX, and says in JSON how it went.

    python tensorflow_worker.py MODEL OUT.onnx OPSET

It imports nothing of lowbit, which need not be installed there. The last line of stdout is the answer:
`{"notes": [...]}`, or `{"error": ..., "cause": ..., "remedy": ...}` and exit status 3.
"""

from __future__ import annotations

import json
import os
import sys
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
        return _from_tflite(source, opset)
    if source.is_dir():
        return _from_saved_model(source, opset)
    return _from_keras(source, opset)


def _from_keras(source: Path, opset: int) -> tuple[Any, list[str]]:
    import keras
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
    proto, _ = tf2onnx.convert.from_keras(model, opset=opset)
    _name_interface(proto, [tensor.name for tensor in model.inputs], [_plain(name) for name in model.output_names])
    return proto, notes


def _from_saved_model(source: Path, opset: int) -> tuple[Any, list[str]]:
    import tensorflow as tf
    import tf2onnx

    try:
        loaded = tf.saved_model.load(str(source))
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
    custom = sorted({node.op_type for node in proto.graph.node if node.domain not in {"", "ai.onnx", "ai.onnx.ml"}})
    if custom:
        raise Refusal(
            f"{source} has operators that ONNX does not know: {', '.join(custom)}",
            "custom operators, and those of TensorFlow (SELECT_TF_OPS), have no meaning outside of their own runtime",
            "Convert the model without them, or cut the part off that needs them",
        )
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
