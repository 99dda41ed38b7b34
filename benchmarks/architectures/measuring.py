"""One architecture: brought in, quantized, loaded in ONNX Runtime and compared with the module itself."""

from __future__ import annotations

import time
import warnings
from typing import Any

from benchmarks.architectures.networks import NETWORKS, Takes
from benchmarks.architectures.weights import settle

__all__ = ["ENOUGH_DB", "agrees", "measure"]

ENOUGH_DB = 20.0
CALIBRATION, TEST = 32, 12


def agrees(row: dict[str, Any]) -> bool:
    """Return whether a row passes: 20 dB, or the same class for every sample where samples differ in their class."""
    return bool(row["db"] >= ENOUGH_DB or (row["top1"] == 1 and row["classes"] > 1))


def measure(name: str) -> dict[str, Any]:
    """Return one row.

    Returns:
        `db`: signal-to-noise ratio of the first output over all test samples. `varying_db`: the same, the mean over
        the samples not counted as signal. `shaken_db`: the module's own, where its real-valued inputs have noise of
        -40 dB: one that multiplies it does so to the noise of quantization. `top1`: the fraction of rows whose largest
        entry is the same. `classes`: how many entries are the largest of some row. `integer`, `sites`: operators in
        integer kernels, and all. `size`: bytes over float's. `open`: whether the batch is open. `import_seconds`,
        `seconds`. `notes`.
    """
    import numpy as np
    import torch

    import lowbit
    from lowbit.graph import serialize
    from lowbit.runtime import open_session

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = NETWORKS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = network.make()
    generator = torch.Generator().manual_seed(1)
    samples = [_sample(network.takes, generator) for _ in range(CALIBRATION + TEST)]
    batches = iter([_stacked(samples[start : start + 8]) for start in range(0, 32, 8)])
    settle(module, lambda: _call(module, next(batches)))

    started = time.perf_counter()
    imported = lowbit.import_model(module, _arguments(samples[0]))
    import_seconds = time.perf_counter() - started
    names = [str(value.name) for value in imported.model.graph.inputs]
    feeds = [dict(zip(names, _arrays(sample), strict=True)) for sample in samples]
    result = lowbit.quantize(
        imported.model, data=feeds[:CALIBRATION], test_data=feeds[CALIBRATION:], method="static", measure_seconds=0
    )
    content = serialize(result.model)
    session = open_session(content, threads=1)
    with torch.no_grad():
        wanted = np.stack([_first(_call(module, sample)) for sample in samples[CALIBRATION:]])
        shaken = np.stack([_first(_call(module, _shaken(sample, generator))) for sample in samples[CALIBRATION:]])
    found = np.stack([session.run(feed)[0].astype(np.float64) for feed in feeds[CALIBRATION:]])
    axis = 2 if wanted.ndim == 5 else -1  # the channels of a map, with samples and the batch in front
    noise = float(((wanted - found) ** 2).sum())
    chosen = wanted.argmax(axis)
    return {
        "db": _decibel(float((wanted**2).sum()), noise),
        "varying_db": _decibel(float(((wanted - wanted.mean(0)) ** 2).sum()), noise),
        "shaken_db": _decibel(float((wanted**2).sum()), float(((wanted - shaken) ** 2).sum())),
        "top1": float((chosen == found.argmax(axis)).mean()),
        "classes": len(np.unique(chosen)),
        "integer": sum(site.execution in {"static", "dynamic"} for site in result.plan.sites),
        "sites": len(result.plan.sites),
        "size": len(content) / len(serialize(imported.model)),
        "open": any(not isinstance(dim, int) for value in imported.model.graph.inputs for dim in value.shape),
        "import_seconds": import_seconds,
        "seconds": time.perf_counter() - started,
        "notes": list(imported.notes),
    }


def _decibel(signal: float, noise: float) -> float:
    import math

    return 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else 999.0


def _sample(takes: Takes, generator: Any) -> dict[str, Any]:
    import torch

    if isinstance(takes, tuple):
        return {"x": _coloured(takes, generator)}
    ids = torch.randint(3, 200, (1, 16), generator=generator)
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if takes == "pair":
        found["decoder_input_ids"] = torch.randint(3, 200, (1, 8), generator=generator)
    return found if takes == "tokens" else {**found, "use_cache": False}


def _shaken(sample: dict[str, Any], generator: Any) -> dict[str, Any]:
    """Return a sample with noise of -40 dB; tokens stay."""
    import torch

    if "x" not in sample:
        return sample
    noise = torch.randn(sample["x"].shape, generator=generator)
    return {"x": sample["x"] + 10 ** (-40 / 20) * sample["x"].square().mean().sqrt() * noise}


def _coloured(shape: tuple[int, ...], generator: Any) -> Any:
    """Return noise of every wavelength, as pictures and recordings have it.

    White noise has no features: it averages out, and BatchNorms then blow up the little that is left.
    """
    import torch

    channels, *sizes = shape if len(shape) > 1 else (1, *shape)
    modes = {1: "linear", 2: "bilinear", 3: "trilinear"}
    total = torch.zeros(1, channels, *sizes)
    step = max(sizes)
    while step >= 1:
        coarse = torch.randn(1, channels, *(max(size // step, 1) for size in sizes), generator=generator)
        total += torch.nn.functional.interpolate(coarse, size=sizes, mode=modes[len(sizes)])
        step //= 2
    return (total / total.std()).reshape(1, *shape)


def _stacked(samples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    return {
        key: torch.cat([sample[key] for sample in samples]) if isinstance(first, torch.Tensor) else first
        for key, first in samples[0].items()
    }


def _arguments(sample: dict[str, Any]) -> Any:
    return (sample["x"],) if "x" in sample else sample


def _call(module: Any, sample: dict[str, Any]) -> Any:
    return module(sample["x"]) if "x" in sample else module(**sample)


def _first(outputs: Any) -> Any:
    import numpy as np
    from torch.utils import _pytree as pytree

    return pytree.tree_leaves(outputs)[0].numpy().astype(np.float64)


def _arrays(sample: dict[str, Any]) -> list[Any]:
    import torch

    return [value.numpy() for value in sample.values() if isinstance(value, torch.Tensor)]
