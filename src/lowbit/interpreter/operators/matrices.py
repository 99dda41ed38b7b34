"""Products of matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lowbit.interpreter.integers import centred, product
from lowbit.interpreter.registry import operator

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.interpreter.registry import Call

__all__: list[str] = []


@operator("MatMul")
def matmul(_call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices, or stacks of them, as numpy does."""
    if a.is_floating_point():
        return torch.matmul(a, b.to(a.dtype))
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """`alpha A B + beta C`, with either matrix transposed."""
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    if not a.is_floating_point():
        whole = torch.matmul(a.to(torch.int64), b.to(torch.int64)) * int(alpha)
        return (whole if c is None else whole + int(beta) * c.to(torch.int64)).to(a.dtype)
    result = torch.matmul(a, b)
    result = result if alpha == 1 else alpha * result
    if c is None:
        return result
    return result + (c if beta == 1 else beta * c)


@operator("MatMulInteger")
def matmul_integer(
    _call: Call, a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """Multiply matrices of codes; int32 sums. Zero points are scalars, one a row of A, or one a column of B."""
    return product(centred(a, a_zero_point, axis=-2), centred(b, b_zero_point, axis=-1)).to(torch.int32)
