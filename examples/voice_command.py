"""Voice commands with 4-bit weights and 4-bit activations, learned from the float model without a single label.

    python examples/voice_command.py --data FOLDER

The keyword spotter of MLPerf Tiny (DS-CNN) knows ten words, silence and other words. Half of the stimuli are recordings
from a device that nobody has labelled; the other half are for the test. README.md says how to get the files.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import onnxruntime

import lowbit


def accuracy(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of the words that a file recognizes in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = [int(np.argmax(session.run(None, {name: sample[None]})[0])) for sample in x]
    return float(np.mean(np.array(found) == y))


def main() -> None:
    """Quantize without and with distillation, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("LOWBIT_DATA", "data")))
    parser.add_argument("--out", type=Path, default=Path("voice_command"), help="folder for the models")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    model = options.data / "models" / "kws_dscnn_float.onnx"
    with np.load(options.data / "kws-mlperf-dev.npz") as stimuli:
        order = np.random.default_rng(0).permutation(len(stimuli["y"]))
        # The stimuli are stored as MLPerf's int8 model takes them: zero point 83, scale 0.5847.
        x = ((stimuli["x"][order].astype(np.float32) - 83) * np.float32(0.5847029089927673))[..., None]
        y = stimuli["y"][order]
    half = len(x) // 2
    out = options.out
    files = {"float": model, "int8, after training": out / "int8.onnx", "W4A4, not learned": out / "w4a4.ptq.onnx"}
    files["W4A4, distilled"] = out / "w4a4.distilled.onnx"
    few = {"weights": "int4", "activations": "uint4"}

    calibration = [{"input_1": one[None]} for one in x[:half]]
    lowbit.quantize(model, calibration, measure_seconds=0).save(files["int8, after training"])
    # The same bits for the same layers, as they are before the first step.
    start = lowbit.trainable(model, data={"input_1": x[:half]}, **few)
    lowbit.finalize(start, measure_seconds=0).save(files["W4A4, not learned"])
    learning = {"epochs": options.epochs, "batch": 50, "measure_seconds": 0}
    trained = lowbit.distill(model, {"input_1": x[:half]}, **few, **learning)
    trained.result.save(files["W4A4, distilled"])

    print("| model | top-1 | .onnx | .lbz |\n| --- | --- | --- | --- |")
    for name, path in files.items():
        packed = lowbit.pack(path, out / f"{path.stem}.lbz", smallest=True).packed
        print(f"| {name} | {100 * accuracy(path, x[half:], y[half:]):.1f} % | {path.stat().st_size:,} | {packed:,} |")


if __name__ == "__main__":
    main()
