"""Which tensors carry codes under a set of executions, and which of them share one scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowbit.graph.constants import is_constant

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.plan import Execution
    from lowbit.plan.sites import Site

__all__ = ["CodedTensor", "coded_tensors", "share_scales"]

# How far 1/6 may be off as exporters write it.
_SLOPE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CodedTensor:
    """A tensor that is quantized with calibrated parameters.

    Attributes:
        value: The tensor in the cleaned model.
        producer: The integer site that writes it, `None` if it is written in float.
        readers: The integer sites that read its codes.
    """

    value: ir.Value
    producer: Site | None
    readers: tuple[Site, ...]

    @property
    def name(self) -> str:
        """Name of the tensor."""
        assert self.value.name is not None
        return self.value.name


def coded_tensors(sites: Sequence[Site], executions: Mapping[str, Execution]) -> tuple[CodedTensor, ...]:
    """Return the tensors that carry codes if the sites run as `executions` says, in topological order.

    An integer site's output is coded, except where the kernel can write float and nobody reads the codes.
    """
    static = [site for site in sites if executions.get(site.path) == "static"]
    readers: dict[ir.Value, list[Site]] = {}
    producers: dict[ir.Value, Site] = {}
    order: list[ir.Value] = []
    for site in static:
        for index in site.activations:
            value = site.node.inputs[index]
            if value is None:
                continue
            if value not in readers:
                readers[value] = []
                order.append(value)
            if site not in readers[value]:
                readers[value].append(site)
        for value in site.last.outputs:
            producers[value] = site
            if value not in readers:
                readers[value] = []
                order.append(value)
    tensors = []
    for value in order:
        producer = producers.get(value)
        if (
            producer is not None
            and not readers[value]
            and producer.support is not None
            and producer.support.float_output
        ):
            continue
        if producer is not None and _inside_a_kernel(value, producer, readers[value]):
            continue
        tensors.append(CodedTensor(value=value, producer=producer, readers=tuple(readers[value])))
    return tuple(tensors)


def _inside_a_kernel(value: ir.Value, producer: Site, readers: Sequence[Site]) -> bool:
    """Whether a tensor exists only within the kernel of x · HardSigmoid(x)."""
    if producer.support is None or not producer.support.gate or value.is_graph_output():
        return False
    attributes = producer.node.attributes
    alpha = attributes["alpha"].as_float() if "alpha" in attributes else 0.2
    beta = attributes["beta"].as_float() if "beta" in attributes else 0.5
    if abs(alpha - 1 / 6) > _SLOPE or beta != 1 / 2 or len(readers) != len(list(value.uses())):
        return False
    return bool(readers) and all(
        reader.op_type == "Mul" and producer.node.inputs[0] in reader.node.inputs for reader in readers
    )


def share_scales(
    tensors: Sequence[CodedTensor], ranges: Mapping[str, tuple[float, float]], *, alike: float = 2.0
) -> dict[str, str]:
    """Return for every coded tensor the one whose parameters it takes (itself, if it shares with nobody above it).

    Operators that only move codes (Reshape, MaxPool …) hand their input's parameters on. A Concat makes its branches
    share one scale if their ranges differ by at most the factor `alike`; the caller then joins their ranges. Unlike
    branches keep their own scales, because one range for all would leave the narrow ones few codes.

    Args:
        tensors: The coded tensors in topological order.
        ranges: Calibrated low and high per tensor, in its own units.
        alike: Largest ratio between the widths of the ranges of two branches that share.
    """
    parent = {tensor.name: tensor.name for tensor in tensors}

    def find(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for tensor in tensors:
        producer = tensor.producer
        if producer is None or producer.support is None:
            continue
        sources = [producer.node.inputs[index] for index in producer.activations]
        names = [
            value.name for value in sources if value is not None and value.name in parent and not is_constant(value)
        ]
        if producer.support.role == "passive" and names and names[0] is not None:
            parent[tensor.name] = find(names[0])
        elif producer.support.role == "concat" and len(names) == len(sources):
            widths = [ranges[name][1] - ranges[name][0] for name in names if name is not None]
            if widths and max(widths) <= alike * min(widths):
                for name in names:
                    assert name is not None
                    parent[find(name)] = find(tensor.name)
    return {name: find(name) for name in parent}
