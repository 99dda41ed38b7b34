"""A module in evaluation mode for as long as it is looked at, and afterwards exactly as it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lowbit.importing.fake_quantization import is_fake_quantizer, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

__all__ = ["evaluating"]


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[list[str]]:
    """Put a module and everything that it calls into evaluation mode; restore every flag at the end.

    Modules that are no submodules, such as those that a wrapper keeps in a list, are found when they are called: run
    the module once inside before it is captured. Fake quantizers stop observing and keep their ranges meanwhile.

    Yields:
        The types of the modules that were found in training mode only when they were called.
    """
    import torch

    flags: dict[torch.nn.Module, bool] = {part: part.training for part in module.modules()}
    hidden: list[str] = []
    replaced: list[tuple[torch.nn.Module, str, torch.nn.Module]] = []

    def settle(parent: torch.nn.Module) -> None:
        for name, child in list(parent.named_children()):
            if is_fake_quantizer(child):
                replaced.append((parent, name, child))
                setattr(parent, name, settled(child))

    def called(part: torch.nn.Module, _arguments: Any) -> None:
        if part not in flags:
            flags[part] = part.training
            if part.training:
                hidden.append(type(part).__name__)
        if part.training:
            part.training = False
            settle(part)

    # NOTE: flags, not `eval()`: that may do more than set them (merge adapters, refuse), which could not be undone.
    for part in list(flags):
        part.training = False
        settle(part)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(called)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield hidden
    finally:
        handle.remove()
        for parent, name, child in replaced:
            setattr(parent, name, child)
        for part, training in flags.items():
            part.training = training
