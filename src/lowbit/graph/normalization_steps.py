"""LayerNormalization in steps, for engines that have integer kernels for the steps and none for the whole.

Rows of one tensor may have variances that differ by orders of magnitude, which 256 codes cannot hold. Everything
between the input and the result therefore has codes of a finer format; an Identity at either end is where they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.graph.clean.dead_code import remove_dead_code
from lowbit.graph.clean.opset import opset_of
from lowbit.graph.editor import Editor
from lowbit.graph.layer_normalization import LayerNormalization, layer_normalization_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["normalize_in_steps", "step_format"]

_KEY = "lowbit.step_format"
# Since when ReduceMean takes its axes as an input.
_AXES_AS_INPUT = 18


def normalize_in_steps(model: ir.Model, inner: str) -> tuple[ir.Model, int]:
    """Write every LayerNormalization over the last axis as ReduceMean, Sub, Mul, ReduceMean, Add, Pow, Mul, Mul, Add.

    Args:
        model: Left unchanged.
        inner: Format of the tensors between the steps, e.g. `int16:symmetric`.

    Returns:
        The model, the same one if there was nothing to do, and how many were rewritten.
    """
    result = model.clone()
    editor = Editor(result)
    count = 0
    for node in list(result.graph):
        found = layer_normalization_at(node)
        if found is not None:
            _write(_Steps(editor, found, inner))
            count += 1
    if not count:
        return model, 0
    remove_dead_code(result)
    return result, count


def step_format(node: ir.Node) -> str | None:
    """Return the format of the codes that a step writes, `None` for any other operator."""
    found = node.meta.get(_KEY)
    return found if isinstance(found, str) else None


def _write(steps: _Steps) -> None:
    x = steps.step("Identity", "input", [steps.whole.x])
    centred = steps.step("Sub", "centred", [x, steps.mean("mean", x)])
    variance = steps.mean("variance", steps.step("Mul", "squares", [centred, centred]))
    guarded = steps.step("Add", "guarded_variance", [variance, steps.constant("epsilon", steps.whole.epsilon)])
    inverse = steps.step("Pow", "inverse_deviation", [guarded, steps.constant("power", -0.5)])
    result = steps.step("Mul", "normalized", [centred, inverse])
    if steps.whole.scale is not None and not np.all(steps.whole.scale == 1):
        result = steps.step("Mul", "scaled", [result, steps.constant("scale", steps.whole.scale)])
    if steps.whole.bias is not None and np.any(steps.whole.bias):
        result = steps.step("Add", "shifted", [result, steps.constant("bias", steps.whole.bias)])
    steps.finish(result)


class _Steps:
    """Writes nodes in place of one normalization.

    Args:
        editor: Editor of the model.
        whole: The normalization.
        inner: Format of what the steps write.
    """

    def __init__(self, editor: Editor, whole: LayerNormalization, inner: str) -> None:
        self.editor = editor
        self.whole = whole
        self.inner = inner
        graph = whole.last.graph
        assert isinstance(graph, ir.Graph)
        self.graph = graph

    def step(
        self, op_type: str, what: str, inputs: Sequence[ir.Value], attributes: dict[str, Any] | None = None
    ) -> ir.Value:
        """Write one step; its result has the shape of its first input unless it is a mean."""
        shape = inputs[0].shape
        if op_type == "ReduceMean" and shape is not None:
            shape = ir.Shape([*list(shape)[:-1], 1])
        node = self.editor.node(
            op_type,
            list(inputs),
            name=f"{self.whole.last.name}/{what}",
            outputs=[f"{self.whole.last.outputs[0].name}/{what}"],
            attributes=attributes,
            dtypes=[ir.DataType.FLOAT],
            shape=shape,
        )
        node.meta[_KEY] = self.inner
        self.graph.insert_before(self.whole.last, node)
        return node.outputs[0]

    def mean(self, what: str, value: ir.Value) -> ir.Value:
        """Write a mean over the last axis, which is kept."""
        if opset_of(self.editor.model) >= _AXES_AS_INPUT:
            axes = self.constant("axes", np.asarray([-1], dtype=np.int64))
            return self.step("ReduceMean", what, [value, axes], {"keepdims": 1})
        return self.step("ReduceMean", what, [value], {"axes": [-1], "keepdims": 1})

    def constant(self, what: str, array: NDArray[Any] | float) -> ir.Value:
        """Store a constant; plain numbers are float32."""
        stored = np.asarray(array, dtype=np.float32) if isinstance(array, float) else np.asarray(array)
        return self.editor.constant(self.graph, f"{self.whole.last.outputs[0].name}/{what}", stored)

    def finish(self, result: ir.Value) -> None:
        """Let everybody read the result, in the codes that tensors have elsewhere."""
        output = self.whole.last.outputs[0]
        last = self.step("Identity", "output", [result]).producer()
        assert last is not None
        del last.meta[_KEY]
        self.editor.take_over(output, last.outputs[0])
        self.editor.drop(self.whole.last)
