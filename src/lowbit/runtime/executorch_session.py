"""Programs for ExecuTorch: lowered to XNNPACK's kernels, and run in its own runtime."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import EngineError
from lowbit.runtime.quiet import without_stderr
from lowbit.runtime.session import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Lowered", "executorch_version", "lower_program", "run_executorch"]

_CODES = "quantized_decomposed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """A program for ExecuTorch.

    Attributes:
        contents: The bytes of the `.pte` file.
        delegated: How often every operator occurs that XNNPACK runs, conversions to and from codes left out.
        portable: The same for what ExecuTorch's portable kernels run, conversions included.
    """

    contents: bytes
    delegated: dict[str, int]
    portable: dict[str, int]


def executorch_version() -> str:
    """Return the engine's name and version, e.g. `executorch 1.5.1`.

    Raises:
        EngineError: ExecuTorch is not installed.
    """
    from importlib.metadata import version

    _executorch()
    return f"executorch {version('executorch')}"


def lower_program(program: Any) -> Lowered:
    """Lower a `torch.export.ExportedProgram`, as far as XNNPACK takes it.

    Args:
        program: With operators of `quantized_decomposed` where it is quantized.

    Raises:
        EngineError: ExecuTorch is not installed, or cannot lower the program.
    """
    _executorch()
    with warnings.catch_warnings(), without_stderr():
        warnings.simplefilter("ignore")
        try:
            import executorch.kernels.quantized  # noqa: F401 - conversions that XNNPACK does not take
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
            contents = bytes(edge.to_executorch().buffer)
        except Exception as error:
            raise EngineError("ExecuTorch does not lower the model", cause=first_line(error)) from error
    lowered = edge.exported_program().graph_module
    delegated: Counter[str] = Counter()
    for module in lowered.modules():
        inner = getattr(module, "original_module", None)
        if inner is not None:
            delegated += _operators(inner.graph_module)
    for name in [name for name in delegated if name.startswith(_CODES)]:
        del delegated[name]
    return Lowered(contents=contents, delegated=dict(delegated), portable=dict(_operators(lowered)))


def run_executorch(contents: bytes, feeds: Sequence[Sequence[NDArray[Any]]]) -> list[list[NDArray[Any]]]:
    """Return the outputs of a `.pte` file for every feed, whose arrays are in the order of the inputs.

    Raises:
        EngineError: ExecuTorch is not installed, refuses the file, or fails.
    """
    _executorch()
    import torch

    with warnings.catch_warnings(), without_stderr():
        warnings.simplefilter("ignore")
        try:
            import executorch.kernels.quantized  # noqa: F401
            from executorch.runtime import Runtime

            # NOTE: the program's memory is that of the bytes, which have to live as long as it does.
            program = Runtime.get().load_program(contents)
            method = program.load_method("forward")
            return [
                [np.array(output.numpy()) for output in method.execute([torch.from_numpy(array) for array in feed])]
                for feed in feeds
            ]
        except Exception as error:
            raise EngineError("ExecuTorch failed while running the model", cause=first_line(error)) from error


def _operators(module: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and "executorch_call_delegate" not in str(node.target):
            found[schema.name.replace("::", ".")] += 1
    return found


def _executorch() -> None:
    try:
        with warnings.catch_warnings(), without_stderr():
            warnings.simplefilter("ignore")
            import executorch.exir  # noqa: F401
    except ImportError as error:
        raise EngineError(
            "ExecuTorch is not installed", cause=str(error), remedy='pip install "lowbit[executorch]"'
        ) from error
