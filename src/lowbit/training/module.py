"""The module that users train: a graph, its weights with masks, codebooks and grids, and its activations' codes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from lowbit.interpreter import Interpreter
    from lowbit.training.activation import LearnedActivation
    from lowbit.training.bias import TrainableBias
    from lowbit.training.weight import TrainableWeight

__all__ = ["TrainableModel", "state_name"]

# What is 0, as biases may be, still has to learn.
_SMALLEST = {"weights": 1e-3, "others": 1e-2}


class TrainableModel(torch.nn.Module):
    """An ONNX model that learns; see `lowbit.trainable`.

    An ordinary module: parameters, `state_dict`, `train()` and `eval()` are PyTorch's own, so that any loop, DDP,
    Accelerate or Lightning trains it. `eval()` computes what the artifact of `lowbit.finalize` computes.

    Args:
        graph: The graph; takes its inputs, then what is named in `weights` and `activations`, by name.
        weights: By the graph's inputs that take them; several may take one.
        activations: By the graph's inputs that take them; several may take one.
        biases: Those that are rounded, by the graph's inputs that take them.
        reads: By path of an operator with a weight, the tensor that it reads and the initializer of its bias.
        inputs: Names of the model's own inputs.
        outputs: How many of the graph's outputs are the model's own; the others are taps.
        taps: Names of the further outputs.
        origin: What `lowbit.finalize` writes the artifact from.
        images: Inputs that are laid out with their channels last in memory, which CPUs are faster with.

    Attributes:
        sample_by_sample: Whether the graph takes one sample at a time, so that batches are computed one by one.
        strength: Share of rounding errors that is added; see `set_strength`.
        weights: The weights, by name.
        activations: The codes of activations, by name.
    """

    def __init__(
        self,
        graph: Interpreter,
        weights: Mapping[str, TrainableWeight],
        activations: Mapping[str, LearnedActivation],
        biases: Mapping[str, TrainableBias] | None = None,
        *,
        reads: Mapping[str, tuple[str | None, str | None]] | None = None,
        inputs: tuple[str, ...],
        outputs: int,
        taps: tuple[str, ...] = (),
        origin: Any = None,
        images: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.graph = graph
        self.inputs, self.taps, self.origin, self.images = inputs, taps, origin, images
        self._outputs = outputs
        self.weights, self._weight_inputs = _named(weights)
        self.activations, self._activation_inputs = _named(activations)
        self.biases, self._bias_inputs = _named(biases or {})
        self.strength = 1.0
        self.sample_by_sample = False
        self._reads = dict(reads or {})

    def forward(self, *inputs: torch.Tensor, tapped: bool = False, **named: torch.Tensor) -> Any:
        """Compute the outputs.

        Args:
            *inputs: The model's inputs, in order.
            tapped: Whether the tensors named in `taps` are returned as well, as `(outputs, {name: tensor})`.
            **named: Inputs by name.

        Returns:
            The output, or a tuple of outputs where the model has several.

        Raises:
            ModelError: An input is missing or unknown.
        """
        values: dict[str, Any] = {**dict(zip(self.inputs, inputs, strict=False)), **named}
        if len(inputs) > len(self.inputs):
            from lowbit.exceptions import ModelError

            raise ModelError(f"the model takes {len(self.inputs)} inputs, {len(inputs)} were given")
        if self.images:
            values = {name: _laid_out(value) if name in self.images else value for name, value in values.items()}
        if self.sample_by_sample:
            return self._joined(values, tapped=tapped)
        return self._computed(values, tapped=tapped)

    def _joined(self, values: dict[str, Any], *, tapped: bool) -> Any:
        """Compute every sample alone, and join what comes of it."""
        count = max(len(value) for value in values.values())
        alone = [
            self._computed({name: value[index : index + 1] for name, value in values.items()}, tapped=tapped)
            for index in range(count)
        ]
        return _concatenated(alone)

    def _computed(self, values: dict[str, Any], *, tapped: bool) -> Any:
        decoded = {name: self.weights[name]() for name in self.weights}
        values.update({graph_input: decoded[name] for graph_input, name in self._weight_inputs.items()})
        values.update({graph_input: self.activations[name] for graph_input, name in self._activation_inputs.items()})
        values.update({graph_input: self.biases[name]() for graph_input, name in self._bias_inputs.items()})
        found = self.graph(**values)
        own, rest = found[: self._outputs], found[self._outputs :]
        result = own[0] if len(own) == 1 else tuple(own)
        return (result, dict(zip(self.taps, rest, strict=True))) if tapped else result

    @property
    def quantized(self) -> bool:
        """Whether anything is rounded."""
        return bool(self.activations) or any(weight.quantizer is not None for weight in self.weights.values())

    def set_strength(self, strength: float) -> None:
        """Choose how much of the rounding errors is added, from 0 (float) to 1 (what the engine computes)."""
        if strength == self.strength:
            return
        self.strength = strength
        for part in (*self.weights.values(), *self.activations.values()):
            part.strength = strength

    def parameter_groups(
        self, lr: float, *, weight_decay: float = 0.0, scale_lr: float = 1e-3, relative: bool = False
    ) -> list[dict[str, Any]]:
        """Return parameters as optimizers take them: weights, what has no decay (biases, codebooks), and scales.

        Args:
            lr: Learning rate of weights and biases.
            weight_decay: Of weights that are not codebooks.
            scale_lr: Learning rate of the logarithms of scales, and of zero points.
            relative: Whether every tensor has the learning rate `lr` times the root of its mean square (Shazeer and
                Stern, Adafactor, 2018, section 8). Folded batch normalizations leave weights of very different sizes,
                of which Adam would otherwise move the small ones too fast.
        """
        groups: dict[str, list[torch.nn.Parameter]] = {"weights": [], "others": [], "scales": []}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            leaf = name.rsplit(".", 1)[-1]
            inside = name.startswith(("weights.", "activations."))
            if inside and leaf in {"log_scale", "zero_point"}:
                groups["scales"].append(parameter)
            elif inside and leaf in {"weight", "position"}:
                groups["weights"].append(parameter)
            else:
                groups["others"].append(parameter)
        found: list[dict[str, Any]] = []
        for kind, decay in (("weights", weight_decay), ("others", 0.0)):
            members = groups[kind]
            parts = [[one] for one in members] if relative else [members] if members else []
            for part in parts:
                unit = max(float(part[0].detach().square().mean().sqrt()), _SMALLEST[kind]) if relative else 1.0
                found.append({"params": part, "lr": lr * unit, "weight_decay": decay, "name": kind})
        if groups["scales"]:
            found.append({"params": groups["scales"], "lr": scale_lr, "weight_decay": 0.0, "name": "scales"})
        return found

    def bias_of(self, site: str) -> TrainableBias | None:
        """Return the rounded bias of an operator by its path; `None` if its bias is an initializer of the graph."""
        name = self._bias_inputs.get(f"{site}/bias")
        return None if name is None else self.biases[name]

    def parts(
        self,
    ) -> tuple[dict[str, TrainableWeight], dict[str, LearnedActivation], dict[str, TrainableBias]]:
        """Return weights, codes and rounded biases by the graph's inputs that take them."""
        return (
            {graph_input: self.weights[name] for graph_input, name in self._weight_inputs.items()},
            {graph_input: self.activations[name] for graph_input, name in self._activation_inputs.items()},
            {graph_input: self.biases[name] for graph_input, name in self._bias_inputs.items()},
        )

    def layers(self) -> dict[str, tuple[TrainableWeight | LearnedActivation, ...]]:
        """Return what is rounded for every operator with a weight: the weight, and the codes that it reads."""
        found: dict[str, tuple[TrainableWeight | LearnedActivation, ...]] = {}
        for path, (source, _) in self._reads.items():
            name = self._activation_inputs.get(f"{source}/codes")
            codes = (self.activations[name],) if name is not None else ()
            found[path] = (self.weight_of(path), *codes)
        return found

    def plain_biases(self, site: str) -> tuple[torch.nn.Parameter, ...]:
        """Return the bias of an operator by its path, if it is an initializer of the graph."""
        own = dict(self.graph.named_parameters())
        name = self._reads[site][1]
        return (own[name],) if name in own else ()

    def activation_names(self) -> tuple[tuple[str, str], ...]:
        """Return the graph's inputs that take codes, each with its name in `activations`."""
        return tuple(self._activation_inputs.items())

    def sparsity(self) -> float:
        """Return the fraction of all weights that are masked."""
        total = sum(_size(weight) for weight in self.weights.values())
        zeros = sum(float((weight.mask == 0).sum()) for weight in self.weights.values() if weight.mask is not None)
        return zeros / max(total, 1)

    def weight_of(self, site: str) -> TrainableWeight:
        """Return the weight of an operator by its path.

        Raises:
            KeyError: The operator has no weight that learns.
        """
        found: TrainableWeight = self.weights[self._weight_inputs[f"{site}/weight"]]
        return found


