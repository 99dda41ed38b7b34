"""The fusion contract: whether the engine really runs in integers what was planned in integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.methods.attribution import mark, owners_of_kernels
from lowbit.plan.verification import SiteKernel
from lowbit.runtime.engines import kernels_in
from lowbit.runtime.staging import staged

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from lowbit.plan.plan import Plan
    from lowbit.plan.sites import Site
    from lowbit.runtime.kernels import Kernel

__all__ = ["contract", "read_back"]

_INTEGER = frozenset({"static", "dynamic"})
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_DECODE = "DequantizeLinear"
_ENCODE = "QuantizeLinear"
_MERGED = "(merged into its neighbours)"


def contract(
    artifact: ir.Model, sites: Sequence[Site], plan: Plan, *, engine: str = "onnxruntime", threads: int = 1
) -> tuple[SiteKernel, ...]:
    """Map every operator that was planned in integers to the kernel that runs it; see `read_back`."""
    return read_back(artifact, sites, plan, engine=engine, threads=threads)[0]


def read_back(
    artifact: ir.Model, sites: Sequence[Site], plan: Plan, *, engine: str = "onnxruntime", threads: int = 1
) -> tuple[tuple[SiteKernel, ...], tuple[str, ...]]:
    """Map every operator that was planned in integers to its kernel, and find those that were not and run in integers.

    The engine's own optimized graph is read back. An operator with weights has to run in an integer kernel; one that
    only moves codes about has to read codes, or to disappear.

    Args:
        artifact: The artifact.
        sites: The sites of the float model that it was made from.
        plan: The artifact's plan.
        engine: The engine to ask.
        threads: Threads of the engine.

    Returns:
        One row for every operator planned in integers, and the operators with weights that the engine has quantized by
        itself.

    Raises:
        EngineError: The engine refuses the artifact.
    """
    marked = mark(artifact, sites)
    with staged(marked.model) as source:
        graph = kernels_in(engine, source, threads=threads)
    kernels = graph.kernels
    owners = owners_of_kernels(kernels, marked)
    owned: dict[str, list[Kernel]] = {}
    for kernel, owner in zip(kernels, owners, strict=True):
        if owner is not None and owner.kind == "site":
            owned.setdefault(owner.name, []).append(kernel)
    writers = {tensor: kernel for kernel in kernels for tensor in kernel.outputs if tensor}
    rows = []
    unasked = []
    entries = {entry.node: entry for entry in plan.sites}
    for site in sites:
        entry = entries.get(site.path)
        if entry is None or entry.execution not in _INTEGER:
            if site.weight_index is not None and any(kernel.integer for kernel in owned.get(site.path, [])):
                unasked.append(site.path)
            continue
        rows.append(_row(site, entry.execution, owned.get(site.path, []), writers))
    return tuple(rows), tuple(unasked)


def _row(site: Site, execution: str, kernels: Sequence[Kernel], writers: Mapping[str, Kernel]) -> SiteKernel:
    def row(kernel: str, integer: bool, cause: str = "") -> SiteKernel:
        return SiteKernel(
            node=site.path, op_type=site.op_type, execution=execution, kernel=kernel, integer=integer, cause=cause
        )

    working = [kernel for kernel in kernels if kernel.op_type not in _LAYOUT or kernel.op_type == site.op_type]
    for kernel in working:
        if kernel.integer:
            return row(kernel.op_type, True)
    if not working:
        merged = site.weight_index is None
        return row(_MERGED, merged, "" if merged else "no kernel of the engine holds its weight")
    kernel = working[-1]
    decoded = _decoded(kernel, writers)
    if site.weight_index is None and not decoded:
        # Nothing is decoded in front of it: it moves codes.
        return row(kernel.op_type, True)
    cause = f"the engine runs it as {kernel.op_type} in float"
    if decoded:
        cause += f" behind {_DECODE}"
    return row(kernel.op_type, False, cause)


def _decoded(kernel: Kernel, writers: Mapping[str, Kernel]) -> bool:
    """Whether codes are decoded in front of a kernel, directly or in front of other float kernels that it reads."""
    seen: set[str] = set()
    ahead = list(kernel.inputs)
    while ahead:
        tensor = ahead.pop()
        writer = writers.get(tensor)
        if writer is None or tensor in seen:
            continue
        seen.add(tensor)
        if writer.op_type == _DECODE:
            return True
        if not writer.integer and writer.op_type != _ENCODE:
            ahead += writer.inputs
    return False
