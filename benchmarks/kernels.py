"""Measure single kernels of ONNX Runtime in float and in integers: what the cost constants of a target are fitted to.

Each operator stands alone between QuantizeLinear and DequantizeLinear, goes through the rewriting of lowbit, and is
timed by the profiler of the engine, so that a figure is the kernel alone. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.parser
from rich.console import Console
from rich.table import Table

from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import decide, make_plan, watch_list
from lowbit.plan.cost import float_cost, static_cost
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.runtime.session import open_session
from lowbit.targets import host_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_HEADER = '<ir_version: 8, opset_import: ["": 17]>'
_CONVOLUTIONS = (  # channels in, out, kernel, size, stride, groups
    (3, 32, 3, 224, 2, 1),
    (16, 96, 1, 112, 1, 1),
    (24, 144, 1, 56, 1, 1),
    (112, 672, 1, 14, 1, 1),
    (192, 1152, 1, 7, 1, 1),
    (16, 16, 3, 32, 1, 1),
    (64, 64, 3, 56, 1, 1),
    (32, 32, 3, 112, 1, 32),
    (144, 144, 3, 56, 1, 144),
    (672, 672, 5, 14, 1, 672),
    (1152, 1152, 3, 7, 1, 1152),
)
_MATRICES = ((1, 512, 128), (8, 384, 384), (128, 384, 1536))
_ELEMENTWISE = ("Sigmoid", "LeakyRelu", "GlobalAveragePool", "AveragePool", "MaxPool", "Softmax")


def cases() -> Iterator[tuple[str, str]]:
    """Yield a label and the ONNX text of each operator."""
    for cin, cout, kernel, size, stride, groups in _CONVOLUTIONS:
        pad = kernel // 2
        attributes = f"kernel_shape=[{kernel},{kernel}], pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]"
        kind = "depthwise" if groups > 1 else "Conv"
        label = f"{kind} {kernel}×{kernel} {cin}→{cout}, {size}²" + (f" / {stride}" if stride > 1 else "")
        weight = f"float[{cout},{cin // groups},{kernel},{kernel}] w"
        attributes += f", group={groups}"
        graph = f"g (float[1,{cin},{size},{size}] x, {weight}, float[{cout}] b) => (float y)"
        yield label, f"{graph} {{ y = Conv<{attributes}>(x, w, b) }}"
    for rows, depth, columns in _MATRICES:
        yield (
            f"MatMul [{rows},{depth}]×[{depth},{columns}]",
            f"g (float[{rows},{depth}] x, float[{depth},{columns}] w) => (float y) {{ y = MatMul(x, w) }}",
        )
    for operator in _ELEMENTWISE:
        attributes = {
            "AveragePool": "<kernel_shape=[2,2], strides=[2,2]>",
            "MaxPool": "<kernel_shape=[2,2], strides=[2,2]>",
            "Softmax": "<axis=-1>",
            "LeakyRelu": "<alpha=0.1>",
        }.get(operator, "")
        yield f"{operator} 32×56²", f"g (float[1,32,56,56] x) => (float y) {{ y = {operator}{attributes}(x) }}"
    for operator in ("Add", "Mul"):
        text = f"g (float[1,32,56,56] x, float[1,32,56,56] z) => (float y) {{ y = {operator}(x, z) }}"
        yield f"{operator} 32×56²", text


def profile(model: bytes, feed: dict[str, NDArray[Any]], runs: int) -> dict[str, float]:
    """Return the median time of each kernel type in microseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(model, threads=1, profile_prefix=Path(folder) / "profile")
        for _ in range(runs):
            session.run(feed)
        events = json.loads(Path(session.engine.end_profiling()).read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"], event["name"]].append(event["dur"])
    totals: dict[str, float] = defaultdict(float)
    for (kind, _), durations in times.items():
        totals[kind] += float(np.median(durations))
    return dict(totals)


def measure(text: str, runs: int) -> tuple[float, float, dict[str, float], float | None, float | None]:
    """Return float and integer kernel times, the conversions, and both predictions, in microseconds."""
    generator = np.random.default_rng(0)
    proto = onnx.parser.parse_model(f"{_HEADER} {text}")
    arrays = {}
    for value in proto.graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        arrays[value.name] = generator.standard_normal(shape).astype(np.float32)
    for value in [item for item in proto.graph.input if item.name in "wb"]:
        proto.graph.input.remove(value)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(arrays.pop(value.name), value.name))
    model = clean(load_model(proto)).model
    target = host_target()
    sites = find_sites(model, target)
    recipe = Recipe(method="static")
    shapes = observed_shapes(model, arrays)
    decision = decide(sites, recipe, target, shapes)
    # An operator alone gains nothing from integers; here it is to run in them all the same.
    decision = dataclasses.replace(decision, executions={sites[0].path: "static"})
    calibration = calibrate(model, [arrays], watch_list(sites, decision, recipe), threads=1)
    plan = make_plan(model, sites, recipe, target, decision, calibration, shapes)
    plain = profile(serialize(model), arrays, runs)
    coded = profile(serialize(apply_plan(model, plan).model), arrays, runs)
    moved = ("ReorderInput", "ReorderOutput", "Transpose", "QuantizeLinear", "DequantizeLinear", "Reshape")
    predictions = [None, None]
    if target.costs is not None:
        predictions = [function(sites[0], shapes, target.costs) for function in (float_cost, static_cost)]
    return (
        sum(time for kind, time in plain.items() if kind not in moved),
        sum(time for kind, time in coded.items() if kind not in moved),
        {kind: time for kind, time in coded.items() if kind in moved},
        *(None if value is None else value / 1000 for value in predictions),
    )


def main() -> None:
    """Print one row per operator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=40, help="inferences per kernel")
    runs = parser.parse_args().runs
    table = Table(title=f"{host_target().name}, one thread, µs")
    for column in ("operator", "float", "predicted", "integer", "predicted", "float / integer", "Q", "DQ"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for label, text in cases():
        plain, coded, conversions, float_guess, integer_guess = measure(text, runs)
        table.add_row(
            label,
            f"{plain:.0f}",
            "–" if float_guess is None else f"{float_guess:.0f}",
            f"{coded:.0f}",
            "–" if integer_guess is None else f"{integer_guess:.0f}",
            f"{plain / coded:.2f}" if coded else "–",
            f"{conversions.get('QuantizeLinear', 0):.0f}",
            f"{conversions.get('DequantizeLinear', 0):.0f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
