"""One QONNX model in the `qonnx` package's own executor, node by node."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.runtime.session import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lowbit.runtime.session import Feed

__all__ = ["QonnxSession", "qonnx_session", "qonnx_version"]


@dataclass(frozen=True, slots=True)
class QonnxSession:
    """A model that is ready to run.

    Attributes:
        model: The package's wrapper of the model.
        inputs: Names of the inputs, in the model's order.
        outputs: Names of the outputs, in the model's order.
    """

    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> list[NDArray[Any]]:
        """Run the model once: `Quant` nodes in numpy, all others in ONNX Runtime, each alone.

        Args:
            feed: One array per input, as the model declares them.
            outputs: Names of the wanted outputs; all of them by default.

        Raises:
            EngineError: The executor failed, or the shapes do not fit.
        """
        from qonnx.core.onnx_exec import execute_onnx

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the executor's, about shapes of scalars
                found = execute_onnx(self.model, dict(feed))
        except Exception as error:
            raise EngineError("The qonnx package failed while running the model", cause=first_line(error)) from error
        return [np.asarray(found[name]) for name in (self.outputs if outputs is None else outputs)]


def qonnx_version() -> str:
    """Return the executor's name and version, e.g. `qonnx 1.0.0`.

    Raises:
        EngineError: The package is not installed.
    """
    from importlib.metadata import version

    _qonnx()
    return f"qonnx {version('qonnx')}"


def qonnx_session(model: bytes) -> QonnxSession:
    """Load a QONNX model.

    Args:
        model: A serialized `ModelProto`, with the shapes of all tensors.

    Raises:
        EngineError: The package is not installed, or refuses the model.
    """
    _qonnx()
    from qonnx.core.modelwrapper import ModelWrapper

    try:
        wrapper = ModelWrapper(model)
    except Exception as error:
        raise EngineError("The qonnx package refuses the model", cause=first_line(error)) from error
    graph = wrapper.graph
    constants = {tensor.name for tensor in graph.initializer}
    return QonnxSession(
        wrapper,
        tuple(value.name for value in graph.input if value.name not in constants),
        tuple(value.name for value in graph.output),
    )


def _qonnx() -> None:
    try:
        import qonnx  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "The package qonnx is not installed", cause=str(error), remedy='pip install "lowbit[qonnx]"'
        ) from error