def state_name(name: str, taken: Iterable[str]) -> str:
    """Return a name that PyTorch takes for a module: without dots, and not one of `taken`."""
    plain = re.sub(r"\.", "_", name) or "tensor"
    known, result, count = set(taken), plain, 2
    while result in known or hasattr(torch.nn.ModuleDict, result):
        result, count = f"{plain}_{count}", count + 1
    return result


def _concatenated(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {name: _concatenated([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(_concatenated(list(column)) for column in zip(*parts, strict=True))
    return torch.cat(parts)


def _named(parts: Mapping[str, torch.nn.Module]) -> tuple[torch.nn.ModuleDict, dict[str, str]]:
    """Return modules under names that PyTorch takes, and the name by the graph's input."""
    modules = torch.nn.ModuleDict()
    names: dict[int, str] = {}
    inputs = {}
    for graph_input, part in parts.items():
        if id(part) not in names:
            names[id(part)] = state_name(graph_input.rsplit("/", 1)[0], modules)
            modules[names[id(part)]] = part
        inputs[graph_input] = names[id(part)]
    return modules, inputs


def _size(weight: TrainableWeight) -> int:
    count = 1
    for length in weight.shape:
        count *= length
    return count


def _laid_out(value: Any) -> Any:
    image = isinstance(value, torch.Tensor) and value.ndim == 4 and value.is_floating_point()
    return value.contiguous(memory_format=torch.channels_last) if image else value


def trainable_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield what learns, by name."""
    yield from ((name, one) for name, one in module.named_parameters() if one.requires_grad)
