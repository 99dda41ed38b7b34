"""One loaded model in LiteRT, with XNNPACK's kernels or with the reference ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.runtime.quiet import without_stderr
from lowbit.runtime.session import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LiteRtSession", "litert_session", "litert_version"]

Kernels = Literal["xnnpack", "reference"]


@dataclass(frozen=True, slots=True)
class LiteRtSession:
    """A model that is loaded and has its memory.

    Attributes:
        interpreter: LiteRT's interpreter.
        inputs: Index of every input, in the file's order.
        outputs: Index of every output, in the file's order.
    """

    interpreter: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, feed: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the model once on one array per input, of the file's own types, and return its outputs.

        Raises:
            EngineError: The engine failed, or an array does not fit.
        """
        try:
            for index, array in zip(self.inputs, feed, strict=True):
                self.interpreter.set_tensor(index, array)
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise EngineError("LiteRT failed while running the model", cause=first_line(error)) from error
        return [np.array(self.interpreter.get_tensor(index)) for index in self.outputs]


def litert_version() -> str:
    """Return the engine's name and version, e.g. `ai-edge-litert 2.3.0`.

    Raises:
        EngineError: LiteRT is not installed.
    """
    return f"ai-edge-litert {_litert().__version__}"


def litert_session(model: bytes, *, kernels: Kernels = "xnnpack", threads: int = 1) -> LiteRtSession:
    """Load a `.tflite` file.

    Args:
        model: Its bytes.
        kernels: XNNPACK's, as phones run them, or the reference ones that define the operators.
        threads: Number of threads.

    Raises:
        EngineError: LiteRT is not installed, or refuses the model.
    """
    _litert()
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
    try:
        with without_stderr():
            interpreter = Interpreter(model_content=model, num_threads=threads, experimental_op_resolver_type=resolver)
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise EngineError("LiteRT refuses the model", cause=first_line(error)) from error
    return LiteRtSession(
        interpreter,
        tuple(found["index"] for found in interpreter.get_input_details()),
        tuple(found["index"] for found in interpreter.get_output_details()),
    )


def _litert() -> Any:
    try:
        import ai_edge_litert
    except ImportError as error:
        raise EngineError("LiteRT is not installed", remedy='pip install "lowbit[litert]"') from error
    return ai_edge_litert
