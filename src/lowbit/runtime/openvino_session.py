"""One loaded model in OpenVINO's CPU plugin."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.runtime.kernels import Kernel, KernelGraph
from lowbit.runtime.session import available_threads, first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.runtime.session import Feed

__all__ = ["OpenVinoSession", "openvino_ir", "openvino_kernels", "openvino_session", "openvino_version"]

# What is in the runtime graph without being work.
_NOT_WORK = frozenset({"Const", "Input", "Output"})


@dataclass(frozen=True, slots=True)
class OpenVinoSession:
    """A model that is compiled and ready to run.

    Attributes:
        compiled: OpenVINO's compiled model.
        request: The inference request that `run` uses.
        inputs: Names of the inputs, in the model's order.
        outputs: Names of the outputs, in the model's order.
    """

    compiled: Any
    request: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Run the model once.

        Args:
            feed: One array per input, as the model declares them.
            outputs: Names of the wanted outputs; all of them by default.

        Returns:
            The outputs in the order asked for.

        Raises:
            EngineError: The engine failed while running.
        """
        try:
            results = self.request.infer(dict(feed), share_inputs=True, share_outputs=False)
        except Exception as error:
            raise EngineError("OpenVINO failed while running the model", cause=first_line(error)) from error
        arrays = dict(
            zip(self.outputs, (np.asarray(results[index]) for index in range(len(self.outputs))), strict=True)
        )
        return [arrays[name] for name in (outputs if outputs is not None else self.outputs)]


def openvino_version() -> str:
    """Return the engine's name and version, e.g. `openvino 2026.4.1`.

    Raises:
        EngineError: OpenVINO is not installed.
    """
    return f"openvino {_openvino().__version__.split('-')[0]}"


def openvino_session(model: str | Path | bytes, *, threads: int = 0, profile: bool = False) -> OpenVinoSession:
    """Compile a model for OpenVINO's CPU plugin, for the latency of single inferences, computing in float32.

    Args:
        model: Path of an ONNX file, or a serialized `ModelProto` without external data.
        threads: Number of threads; 0 takes every processor that this process may use.
        profile: Whether every inference keeps the times of its kernels.

    Raises:
        EngineError: OpenVINO is not installed, or refuses the model.
    """
    openvino = _openvino()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads or available_threads()),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERF_COUNT": "YES" if profile else "NO",
    }
    try:
        core = openvino.Core()
        loaded = core.read_model(str(model)) if isinstance(model, (str, Path)) else core.read_model(model, b"")
        compiled = core.compile_model(loaded, "CPU", settings)
        request = compiled.create_infer_request()
    except Exception as error:
        name = f"'{model}'" if isinstance(model, (str, Path)) else "the model"
        raise EngineError(
            f"{openvino_version()} does not load {name}",
            cause=first_line(error),
            remedy="check the file with `lowbit inspect`, or choose a target of another engine",
        ) from error
    return OpenVinoSession(
        compiled=compiled,
        request=request,
        inputs=tuple(_name(port) for port in compiled.inputs),
        outputs=tuple(_name(port) for port in compiled.outputs),
    )


def openvino_ir(model: str | Path | bytes) -> tuple[bytes, bytes]:
    """Return a model as OpenVINO's saved IR: the bytes of the `.xml` and of the `.bin`, which belong side by side.

    Codes stay codes, and what is float32 stays float32.

    Args:
        model: Path of an ONNX file, or a serialized `ModelProto` without external data.

    Raises:
        EngineError: OpenVINO is not installed, or refuses the model.
    """
    openvino = _openvino()
    try:
        core = openvino.Core()
        loaded = core.read_model(str(model)) if isinstance(model, (str, Path)) else core.read_model(model, b"")
        with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
            path = Path(folder) / "model.xml"
            _number(loaded)
            openvino.save_model(loaded, str(path), compress_to_fp16=False)
            return path.read_bytes(), path.with_suffix(".bin").read_bytes()
    except Exception as error:
        raise EngineError(f"{openvino_version()} does not convert the model", cause=first_line(error)) from error


def openvino_kernels(session: OpenVinoSession) -> KernelGraph:
    """Return the graph that OpenVINO runs, with the names of the nodes that each kernel stands for."""
    kernels = []
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        information = node.get_rt_info()
        kind = _text(information, "layerType")
        if not kind or kind in _NOT_WORK:
            continue
        precision = _text(information, "runtimePrecision")
        primitive = _text(information, "primitiveType")
        if primitive.endswith(("_i8", "_u8")):
            precision = primitive.rpartition("_")[2]
        kernels.append(
            Kernel(
                op_type=kind,
                name=node.get_friendly_name(),
                inputs=tuple(port.get_source_output().get_node().get_friendly_name() for port in node.inputs()),
                outputs=(node.get_friendly_name(),),
                origins=tuple(name for name in _text(information, "originalLayersNames").split(",") if name),
                precision=precision,
            )
        )
    return KernelGraph(kernels=tuple(kernels))


def _openvino() -> Any:
    # The package reports usage to its maker unless told otherwise; lowbit never uses the network.
    os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
    try:
        import openvino
    except ImportError as error:
        raise EngineError(
            "OpenVINO is not installed",
            cause=str(error),
            remedy='install the extra: pip install "lowbit[openvino]"',
        ) from error
    return openvino


def _number(model: Any) -> None:
    """Name what the ONNX model had no name for by its place: OpenVINO counts on from model to model in a process."""
    operators = model.get_ordered_ops()
    unnamed = [node for node in operators if node.get_friendly_name() == node.get_name()]
    taken = {node.get_friendly_name() for node in operators} - {node.get_name() for node in unnamed}
    for place, node in enumerate(unnamed):
        name = f"{node.get_type_name()}_{place}"
        while name in taken:
            name += "_"
        node.set_friendly_name(name)


def _name(port: Any) -> str:
    return str(port.get_any_name())


def _text(information: Any, key: str) -> str:
    """Return an entry of OpenVINO's runtime information as text, empty where there is none."""
    try:
        value = information[key]
    except (KeyError, RuntimeError):
        return ""
    return str(getattr(value, "value", value))
