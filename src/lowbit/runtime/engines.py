"""The engines by name: what every one of them can be asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from lowbit.exceptions import EngineError
from lowbit.runtime.kernels import KernelGraph, read_kernels
from lowbit.runtime.session import engine_version, open_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lowbit.runtime.session import Feed

__all__ = ["ENGINES", "SIMULATION", "Runner", "kernels_in", "open_in", "version_of"]

ENGINES = ("onnxruntime", "openvino")
SIMULATION = "simulation"
"""ONNX Runtime with all optimizations off: the graph is computed as it is written, by nobody's kernels."""


class Runner(Protocol):
    """A model that is loaded in some engine."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the model's order."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Run the model once and return its outputs, or those that are asked for."""


def open_in(engine: str, model: str | Path | bytes, *, threads: int = 0) -> Runner:
    """Load a model in an engine.

    Raises:
        EngineError: There is no such engine, it is not installed, or it refuses the model.
    """
    if engine == "onnxruntime":
        return open_session(model, threads=threads)
    if engine == SIMULATION:
        return open_session(model, threads=threads, optimized=False)
    _check(engine)
    from lowbit.runtime.openvino_session import openvino_session

    return openvino_session(model, threads=threads)


def kernels_in(engine: str, model: str | Path | bytes, *, threads: int = 1) -> KernelGraph:
    """Load a model in an engine and return the graph that the engine made of it.

    Raises:
        EngineError: There is no such engine, it is not installed, or it refuses the model.
    """
    if engine in {"onnxruntime", SIMULATION}:
        # NOTE: Version 1.32 refuses some graphs of opset 21 when it turns int8 into uint8, which simulations do not.
        return read_kernels(model, threads=threads, int8_kept=engine == SIMULATION)
    _check(engine)
    from lowbit.runtime.openvino_session import openvino_kernels, openvino_session

    return openvino_kernels(openvino_session(model, threads=threads))


def version_of(engine: str) -> str:
    """Return an engine's name and version, e.g. `onnxruntime 1.32.0`.

    Raises:
        EngineError: There is no such engine, or it is not installed.
    """
    if engine == "onnxruntime":
        return engine_version()
    if engine == SIMULATION:
        return f"simulation ({engine_version()}, without optimizations)"
    _check(engine)
    from lowbit.runtime.openvino_session import openvino_version

    return openvino_version()


def _check(engine: str) -> None:
    if engine not in ENGINES:
        raise EngineError(
            f"lowbit cannot run {engine}",
            cause=f"it runs models in {', '.join(ENGINES)}",
            remedy="verify on the device, or choose a target of one of these engines",
        )
