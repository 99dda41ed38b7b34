"""The table of operators: which function computes which ONNX operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Call", "Function", "Graph", "find_operator", "operator", "supported_operators"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A subgraph of a node: a function from tensors to a list of tensors.

    Attributes:
        run: Computes the outputs.
        results: Element type and shape of every output, as far as they are known; float32, and 0 for unknown lengths.
    """

    run: Callable[[Sequence[Any]], list[Any]]
    results: tuple[tuple[torch.dtype, tuple[int, ...]], ...]

    def __call__(self, *inputs: Any) -> list[Any]:
        """Compute the outputs."""
        return self.run(inputs)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return len(self.results)

    def nothing(self, output: int, device: torch.device | None) -> torch.Tensor:
        """Return an output of no runs, stacked: `[0, ...]`."""
        dtype, shape = self.results[output]
        return torch.empty((0, *shape), dtype=dtype, device=device)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One node, as the function that computes it sees it.

    Attributes:
        op_type: ONNX operator.
        domain: Its domain; empty for ai.onnx.
        version: Version of the domain's operator set that the graph was written for.
        attributes: Attributes as plain values; graphs as `Graph`.
        outputs: Number of outputs that are wanted, the last one that has a name counts.
        types: ONNX element types of the inputs, `None` where unknown; tells int4 from int8, which PyTorch cannot.
        training: Whether the module is in training.
    """

    op_type: str
    domain: str
    version: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    types: tuple[ir.DataType | None, ...] = ()
    training: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or its default where the node has none."""
        return self.attributes.get(name, default)

    def graph(self, name: str) -> Graph:
        """Return a subgraph."""
        return cast("Graph", self.attributes[name])


Function = Callable[..., "torch.Tensor | tuple[Any, ...] | list[Any] | None"]
"""Takes a `Call` and the node's inputs, `None` where an optional one is left out; returns the outputs."""

_TABLE: dict[tuple[str, str], Function] = {}


def operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Register a function for one or more operators, each of which has one function only."""

    def register(function: Function) -> Function:
        for name in names:
            assert (domain, name) not in _TABLE, f"{name} has two functions"
            _TABLE[domain, name] = function
        return function

    return register


def find_operator(domain: str, op_type: str) -> Function | None:
    """Return the function that computes an operator, `None` if there is none."""
    from lowbit.interpreter import operators

    operators.load()
    return _TABLE.get(("" if domain == "ai.onnx" else domain, op_type))


def supported_operators() -> tuple[str, ...]:
    """Return every operator that has a mapping, with its domain where it has one, sorted."""
    from lowbit.interpreter import operators

    operators.load()
    # The compiler itself takes care of constants.
    return tuple(sorted(["Constant", *(f"{domain}::{name}" if domain else name for domain, name in _TABLE)]))
