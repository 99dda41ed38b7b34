"""What an engine really runs: its own optimized graph, read back."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lowbit.runtime.session import open_session

__all__ = ["INTEGER_KERNELS", "Kernel", "KernelGraph", "load_optimized", "read_kernels"]

# Kernels of ONNX Runtime whose arithmetic is integer. Operators that only move codes about (Reshape, MaxPool … on
# integer tensors) are recognised by the type of their tensors instead.
INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
    }
)

_INTEGER_PRECISIONS = frozenset({"i8", "u8"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One node of the engine's optimized graph.

    Attributes:
        op_type: Its operator.
        name: Its name.
        inputs: The tensors that it reads.
        outputs: The tensors that it writes.
        origins: Names of the model's nodes that it stands for, where the engine tells.
        precision: What it computes in, e.g. `u8`, where the engine tells.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    origins: tuple[str, ...] = ()
    precision: str = ""

    @property
    def integer(self) -> bool:
        """Whether its arithmetic is integer (4-bit matrix products of `MatMulNBits` are counted apart)."""
        return self.op_type in INTEGER_KERNELS or self.precision in _INTEGER_PRECISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelGraph:
    """The engine's optimized graph, subgraphs included, flattened in its own order."""

    kernels: tuple[Kernel, ...]

    def counts(self) -> dict[str, int]:
        """Return how often each operator occurs, most frequent first."""
        return dict(Counter(kernel.op_type for kernel in self.kernels).most_common())

    def integer_count(self) -> int:
        """Return how many kernels compute in integers."""
        return sum(kernel.integer for kernel in self.kernels)


def read_kernels(model: str | Path | bytes, *, threads: int = 1, int8_kept: bool = False) -> KernelGraph:
    """Load `model` in ONNX Runtime and return the graph that the engine made of it.

    Args:
        model: Path of an ONNX file, or a serialized `ModelProto`.
        threads: Number of threads.
        int8_kept: Whether activations with int8 codes stay so, as on arm64; on x86 the engine turns them into uint8.

    Raises:
        EngineError: The engine refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="lowbit-") as folder:
        path = Path(folder) / "optimized.onnx"
        # Big initializers go to a side file so that models over 2 GB can be read back; only the graph is wanted.
        options = {
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "64",
        }
        if int8_kept:
            options["session.qdqisint8allowed"] = "1"
        open_session(model, threads=threads, optimized_path=path, options=options)
        return KernelGraph(kernels=load_optimized(path))


def load_optimized(path: Path) -> tuple[Kernel, ...]:
    """Return the kernels of a graph that ONNX Runtime has written after optimizing it."""
    import onnx

    return tuple(_walk(onnx.load(path, load_external_data=False).graph))


def _walk(graph: onnx.GraphProto) -> list[Kernel]:  # type: ignore[name-defined]  # noqa: F821
    """Return the nodes of `graph` and of its subgraphs."""
    result = []
    for node in graph.node:
        result.append(
            Kernel(op_type=node.op_type, name=node.name, inputs=tuple(node.input), outputs=tuple(node.output))
        )
        for attribute in node.attribute:
            if attribute.HasField("g"):
                result.extend(_walk(attribute.g))
    return result
