"""From a trained module to the artifact, and its account."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from lowbit.data import Dataset, input_specs, open_data
from lowbit.exceptions import DataError, ModelError
from lowbit.formats import Parameters, parse_format
from lowbit.graph import digest, save_model
from lowbit.methods.account import provenance_of, warnings_of
from lowbit.methods.apply import Applied, apply_plan
from lowbit.methods.classification import default_metric, metric_name
from lowbit.methods.costs import measurable
from lowbit.methods.planned_weight import pack_codebook
from lowbit.methods.result import Result
from lowbit.methods.stages import Stages, silent
from lowbit.methods.training_codes import quantized_tensors
from lowbit.methods.training_sites import weighted_sites, without_corrections
from lowbit.methods.verify import Metric, verify
from lowbit.plan.packed import pack_floats
from lowbit.plan.sites import find_sites
from lowbit.runtime.engines import SIMULATION

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.data import Preprocessing
    from lowbit.methods.trainable import Origin
    from lowbit.plan.plan import ActivationPlan, Plan, SitePlan
    from lowbit.training.module import TrainableModel
    from lowbit.training.weight import TrainableWeight

__all__ = ["finalize", "trained_plan"]


def finalize(
    module: TrainableModel | Any,
    *,
    test_data: Any = None,
    labels: str | Path | None = None,
    preprocessing: Preprocessing | None = None,
    metric: Metric | None = None,
    threads: int = 1,
    measure_seconds: float = 2.0,
    stages: Stages = silent,
) -> Result:
    """Write what a trained module computes in evaluation as an artifact for its target, and measure it.

    Args:
        module: What `lowbit.trainable` returned, or a wrapper around it (DDP and the like, with `.module`).
        test_data: Held-out data for verification; by default what `trainable` kept back.
        labels: A file of labels, for `metric`.
        preprocessing: What to do to images.
        metric: Function of outputs and labels, as in `lowbit.quantize`.
        threads: Threads of latency and memory.
        measure_seconds: How long latency is measured; 0 leaves it out.
        stages: Shows progress.

    Returns:
        The artifact, its plan and its account, beside the float model that training started from.

    Raises:
        ModelError: The module is none that `lowbit.trainable` made.
        DataError: There are no data to verify with.
        EngineError: The engine does not run the artifact.
    """
    module = _unwrapped(module)
    origin: Origin = module.origin
    tests = origin.tests
    if isinstance(test_data, Dataset):
        tests = test_data
    elif test_data is not None:
        specs = input_specs(origin.model)
        tests = open_data(
            test_data, specs, preprocessing=preprocessing, limit=None, seed=origin.recipe.seed, labels=labels
        )
    if tests is None:
        raise DataError("there are no data to verify with", remedy="give test_data=")
    with stages("Build the artifact", None):
        trained, plan = trained_plan(module)
        applied = _applied(origin, trained, plan)
        applied = _compared(module, applied)
    return _verified(origin, applied, tests, metric, labels, threads, measure_seconds, stages)


def _unwrapped(module: Any) -> TrainableModel:
    from lowbit.training.module import TrainableModel

    while not isinstance(module, TrainableModel) and hasattr(module, "module"):
        module = module.module
    if not isinstance(module, TrainableModel) or module.origin is None:
        raise ModelError(
            f"a {type(module).__name__} cannot be finalized", remedy="give the module that lowbit.trainable returned"
        )
    return module


def trained_plan(module: TrainableModel) -> tuple[ir.Model, Plan]:
    """Return the float model with what was trained, rounded already, and its plan."""
    origin: Origin = module.origin
    trained = origin.model.clone()
    sites = {site.path: site for site in find_sites(trained, origin.target)}
    state = dict(module.graph.named_parameters())
    for key, value in module.graph.initializers(trained).items():
        if key in state and state[key].requires_grad:
            _set(value, state[key].detach().cpu().numpy())
    entries = {entry.node: entry for entry in origin.plan.sites}
    for path in weighted_sites(origin):
        weight = module.weight_of(path)
        read = sites[path].weight
        assert read is not None
        _set(read, weight.decoded().cpu().numpy())
        entries[path] = _entry(entries[path], weight)
        bias = module.bias_of(path)
        if bias is not None:
            packed = pack_floats(bias.bias.detach().cpu().numpy().reshape(-1))
            entries[path] = dataclasses.replace(entries[path], bias=packed)
    moved: dict[str, ActivationPlan] = {}
    for first, members in quantized_tensors(origin).items():
        scale, zero_point = _codes_of(module, first)
        for member in members:
            low, high = parse_format(member.format).code_range()
            moved[member.tensor] = dataclasses.replace(
                member,
                scale=scale,
                zero_point=zero_point,
                low=(low - zero_point) * scale,
                high=(high - zero_point) * scale,
                reason=member.reason if member.scale == scale else f"{member.reason}, then trained",
            )
    plan = dataclasses.replace(
        origin.plan,
        model_sha256=digest(trained),
        sites=tuple(entries[entry.node] for entry in origin.plan.sites),
        activations=tuple(moved[tensor.tensor] for tensor in origin.plan.activations),
    )
    return trained, plan


def _set(value: ir.Value, array: NDArray[Any]) -> None:
    assert value.const_value is not None
    plain = np.ascontiguousarray(array, dtype=np.float32).reshape(tuple(value.const_value.shape.numpy()))
    value.const_value = ir.tensor(plain, name=value.name)


def _entry(entry: SitePlan, weight: TrainableWeight) -> SitePlan:
    entry = without_corrections(entry)
    if entry.weights is None:
        return entry
    fmt = parse_format(entry.weights)
    note = "weights and scales were trained"
    changes: dict[str, Any] = {"notes": (*(one for one in entry.notes if one != note), note)}
    if fmt.element.learned and weight.clusters is not None:
        changes["codebook"] = pack_codebook(_levels(weight))
    elif weight.quantizer is not None:
        changes["scale"] = pack_floats(weight.quantizer.scale().cpu().numpy().reshape(-1))
    return dataclasses.replace(entry, **changes)


def _levels(weight: TrainableWeight) -> Parameters:
    """Return the levels of a codebook, and their scales, as its format has them."""
    clusters = weight.clusters
    assert clusters is not None
    levels = np.sort(clusters.levels().cpu().numpy().astype(np.float32), axis=1)
    if clusters.log_scale is not None:
        scale = clusters.log_scale.detach().exp().cpu().numpy()
        return Parameters(scale, np.zeros(scale.shape, dtype=np.uint8), levels[0])
    own = clusters.groups.numel() > 0 and len(levels) > 1
    shape = (len(levels),) if own else ()
    return Parameters(np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.uint8), levels if own else levels[0])


def _codes_of(module: TrainableModel, tensor: str) -> tuple[float, int]:
    for graph_input, name in module.activation_names():
        if graph_input == f"{tensor}/codes":
            scale, zero_point = module.activations[name].parameters_of_codes()
            return float(scale), int(zero_point)
    raise ModelError(f"the module has no codes of the tensor {tensor!r}")


def _applied(origin: Origin, trained: ir.Model, plan: Plan) -> Applied:
    if all(entry.execution == "float" for entry in plan.sites):
        return Applied(model=trained, plan=plan, weights={})
    return apply_plan(trained, plan, target=origin.target)


def _compared(module: TrainableModel, applied: Applied) -> Applied:
    """Say where the artifact's weights are not those that were trained."""
    changed = []
    for path, weight in applied.weights.items():
        try:
            wanted = module.weight_of(path).decoded().cpu().numpy()
        except KeyError:
            continue
        got = weight.encoded.decode()
        got = got[tuple(slice(size) for size in wanted.shape)]
        step = float(np.max(weight.encoded.parameters.scale))
        if np.abs(got - wanted).max(initial=0.0) > 1e-3 * step + 1e-6 * float(np.abs(wanted).max(initial=0.0)):
            changed.append(path)
    if not changed:
        return applied
    warning = (
        f"{len(changed)} weights are other ones than were trained, because the kernel does not take those: "
        f"{', '.join(changed[:3])}"
    )
    plan = dataclasses.replace(applied.plan, warnings=(*applied.plan.warnings, warning))
    return dataclasses.replace(applied, plan=plan)


