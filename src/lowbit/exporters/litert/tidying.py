"""Last look at a program: what nobody reads goes, and reshapes of reshapes become one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowbit.exporters.litert.tensors import Operator, Program, Tensor

__all__ = ["tidy"]


def tidy(program: Program) -> None:
    """Remove dead operators and merge chains of RESHAPE, in place."""
    _merge_reshapes(program)
    _remove_dead(program)


def _merge_reshapes(program: Program) -> None:
    writers: dict[Tensor, Operator] = {
        output: operator for operator in program.operators for output in operator.outputs
    }
    kept_outputs = {tensor for _, tensor in program.outputs}
    replaced: dict[Tensor, Tensor] = {}
    for operator in program.operators:
        operator.inputs = [replaced.get(tensor, tensor) if tensor is not None else None for tensor in operator.inputs]
        if operator.kind != "RESHAPE":
            continue
        source = operator.inputs[0]
        while source is not None and source in writers and writers[source].kind == "RESHAPE":
            source = writers[source].inputs[0]
        operator.inputs[0] = source
        if source is not None and source.shape == operator.outputs[0].shape and operator.outputs[0] not in kept_outputs:
            replaced[operator.outputs[0]] = source


def _remove_dead(program: Program) -> None:
    needed = {tensor for _, tensor in program.outputs}
    kept = []
    for operator in reversed(program.operators):
        if any(output in needed for output in operator.outputs):
            kept.append(operator)
            needed.update(tensor for tensor in operator.inputs if tensor is not None)
    program.operators[:] = kept[::-1]
