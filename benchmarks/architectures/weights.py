"""Random weights that behave like trained ones, where the initial ones make a network trivial.

Freshly made networks compute almost nothing: heads and the last BatchNorm of a block start at zero, LayerScale at 1e-6,
BatchNorms have the statistics of no data, so that activations overflow or vanish with depth. Such a network agrees with
anything. The same changed module is judged before and after quantization.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["settle"]

_TINY = 1e-3
_LAYER_SCALE = 0.1


def settle(module: torch.nn.Module, run: Callable[[], Any]) -> torch.nn.Module:
    """Give a module weights that are not zero, scales that count and the BatchNorm statistics of data; in place.

    Args:
        module: Any module.
        run: Calls the module on a batch of data; the statistics are the mean of what four calls show.

    Returns:
        The module, in evaluation mode.
    """
    import torch

    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    of_norms = {id(part.weight) for part in norms}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            own = parameter.detach()
            if own.numel() < 2 or name.endswith("bias") or float(own.max() - own.min()) > 0:
                continue
            if id(parameter) in of_norms:
                own.fill_(1.0)
            elif own.ndim >= 2 and float(own.abs().max()) == 0:
                own.normal_(0.0, float(own[0].numel()) ** -0.5)
            elif float(own.abs().max()) <= _TINY:
                own.fill_(_LAYER_SCALE)
        module.eval()
        if norms:
            before = [part.momentum for part in norms]
            for part in norms:
                part.reset_running_stats()
                part.momentum = None  # the mean of all batches
                part.train()
            for _ in range(4):
                run()
            for part, momentum in zip(norms, before, strict=True):
                part.momentum = momentum
                part.eval()
    return module
