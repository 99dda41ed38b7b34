"""The columns of the table: what is done with a family, and what came of it."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import lowbit
from benchmarks.interop.families import FAMILIES, Family, example
from lowbit.exceptions import LowbitError
from lowbit.graph import serialize
from lowbit.importing.tensorflow_models import PYTHON_VARIABLE
from lowbit.runtime.engines import SIMULATION, open_in
from lowbit.runtime.litert_micro import run_micro
from lowbit.runtime.litert_session import litert_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ENGINES", "SOURCES", "source_python"]

SAMPLES, CALIBRATION = 40, 32
ENOUGH_DB, SAME_DB = 20.0, 50.0
INTEGERS, RUN_TIME, FLOAT, WHOLE, NONE = "int8", "int8, ranges at run time", "float", "yes", "–"


class Prepared:
    """A family as a module, its samples and what it answers."""

    def __init__(self, family: Family) -> None:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        inputs = [example(family, generator) for _ in range(SAMPLES)]
        self.module = family.make()
        with torch.no_grad():
            self.module(torch.cat(inputs))  # lazy layers learn their sizes, BatchNorms their statistics
            self.module.eval()
            self.answers = np.concatenate([self.module(one).numpy() for one in inputs[CALIBRATION:]])
        self.imported = lowbit.import_model(self.module, inputs[0])
        self.name = str(self.imported.model.graph.inputs[0].name)
        self.feeds = [{self.name: one.numpy()} for one in inputs]

    @property
    def unseen(self) -> list[dict[str, NDArray[Any]]]:
        """Samples that calibration has not seen."""
        return self.feeds[CALIBRATION:]

    def quantized(self, target: str, method: str = "static") -> lowbit.Result:
        """Return the artifact for a target."""
        return lowbit.quantize(
            self.imported.model,
            self.feeds[:CALIBRATION],
            test_data=self.unseen,
            target=target,
            method=method,
            measure_seconds=0,
        )

    def check(self, found: list[NDArray[Any]]) -> None:
        """Stop where an engine's answers are not the module's."""
        agreed = decibel(self.answers, np.concatenate(found))
        if agreed < ENOUGH_DB:
            raise AssertionError(f"only {agreed:.1f} dB")


@functools.cache
def prepared(name: str) -> Prepared:
    """Return a family, made once."""
    return Prepared(FAMILIES[name])


def decibel(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the signal-to-noise ratio."""
    noise = float(np.square(wanted.astype(np.float64) - found).sum())
    return 10 * np.log10(float(np.square(wanted, dtype=np.float64).sum()) / noise) if noise else np.inf


def _in(engine: str, name: str) -> str:
    family, made = FAMILIES[name], prepared(name)
    for method, word in (("static", INTEGERS), ("dynamic", RUN_TIME)):
        result = made.quantized(f"{engine}-x86-avx2", method)
        session = open_in(engine, serialize(result.model), threads=1)
        made.check([session.run(feed)[0] for feed in made.unseen])
        own = [site for site in result.plan.sites if site.op_type in family.operators]
        if own and all(site.execution in {"static", "dynamic"} for site in own):
            return word
        if engine == "openvino":
            break  # it has no such mode
    return FLOAT


def onnxruntime(name: str) -> str:
    """Quantize for ONNX Runtime, and run there."""
    return _in("onnxruntime", name)


def openvino(name: str) -> str:
    """Quantize for OpenVINO, and run there."""
    return _in("openvino", name)


@functools.cache
def _exported(name: str) -> lowbit.Exported:
    made = prepared(name)
    result = made.quantized("litert")
    return lowbit.export(result.model, layout="keep", io="float", data=made.unseen[:2])


def litert(name: str) -> str:
    """Export for LiteRT, and run there; what it has no integer kernel for is refused."""
    try:
        exported = _exported(name)
    except LowbitError:
        return NONE
    session = litert_session(exported.contents)
    made = prepared(name)
    made.check([session.run(_as_litert(feed))[0] for feed in made.unseen])
    return INTEGERS


def _as_litert(feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the inputs with whole numbers in 32 bits, as LiteRT indexes."""
    return [array.astype(np.int32) if array.dtype == np.int64 else array for array in feed.values()]


def micro(name: str) -> str:
    """Run the same file in the interpreter for microcontrollers."""
    if litert(name) == NONE:
        return NONE
    made = prepared(name)
    try:
        run = run_micro(_exported(name).contents, [_as_litert(feed) for feed in made.unseen])
    except LowbitError:
        return NONE
    made.check([outputs[0] for outputs in run.outputs])
    return INTEGERS


def pytorch(name: str) -> str:
    """Take the int8 graph back to PyTorch, where it computes what the graph says."""
    from lowbit.interpreter import to_torch

    made = prepared(name)
    result = made.quantized("onnxruntime-x86-avx2")
    module = to_torch(result.model).eval()
    session = open_in(SIMULATION, serialize(result.model), threads=1)
    with torch.no_grad():
        found = [module(*map(torch.from_numpy, feed.values()))[0].numpy() for feed in made.unseen]
    wanted = [session.run(feed)[0] for feed in made.unseen]
    made.check(found)
    assert decibel(np.concatenate(wanted), np.concatenate(found)) > 30
    return WHOLE


def from_pytorch(name: str) -> str:
    """Bring the module in; the graph has been run beside it then."""
    made = prepared(name)
    session = open_in("onnxruntime", serialize(made.imported.model), threads=1)
    assert decibel(made.answers, np.concatenate([session.run(feed)[0] for feed in made.unseen])) > SAME_DB
    return WHOLE


def source_python() -> Path:
    """Return the interpreter that has TensorFlow."""
    default = Path("~/.cache/lowbit-bench/tensorflow/bin/python").expanduser()
    return Path(os.environ.get(PYTHON_VARIABLE, default))


@functools.cache
def _keras_files() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="lowbit-interop-")
    script = Path(__file__).with_name("keras_families.py")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("PYTHONPATH", None)
    command = [str(source_python()), "-W", "ignore", str(script), folder.name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return folder


def _from_file(name: str, kind: str) -> str:
    folder = Path(_keras_files().name)
    number = list(FAMILIES).index(name)
    path = folder / f"{number}.{kind}"
    if not path.exists():
        return NONE
    with np.load(folder / f"{number}.npz") as arrays:
        x, wanted = arrays["x"], arrays[kind]
    try:
        imported = lowbit.import_model(path, python=source_python())
    except LowbitError:
        return NONE
    session = open_in("onnxruntime", serialize(imported.model), threads=1)
    found = [session.run({session.inputs[0]: sample[None]})[0] for sample in x]
    assert decibel(wanted, np.concatenate(found)) > SAME_DB
    return WHOLE


def from_keras(name: str) -> str:
    """Bring a `.keras` file in, and answer as Keras does."""
    return _from_file(name, "keras")


def from_tflite(name: str) -> str:
    """Bring a float `.tflite` file in, and answer as TFLite does."""
    return _from_file(name, "tflite")


SOURCES: dict[str, Callable[[str], str]] = {
    "from PyTorch {torch}": from_pytorch,
    "from Keras {keras}": from_keras,
    "from TFLite, TensorFlow {tensorflow-cpu}": from_tflite,
}
ENGINES: dict[str, Callable[[str], str]] = {
    "ONNX Runtime {onnxruntime}": onnxruntime,
    "OpenVINO {openvino}": openvino,
    "LiteRT {ai-edge-litert}": litert,
    "LiteRT for Microcontrollers": micro,
    "PyTorch {torch}, as a module": pytorch,
}