def _verified(
    origin: Origin,
    applied: Applied,
    tests: Dataset,
    metric: Metric | None,
    labels: object,
    threads: int,
    seconds: float,
    stages: Stages,
) -> Result:
    here = measurable(origin.target)
    with tempfile.TemporaryDirectory(prefix="lowbit-") as temporary:
        folder = Path(temporary)
        float_path = Path(origin.source) if origin.source is not None else folder / "float.onnx"
        if origin.source is None:
            save_model(origin.loaded, float_path)
        path = folder / "artifact.onnx"
        save_model(applied.model, path)
        scored = metric or default_metric(tests, float_path, required=labels is not None)
        with stages("Verify in the engine", tests.count()) as advance:
            verification = verify(
                float_path=float_path,
                artifact_path=path,
                cleaned=origin.model,
                artifact=applied.model,
                plan=applied.plan,
                sites=find_sites(origin.model, origin.target),
                feeds=tests,
                labels=tests.labels,
                metric=scored,
                metric_name=metric_name(scored),
                threads=threads,
                engine=origin.target.engine if here else SIMULATION,
                memory=here and seconds > 0,
                seconds=seconds if here else 0.0,
                advance=advance,
            )
    warnings = warnings_of(applied.plan, verification, calibration_data=origin.calibration, test_data=tests)
    return Result(
        model=applied.model,
        plan=applied.plan,
        verification=dataclasses.replace(verification, warnings=tuple(warnings)),
        source=Path(origin.source).name if origin.source is not None else "model",
        notes=origin.notes,
        provenance=provenance_of(origin.source, origin.model, origin.recipe, origin.target),
    )
