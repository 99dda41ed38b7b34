"""Random weights that behave like trained ones, where the initial ones make a network trivial.

Freshly made networks compute almost nothing: heads and the last BatchNorm of a block start at zero, LayerScale at
1e-6, linear layers so small that a transformer of 64 channels hands its embeddings through, and BatchNorms have the
statistics of no data, so that activations overflow or vanish with depth. Such a network agrees with anything.

And random networks with BatchNorm and Relu are chaotic (Yang et al., A Mean Field Theory of Batch Normalization,
2019): every layer multiplies differences. Noise of -40 dB at the input of a fresh MobileNetV2 leaves at -10 dB,
whoever adds it. BatchNorms' biases of one standard deviation end that (-37 dB), as training does.

The same changed module is judged before and after quantization.
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
    """Give a module weights that are not zero, scales that count and BatchNorms that know their data; in place.

    Args:
        module: Any module.
        run: Calls the module on a batch of data; the statistics are the mean of what four calls show.

    Returns:
        The module, in evaluation mode.
    """
    import torch

    norms = [part for part in module.modules() if hasattr(part, "running_mean")]
    of_norms = {id(own) for part in norms for own in (part.weight, part.bias)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            own = parameter.detach()
            if own.numel() < 2 or float(own.max() - own.min()) > 0:
                continue
            if id(parameter) in of_norms:
                own.fill_(1.0)
            elif name.endswith("bias"):
                continue
            elif own.ndim >= 2 and float(own.abs().max()) == 0:
                own.normal_(0.0, float(own[0].numel()) ** -0.5)
            elif float(own.abs().max()) <= _TINY:
                own.fill_(_LAYER_SCALE)
        for part in module.modules():
            if isinstance(part, torch.nn.Linear) or type(part).__name__ == "Conv1D":
                weight = part.weight.detach()
                inputs = weight.shape[1 if isinstance(part, torch.nn.Linear) else 0]
                if 0 < float(weight.std()) < 0.5 * inputs**-0.5:
                    weight.mul_(inputs**-0.5 / float(weight.std()))
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
