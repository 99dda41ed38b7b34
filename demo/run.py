"""Quantize a trained text recognizer with the commands that a user would type, and let both models read a line.

The model is the PP-OCRv4 recognizer of the package rapidocr-onnxruntime (Apache-2.0), the text is drawn here, and
everything is written to demo/out.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from demo_metric import read
from numpy.typing import NDArray
from text_lines import as_input, draw, write

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
LINE = "Measured, not assumed"
CALIBRATION, TEST = 64, 120


def main() -> None:
    """Make the data, quantize, and read one line with both models."""
    OUT.mkdir(exist_ok=True)
    model = OUT / "recognizer.onnx"
    shutil.copyfile(_recognizer(), model)
    session = _session(model)
    # Class 0 is the blank between characters, the last one a space.
    alphabet = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]

    _save(OUT / "calib.npz", CALIBRATION, alphabet, seed=0)
    _save(OUT / "test.npz", TEST, alphabet, seed=1)
    print(f"{CALIBRATION} lines of text to calibrate with, {TEST} others to test with\n")

    command = "lowbit quantize out/recognizer.onnx --data out/calib.npz --test-data out/test.npz"
    command += " --metric demo_metric:character_accuracy -o out/recognizer.int8.onnx --report out/report.html"
    _run(command)

    picture = draw(LINE, np.random.default_rng(2))
    picture.save(OUT / "line.png")
    print(f"\nA line that neither data set holds, out/line.png: {LINE}")
    for name in ("recognizer.onnx", "recognizer.int8.onnx"):
        scores = _session(OUT / name).run(None, {"x": as_input(picture)})[0]
        size = (OUT / name).stat().st_size / 1e6
        print(f"  {name:<22} {size:4.1f} MB  reads  {_text(scores[0], alphabet)}")
    print(f"\nThe report, with every operator and its reason: {(OUT / 'report.html').relative_to(HERE.parent)}")


def _recognizer() -> Path:
    """Return the model file inside the installed package, which is not imported."""
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package with the demo's model is missing: pip install --no-deps rapidocr-onnxruntime==1.4.4")
    return Path(spec.submodule_search_locations[0]) / "models" / "ch_PP-OCRv4_rec_infer.onnx"


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _save(path: Path, count: int, alphabet: Sequence[str], *, seed: int) -> None:
    """Write `count` lines with what they say: one array per input of the model, and `labels`."""
    rng = np.random.default_rng(seed)
    number = {character: index for index, character in enumerate(alphabet)}
    texts = [write(rng) for _ in range(count)]
    labels = np.zeros((count, max(map(len, texts))), np.int64)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = [number[character] for character in text]
    np.savez(path, x=np.concatenate([as_input(draw(text, rng)) for text in texts]), labels=labels)


def _text(scores: NDArray[np.float32], alphabet: Sequence[str]) -> str:
    return "".join(alphabet[index] for index in read(scores))


def _run(command: str) -> None:
    """Show a command and run it where it finds the demo's metric, with the `lowbit` of this environment."""
    print(f"$ cd demo\n$ {command}\n", flush=True)
    program, *words = shlex.split(command)
    # Not resolved: the interpreter of an environment is a link to one outside of it.
    finished = subprocess.run([Path(sys.executable).with_name(program), *words], cwd=HERE, check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
