"""Learning from a teacher: what it is, where it is looked at, and the loss that follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lowbit.exceptions import ModelError, RecipeError
from lowbit.graph import clean, load_model
from lowbit.interpreter import Interpreter
from lowbit.methods.training_graph import build_module
from lowbit.methods.training_plan import float_plan
from lowbit.plan.sites import find_sites
from lowbit.reconstruction.partition import partition
from lowbit.training.losses import attention_distance, feature_distance, relative_error, soft_loss
from lowbit.training.precision import in_bfloat16, in_float32

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from lowbit.methods.trainable import Origin

__all__ = ["Distillation", "Teacher", "block_ends", "logits_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How a model learns from a teacher.

    Attributes:
        teacher: `float` is the model before it was quantized; or a `torch.nn.Module` that takes the same inputs, or the
            path of an ONNX file.
        weight: Share of the teacher in the loss where there are labels; the rest is theirs.
        temperature: Of the softened classes (Hinton et al., 2015).
        features: Names of inner tensors that are compared as well; `blocks` takes the ends of blocks; empty for none.
            The teacher has to have them under the same names.
        features_weight: Their share, added.
        attention: Whether where both look is compared too: at the same tensors (Zagoruyko and Komodakis, 2017), or at
            the attention of a transformer.
        attention_weight: Its share, added.

    Raises:
        RecipeError: A value is out of its range.
    """

    teacher: Any = "float"
    weight: float = 0.5
    temperature: float = 2.0
    features: tuple[str, ...] | str = ()
    features_weight: float = 1.0
    attention: bool = False
    attention_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise RecipeError(f"the teacher's weight is {self.weight}", remedy="give a share from 0 to 1")
        if self.temperature <= 0:
            raise RecipeError(f"the temperature is {self.temperature}", remedy="give a positive number, e.g. 2")
        if isinstance(self.features, str) and self.features != "blocks":
            raise RecipeError(f"features is {self.features!r}", remedy="give 'blocks' or a tuple of tensor names")

    def tensors(self, origin: Origin) -> tuple[str, ...]:
        """Return the inner tensors that are looked at."""
        named = block_ends(origin) if self.features == "blocks" else tuple(self.features)
        if not self.attention:
            return named
        own = tuple(
            str(node.outputs[0].name)
            for node in origin.model.graph
            if node.op_type == "Softmax" and node.outputs[0].shape is not None and len(node.outputs[0].shape) > 2
        )
        return tuple(dict.fromkeys((*named, *(own or block_ends(origin)))))


def block_ends(origin: Origin) -> tuple[str, ...]:
    """Return the tensors in which blocks end, but for the outputs."""
    groups = [
        [node for node in (site.node, site.bias_node, *site.fused) if node is not None]
        for site in find_sites(origin.model, origin.target)
        if site.weight_index is not None and not site.subgraph
    ]
    outputs = {value.name for value in origin.model.graph.outputs}
    blocks = partition(origin.model.graph, groups)
    return tuple(name for block in blocks for name in block.outputs[-1:] if name not in outputs)


def logits_of(model: ir.Model) -> str | None:
    """Return the tensor that the first output is the Softmax of; `None` if it is none."""
    producer = model.graph.outputs[0].producer() if len(model.graph.outputs) else None
    if producer is None or producer.op_type not in {"Softmax", "LogSoftmax"} or producer.inputs[0] is None:
        return None
    axis = producer.attributes.get("axis")
    rank = len(model.graph.outputs[0].shape) if model.graph.outputs[0].shape is not None else 2
    if axis is not None and axis.as_int() not in {-1, rank - 1}:
        return None
    return producer.inputs[0].name


