"""Resizing of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowbit.exporters.litert.lowering import static_shape
from lowbit.exporters.litert.operators.attributes import attribute
from lowbit.exporters.litert.operators.fusing import written
from lowbit.exporters.litert.placement import NHWC
from lowbit.exporters.litert.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.exporters.litert.lowering import Lowering

__all__ = ["RULES"]


def _resize(low: Lowering, node: ir.Node) -> None:
    placed = low.placed(node.inputs[0])
    target = static_shape(node.outputs[0])
    if len(target) != len(NHWC) or target[:2] != placed.shape[:2]:
        raise Refusal("LiteRT resizes pictures in their two axes only")
    mode = attribute(node, "mode", "nearest")
    corners = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if attribute(node, "antialias", 0):
        raise Refusal("LiteRT has no resizing with antialiasing")
    whole = all(new % old == 0 for new, old in zip(target[2:], placed.shape[2:], strict=True))
    options = {"alignCorners": corners == "align_corners", "halfPixelCenters": corners == "half_pixel"}
    if mode == "nearest":
        floor = corners == "asymmetric" and attribute(node, "nearest_mode", "round_prefer_floor") == "floor"
        repeats = whole and corners in {"half_pixel", "asymmetric"} and (corners == "half_pixel" or floor)
        if not (floor or repeats):
            raise Refusal(f"LiteRT resizes to the nearest pixel otherwise than {corners}")
        options = {"alignCorners": False, "halfPixelCenters": False}
    elif mode != "linear" or corners not in {"half_pixel", "align_corners", "asymmetric"}:
        raise Refusal(f"LiteRT does not resize by {mode} with {corners}")
    shape = [target[axis] for axis in NHWC]
    y = low.emit(
        "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR",
        [low.ordered(placed, NHWC), low.integers("size", target[2:])],
        shape,
        grid=placed.grid,
        options=options,
        name=written(node.outputs[0]),
    )
    low.put(node.outputs[0], y, NHWC, placed.grid)


RULES: dict[str, Callable[[Lowering, ir.Node], None]] = {"Resize": _resize}
