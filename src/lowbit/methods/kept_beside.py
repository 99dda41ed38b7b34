"""What is kept beside the codes of a weight: weights that stand out, and a thin product of what the codes lack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.exceptions import RecipeError
from lowbit.graph.corrections import corrected_at_load, product_beside
from lowbit.plan.packed import pack_arrays, unpack_arrays

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from lowbit.graph.editor import Editor
    from lowbit.plan.plan import SitePlan
    from lowbit.plan.sites import Site

__all__ = [
    "KeptBeside",
    "add_to_output",
    "add_to_weight",
    "beside_of",
    "kept_beside",
    "pack_factors",
    "pack_outliers",
]

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptBeside:
    """Corrections of one weight: `Ŵ` with `values` at `positions`, plus `left @ right`.

    Attributes:
        positions: `[P]` int32, ascending, in the weight read in row-major order.
        values: `[P]` float16, what stands there.
        left: `[R, r]` float16 for a weight that is `[R, …]`; `None` if there is no product.
        right: `[r, …]` float16, the other axes of the weight as one.
    """

    positions: NDArray[np.int32]
    values: NDArray[np.float16]
    left: NDArray[np.float16] | None
    right: NDArray[np.float16] | None

    def without_outliers(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a weight with zeros where outliers are kept apart, so that they stretch no scale."""
        rest = weight.copy()
        rest.reshape(-1)[self.positions] = 0.0
        return rest

    def completed(self, decoded: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what codes decode to, corrected; `decoded` may be changed."""
        decoded.reshape(-1)[self.positions] = self.values
        if self.left is None or self.right is None:
            return decoded
        product = self.left.astype(np.float32) @ self.right.astype(np.float32)
        return decoded + product.reshape(decoded.shape)


def pack_outliers(weight: NDArray[np.float32], positions: NDArray[np.int32]) -> str | None:
    """Return weights at some positions for `SitePlan.outliers`; `None` if there are none, or none that 16 bits hold."""
    values = weight.reshape(-1)[positions]
    if not values.size or np.abs(values).max() > _LARGEST:
        return None
    return pack_arrays(positions, values.astype(np.float16))


def pack_factors(left: NDArray[np.float32], right: NDArray[np.float32]) -> str | None:
    """Return the factors of a product for `SitePlan.low_rank`; `None` if 16 bits do not hold them."""
    if max(np.abs(left).max(initial=0.0), np.abs(right).max(initial=0.0)) > _LARGEST:
        return None
    return pack_arrays(left.astype(np.float16), right.astype(np.float16))


def kept_beside(entry: SitePlan, weight: NDArray[Any]) -> KeptBeside | None:
    """Return what a plan keeps beside the codes of a weight; `None` if that is nothing.

    Args:
        entry: The site's entry.
        weight: Its weight, for the shape.

    Raises:
        RecipeError: What the plan holds cannot be read or belongs to another weight.
    """
    if entry.outliers is None and entry.low_rank is None:
        return None
    positions, values = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float16)
    left: NDArray[Any] | None = None
    right: NDArray[Any] | None = None
    fits = True
    if entry.outliers is not None:
        positions, values = unpack_arrays(entry.outliers, 2)
        inside = positions.size == 0 or (positions.min() >= 0 and positions.max() < weight.size)
        fits &= positions.shape == values.shape and positions.dtype == np.int32 and values.dtype == np.float16
        fits &= positions.ndim == 1 and bool(inside)
    if entry.low_rank is not None:
        left, right = unpack_arrays(entry.low_rank, 2)
        fits &= left.ndim == right.ndim == 2 and left.dtype == right.dtype == np.float16
        fits = fits and left.shape[1] == right.shape[0]
        fits = fits and (left.shape[0], right.shape[1]) == (weight.shape[0], weight.size // max(weight.shape[0], 1))
    if not fits:
        raise RecipeError(
            f"what the plan keeps beside the weight of {entry.node!r} belongs to another one",
            remedy="make the plan again with --save-plan",
        )
    return KeptBeside(positions=positions, values=values, left=left, right=right)


def beside_of(entry: SitePlan) -> tuple[str | None, str | None]:
    """Return what a plan keeps beside the codes of a weight, as it is packed: what two sites share has to be equal."""
    return entry.outliers, entry.low_rank


def add_to_weight(editor: Editor, site: Site, weight: ir.Value, beside: KeptBeside) -> ir.Value:
    """Correct a weight that is decoded at load time, and return it."""
    name = (site.weight.name if site.weight is not None else None) or "weight"
    return corrected_at_load(
        editor,
        site.node,
        name,
        weight,
        site.weight_array().shape,
        positions=beside.positions,
        values=beside.values,
        left=beside.left,
        right=beside.right,
    )


def add_to_output(editor: Editor, site: Site, beside: KeptBeside) -> None:
    """Correct the output of a MatMul or Gemm whose weight is decoded in the kernel.

    Raises:
        RecipeError: Outliers are kept of such a weight, which only one that is decoded at load time can have.
    """
    if beside.positions.size:
        raise RecipeError(
            f"the plan keeps outliers of {site.path!r} apart and decodes its weight in the kernel",
            remedy="decode it at load: `decode: load`",
        )
    if beside.left is None or beside.right is None:
        return
    name = (site.weight.name if site.weight is not None else None) or "weight"
    first, second = beside.left, beside.right
    if site.op_type == "Gemm" and site.attribute("transB", 0):
        first, second = np.ascontiguousarray(second.T), np.ascontiguousarray(first.T)
    product_beside(editor, site.node, name, first, second)