@dataclass(slots=True, kw_only=True, eq=False)
class Teacher:
    """A teacher, ready to be asked.

    Attributes:
        compute: From inputs by name, the scores and the inner tensors.
        bfloat16: Whether it computes products in bfloat16.
    """

    compute: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]
    bfloat16: bool = False

    def __call__(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the scores of a batch, and the inner tensors that are looked at, as float32."""
        with torch.no_grad(), in_bfloat16(inputs, enabled=self.bfloat16):
            found: tuple[torch.Tensor, dict[str, torch.Tensor]] = in_float32(self.compute(inputs))
        return found


def open_teacher(settings: Distillation, origin: Origin, logits: str | None) -> Teacher:
    """Open the teacher.

    Raises:
        ModelError: It cannot be read, or takes other inputs.
    """
    names = settings.tensors(origin)
    given = settings.teacher
    if isinstance(given, str) and given == "float":
        taps = tuple(dict.fromkeys((*names, *((logits,) if logits else ()))))
        sites = find_sites(origin.model, origin.target)
        plain = dataclasses.replace(origin, plan=float_plan(origin.model, sites, origin.recipe, origin.target))
        module = build_module(plain, taps=taps).eval().requires_grad_(requires_grad=False)

        def own(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            output, inner = module(tapped=True, **inputs)
            first = output[0] if isinstance(output, tuple) else output
            return (inner[logits] if logits else first), inner

        return Teacher(compute=own)
    if isinstance(given, torch.nn.Module):
        given.eval()

        def foreign(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            output = given(*inputs.values())
            return (output[0] if isinstance(output, (tuple, list)) else output), {}

        return Teacher(compute=foreign)
    if not isinstance(given, (str, Path)):
        raise ModelError(
            f"a {type(given).__name__} is no teacher", remedy="give 'float', a torch.nn.Module or the path of a model"
        )
    return _file_teacher(Path(given), origin, names, logits)


def _file_teacher(path: Path, origin: Origin, names: tuple[str, ...], logits: str | None) -> Teacher:
    model = clean(load_model(path)).model
    own = logits_of(model) if logits else None
    values = {value.name: value for node in model.graph for value in node.outputs}
    shared = [name for name in names if name in values]
    wanted = [own] if own else []
    model.graph.outputs.extend(values[name] for name in (*wanted, *shared))
    graph = Interpreter(model).eval().requires_grad_(requires_grad=False)
    if len(graph.input_names) != len(origin.model.graph.inputs):
        raise ModelError(
            f"the teacher '{path}' takes {len(graph.input_names)} inputs, the model {len(origin.model.graph.inputs)}",
            remedy="give a teacher that takes the same inputs",
        )

    def compute(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        outputs = graph(*inputs.values())
        rest = outputs[len(outputs) - len(shared) :] if shared else ()
        scores = outputs[len(outputs) - len(shared) - 1] if own else outputs[0]
        return scores, dict(zip(shared, rest, strict=True))

    return Teacher(compute=compute)


def teacher_loss(
    settings: Distillation,
    scores: torch.Tensor,
    inner: dict[str, torch.Tensor],
    teacher: Teacher,
    inputs: dict[str, torch.Tensor],
    *,
    classes: bool,
    positions: tuple[str, ...] = (),
) -> torch.Tensor:
    """Return how far a student is from its teacher.

    Args:
        settings: How it is measured.
        scores: The student's scores.
        inner: Its inner tensors, by name.
        teacher: The teacher.
        inputs: The batch.
        classes: Whether scores are logits of classes.
        positions: Tensors whose attention is compared.

    Raises:
        ModelError: The teacher's output has another shape.
    """
    wanted, inside = teacher(inputs)
    if wanted.shape != scores.shape:
        raise ModelError(
            f"the teacher's output is {list(wanted.shape)}, the model's {list(scores.shape)}",
            remedy="give a teacher for the same task",
        )
    loss = soft_loss(scores, wanted, settings.temperature) if classes else relative_error(scores, wanted)
    features = {name: one for name, one in inner.items() if name in inside}
    if settings.features:
        loss = loss + settings.features_weight * feature_distance(features, inside)
    if settings.attention:
        maps = [name for name in positions if name in features]
        for name in maps:
            distance = attention_distance(features[name], inside[name])
            loss = loss + settings.attention_weight * distance / len(maps)
    return loss
