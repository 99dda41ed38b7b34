"""lowbit's LiteRT files beside those of TensorFlow's converter and of ai-edge-quantizer, on the same calibration data.

`python -m benchmarks.litert [CASE …]` prints the score of the task in LiteRT, the SQNR against the float model, the
size, the tensor arena on a microcontroller, and how many kernels compute in float. The peers live in an environment of
their own, `~/.cache/lowbit-bench/litert`: `pip install tensorflow-cpu==2.21.0 ai-edge-quantizer`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

import lowbit
from benchmarks.zoo import DEFAULT_CACHE, Case, load_case
from lowbit.exceptions import EngineError
from lowbit.graph import clean, load_model
from lowbit.graph.constants import constant_array, constant_weight
from lowbit.runtime.litert_micro import run_micro
from lowbit.runtime.litert_session import litert_session
from lowbit.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CASES = ("keyword_spotting_float", "resnet8_cifar10", "efficientnet_lite0")
PEERS = ("tensorflow", "ai_edge_quantizer")
_CALIBRATION = 100


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--peer-python", type=Path, default=DEFAULT_CACHE / "litert" / "bin" / "python")
    parser.add_argument("--kernels", nargs="+", choices=("xnnpack", "reference"), default=["xnnpack", "reference"])
    arguments = parser.parse_args()
    titles = ["case", "by", "score", "dB", "same top-1", "bytes", "arena", "kernels", "float"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}")
    for name in arguments.cases:
        case = load_case(name)
        with tempfile.TemporaryDirectory(prefix="lowbit-litert-") as folder:
            for row in _rows(case, Path(folder), arguments.peer_python, arguments.kernels):
                print(f"| {' | '.join(row)} |", flush=True)


def _rows(case: Case, folder: Path, peer_python: Path, kernels: Sequence[str]) -> Iterator[list[str]]:
    session = open_session(case.model)
    reference = [session.run(feed)[0] for feed in case.test]
    yield [case.name, "float, ONNX Runtime", f"{case.metric([[y] for y in reference]):.4f}", *[""] * 6]
    calibration = list(case.calibration)[:_CALIBRATION]
    result = lowbit.quantize(case.model, data=calibration, target="litert", measure_seconds=0)
    artifact = open_session(ir.to_proto(result.model).SerializeToString(), optimized=False)
    computed = [artifact.run(feed)[0] for feed in case.test]
    yield _row(case, "lowbit, ONNX artifact", computed, reference)
    mine = lowbit.export(result.model, data=calibration[:1], samples=1).model
    for kind in kernels:
        outputs = _outputs(mine, case, kind)
        same = np.mean([_same_top1(a, b) for a, b in zip(outputs, computed, strict=True)])
        yield _row(case, f"lowbit, {kind}", outputs, reference, mine, f"{same:.4f}")
    try:
        files = _peers(case, calibration, folder, peer_python)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        yield [case.name, "peers", f"failed: {lines[-1] if lines else error}", *[""] * 6]
        return
    for tool, data in files.items():
        for kind in kernels:
            yield _row(case, f"{tool}, {kind}", _outputs(data, case, kind), reference, data)


def _row(
    case: Case, label: str, outputs: list[Any], reference: list[Any], data: bytes | None = None, same: str = ""
) -> list[str]:
    noise = sum(float(((a - b) ** 2).sum()) for a, b in zip(outputs, reference, strict=True))
    signal = sum(float((b**2).sum()) for b in reference)
    row = [case.name, label, f"{case.metric([[y] for y in outputs]):.4f}", f"{10 * np.log10(signal / noise):.2f}", same]
    if data is None:
        return [*row, *[""] * 4]
    try:
        arena = f"{run_micro(data).arena:,}"
    except EngineError:
        arena = "refused"
    return [*row, f"{len(data):,}", arena, *_kernels(data)]


def _same_top1(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether a class wins in both: codes tie."""
    return bool(np.any((mine == mine.max()) & (theirs == theirs.max())))


def _kernels(data: bytes) -> tuple[str, str]:
    """Return how many kernels a file has, and how many of them read or write float."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0)).subgraphs[0]
    floats = sum(
        any(graph.tensors[i].type == schema.TensorType.FLOAT32 for i in (*op.inputs, *op.outputs) if i >= 0)
        for op in graph.operators
    )
    return str(len(graph.operators)), str(floats)


def _outputs(data: bytes, case: Case, kernels: str) -> list[np.ndarray]:
    """Run a file on the test samples; inputs and outputs are converted as the file says."""
    session = litert_session(data, kernels=kernels)  # type: ignore[arg-type]
    given, taken = session.interpreter.get_input_details()[0], session.interpreter.get_output_details()[0]
    found = []
    for feed in case.test:
        (x,) = feed.values()
        x = _channels_last(np.asarray(x, dtype=np.float32), tuple(given["shape"]))
        if given["dtype"] == np.int8:
            scale, zero_point = given["quantization"]
            x = np.clip(np.rint(x / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)
        (y,) = session.run([x])
        if taken["dtype"] == np.int8:
            scale, zero_point = taken["quantization"]
            y = (y.astype(np.float32) - zero_point) * np.float32(scale)
        found.append(y)
    return found


def _channels_last(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x if x.shape == shape else x.transpose(0, 2, 3, 1)


def _peers(case: Case, calibration: list[Any], folder: Path, python: Path) -> dict[str, bytes]:
    """Return the peers' files for the cleaned float model."""
    model = load_model(case.model)
    for value in model.graph.inputs:
        value.shape = ir.Shape(calibration[0][value.name].shape)
    for value in model.graph.outputs:
        value.shape = None
    graph = clean(model).model.graph
    first = graph.inputs[0]
    channels_first = len(first.shape) == 4 and first.shape[1] == 3
    weights: dict[str, np.ndarray] = {}
    nodes = []
    for node in graph:
        if node.op_type == "DequantizeLinear":
            weights[node.outputs[0].name] = constant_weight(node.outputs[0])
            continue
        for value in node.inputs:
            if value is not None and constant_array(value) is not None:
                weights[value.name] = constant_array(value)
        nodes.append(
            {
                "op": node.op_type,
                "inputs": [value.name if value is not None else "" for value in node.inputs],
                "output": node.outputs[0].name,
                "attributes": {
                    name: list(item.value) if isinstance(item.value, (tuple, list)) else item.value
                    for name, item in node.attributes.items()
                },
                "shape": [int(size) for size in node.outputs[0].shape],
            }
        )
    described = {
        "input": first.name,
        "output": graph.outputs[0].name,
        "nodes": nodes,
    }
    (folder / "graph.json").write_text(json.dumps(described))
    np.savez(folder / "weights.npz", **weights)
    samples = np.stack([np.asarray(next(iter(feed.values())), dtype=np.float32) for feed in calibration])
    np.savez(folder / "calibration.npz", x=samples.transpose(0, 1, 3, 4, 2) if channels_first else samples)
    script = Path(__file__).parent / "peers" / "litert_tensorflow.py"
    subprocess.run([python, script, folder], check=True, capture_output=True, text=True)
    return {name: (folder / f"{name}.tflite").read_bytes() for name in PEERS}


if __name__ == "__main__":
    main()
