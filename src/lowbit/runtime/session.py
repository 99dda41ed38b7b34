"""One loaded model in ONNX Runtime's CPU provider."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from numpy.typing import NDArray

from lowbit.exceptions import EngineError

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["Feed", "Session", "available_threads", "engine_version", "open_session"]

Feed = Mapping[str, NDArray[Any]]


# The engine's package reports usage to its maker unless told otherwise; lowbit never uses the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def engine_version() -> str:
    """Return the engine's name and version, e.g. `onnxruntime 1.32.0`."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def available_threads() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Session:
    """A model that is loaded and ready to run.

    Attributes:
        engine: The ONNX Runtime session.
        inputs: Names of the inputs, in the model's order.
        outputs: Names of the outputs, in the model's order.
    """

    engine: onnxruntime.InferenceSession
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
            return cast("list[NDArray[Any]]", self.engine.run(outputs, dict(feed)))
        except Exception as error:
            raise EngineError("ONNX Runtime failed while running the model", cause=first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error, which is what a user can act on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def open_session(
    model: str | Path | bytes,
    *,
    threads: int = 0,
    optimized: bool = True,
    optimized_path: str | Path | None = None,
    profile_prefix: str | Path | None = None,
    options: Mapping[str, str] | None = None,
) -> Session:
    """Load a model in ONNX Runtime's CPU provider.

    Args:
        model: Path of an ONNX file, or a serialized `ModelProto` without external data.
        threads: Number of threads; 0 takes every processor that this process may use.
        optimized: Whether the engine may rewrite the graph. Off, every Q/DQ pair is computed as written.
        optimized_path: Where the engine writes the graph that it really runs.
        profile_prefix: Where the engine writes a profile; read it with `Session.engine.end_profiling`.
        options: Further session configuration entries, e.g. `session.x64quantprecision`.

    Raises:
        EngineError: The engine refuses the model.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)  # Errors reach the caller as exceptions; the same text on stderr is noise.
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = threads or available_threads()
    settings.inter_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    # Spinning workers would steal time from whatever is measured next in the same process.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if optimized_path is not None:
        settings.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_prefix)
    source: str | bytes = str(model) if isinstance(model, (str, Path)) else model
    try:
        engine = ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        name = f"'{model}'" if isinstance(model, (str, Path)) else "the model"
        raise EngineError(
            f"ONNX Runtime {ort.__version__} does not load {name}",
            cause=first_line(error),
            remedy="check the file with `lowbit inspect`, or install the engine version that wrote it",
        ) from error
    return Session(
        engine=engine,
        inputs=tuple(item.name for item in engine.get_inputs()),
        outputs=tuple(item.name for item in engine.get_outputs()),
    )
