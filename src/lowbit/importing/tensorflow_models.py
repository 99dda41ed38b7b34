"""TensorFlow, Keras and TFLite models, converted in a process of their own: TensorFlow never enters this one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx

from lowbit.exceptions import EngineError, ModelError
from lowbit.graph import load_model
from lowbit.importing.imported import Imported

__all__ = ["PYTHON_VARIABLE", "from_keras", "from_tensorflow"]

PYTHON_VARIABLE = "LOWBIT_TENSORFLOW_PYTHON"
_WORKER = Path(__file__).with_name("tensorflow_worker.py")
_INSTALL = (
    "Make an environment for it, python -m venv tf-env && tf-env/bin/pip install 'tensorflow-cpu==2.21.0' "
    "'tf2onnx==1.17.0', and name it: --python tf-env/bin/python, python=… in Python, or "
    f"{PYTHON_VARIABLE}; in one environment with lowbit: pip install 'lowbit[tensorflow]'"
)


def from_tensorflow(path: Path, *, python: str | Path | None = None, opset: int = 17) -> Imported:
    """Return a SavedModel folder, `.keras`, `.h5` or `.tflite` as an ONNX graph with the same inputs and outputs.

    Args:
        path: The model.
        python: The interpreter that has TensorFlow and tf2onnx; see `import_model`.
        opset: The operator set to write.

    Raises:
        ModelError: The model cannot be read or converted.
        EngineError: TensorFlow or tf2onnx is missing.
    """
    if not path.exists():
        raise ModelError(f"{path} does not exist", remedy="Check the path of the model")
    if path.name == "saved_model.pb":
        path = path.parent
    elif path.suffix == ".pb":
        raise ModelError(
            f"{path} is a frozen graph of TensorFlow 1",
            cause="it does not say what its inputs and outputs are",
            remedy="Give the folder of a SavedModel",
        )
    interpreter = _interpreter(python)
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        out = Path(folder) / "imported.onnx"
        command = [interpreter, "-W", "ignore", str(_WORKER), str(path), str(out), str(opset)]
        # The worker must see its own environment alone, not the packages of this one.
        environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
        except OSError as error:
            raise EngineError(
                f"the interpreter {interpreter!r} cannot be run", cause=error.strerror or str(error), remedy=_INSTALL
            ) from error
        answer = _answer(done)
        if answer.get("missing"):
            raise EngineError(
                f"{interpreter} has no module {answer['missing']!r}",
                cause="TensorFlow models are converted by TensorFlow itself",
                remedy=_INSTALL,
            )
        if done.returncode or "error" in answer:
            raise ModelError(
                str(answer.get("error", f"{path} cannot be converted to ONNX")),
                cause=str(answer.get("cause", "")),
                remedy=str(answer.get("remedy", "")),
            )
        model = load_model(onnx.load(out))
    return Imported(model=model, notes=tuple(str(note) for note in answer["notes"]))


def from_keras(model: Any, *, python: str | Path | None = None, opset: int = 17) -> Imported:
    """Return a `keras.Model` in memory as an ONNX graph, by way of a SavedModel, which needs no class of a layer.

    With another backend than TensorFlow, by way of a `.keras` file.

    Raises:
        ModelError: It cannot be saved or converted.
        EngineError: TensorFlow or tf2onnx is missing.
    """
    here = sys.executable if importlib.util.find_spec("tf2onnx") is not None else None
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "model"
        try:
            if "tensorflow" in sys.modules:
                model.export(str(path), verbose=False)
            else:
                path = path.with_suffix(".keras")
                model.save(path)
        except Exception as error:  # Keras raises many types
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ModelError(
                f"the model {getattr(model, 'name', 'of Keras')!r} cannot be saved by Keras",
                cause=lines[0] if lines else type(error).__name__,
                remedy="Call it once on data, so that its layers are built",
            ) from error
        return from_tensorflow(path, python=python or here, opset=opset)


def _interpreter(python: str | Path | None) -> str:
    """Return the interpreter that was asked for, or this one where it has TensorFlow."""
    if python is not None:
        return str(Path(python).expanduser())
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        return str(Path(named).expanduser())
    if importlib.util.find_spec("tensorflow") is None:
        raise EngineError(
            "TensorFlow is not installed here",
            cause="Keras, SavedModel and TFLite models are converted by TensorFlow itself, in a process of its own",
            remedy=_INSTALL,
        )
    return sys.executable


def _answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        answer = {}
    if isinstance(answer, dict) and answer:
        return answer
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"error": "the converter of TensorFlow models ended early", "cause": said[-1] if said else "it said nothing"}
