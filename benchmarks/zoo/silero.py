"""Silero VAD of the package silero-vad: convolutions and an LSTM behind `If`, with a state that runs along."""

from __future__ import annotations

import io
import shutil
import subprocess
import wave
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.engine import open_session
from benchmarks.zoo.assets import package_file
from benchmarks.zoo.case import Array, Case, Feed, Outputs, ZooError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_silero_vad", "load_silero_vad_16k", "speak"]

RATE = 16000
CHUNK = 512
CONTEXT = 64
CALIBRATION = 300
VOICES = ("en-us+m3", "en-gb+f2", "en-us+f4", "en-gb+m7", "en-gb-scotland+m1", "en-us+f1")
SENTENCES = (
    "The morning train to the north was late again, so we waited on the platform.",
    "Please leave a message after the tone, and we will call you back.",
    "Seven, twelve, nineteen, forty. These are the numbers that you asked for.",
    "I would rather walk home in the rain than wait another hour for the bus.",
    "Turn left at the second traffic light. Then look for a small white house.",
    "Nobody in the village remembered who had built the old stone bridge.",
)


def speak(text: str, voice: str) -> Array:
    """Return a sentence as espeak-ng says it, `[samples] float32` at 16 kHz, peak 0.5.

    Raises:
        ZooError: espeak-ng is not installed.
    """
    from scipy.signal import resample_poly

    program = shutil.which("espeak-ng")
    if program is None:
        raise ZooError("espeak-ng is missing; run: apt-get install espeak-ng")
    spoken = subprocess.run([program, "-v", voice, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        rate = file.getframerate()
        # espeak-ng writes to a pipe and cannot know the length, so the header's count is not to be believed.
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float64)
    divisor = np.gcd(rate, RATE)
    audio: Array = resample_poly(samples, RATE // divisor, rate // divisor)
    scaled: Array = (0.5 * audio / np.abs(audio).max()).astype(np.float32)
    return scaled


def _recording() -> Array:
    """Return half a minute of sentences and pauses in noise, loud and soft, `[samples] float32`."""
    rng = np.random.default_rng(0)
    parts: list[Array] = []
    for text, voice in zip(SENTENCES, VOICES, strict=True):
        parts.append(speak(text, voice) * np.float32(rng.uniform(0.15, 1.5)))
        parts.append(np.zeros(int(rng.uniform(0.4, 2.5) * RATE), np.float32))
    audio = np.concatenate(parts)
    level = np.interp(np.arange(len(audio)), np.linspace(0, len(audio), 12), rng.uniform(0.001, 0.03, size=12))
    # Hum and hiss: without them a pause is exact silence, which is no task.
    hum = 0.3 * np.sin(2 * np.pi * 120 * np.arange(len(audio)) / RATE)
    return (audio + level * (rng.normal(size=len(audio)) + hum)).astype(np.float32)


def _capture(model: Path) -> tuple[list[Feed], list[bool]]:
    """Run the float model along the recording; return the feed of each step, state included, and its decision."""
    session = open_session(model)
    audio = _recording()
    audio = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    state = np.zeros((2, 1, 128), np.float32)
    feeds: list[Feed] = []
    decisions: list[bool] = []
    for start in range(CONTEXT, len(audio) - CHUNK, CHUNK):
        window = audio[start - CONTEXT : start + CHUNK][None]
        feed: Feed = {"input": window, "state": state, "sr": np.array(RATE, np.int64)}
        probability, state = session.run(["output", "stateN"], feed)
        feeds.append(feed)
        decisions.append(bool(probability.item() > 0.5))
    return feeds, decisions


def _load(name: str, file: str, data: Path, cache: Path) -> Case:  # noqa: ARG001 - every loader has one signature
    """Load the case: the first third of the steps to calibrate, the rest to test, agreement of decisions."""
    model = package_file("silero_vad", f"data/{file}", requirement="silero-vad==6.2.3")
    feeds, decisions = _capture(model)
    first = len(feeds) // 3
    expected = decisions[first:]

    def metric(outputs: Outputs) -> float:
        found = [bool(sample[0].item() > 0.5) for sample in outputs]
        return float(np.mean(np.array(found) == np.array(expected)))

    return Case(
        name=name,
        model=model,
        calibration=feeds[:first][:CALIBRATION],
        test=feeds[first:],
        metric=metric,
        metric_name="speech decisions as float",
        latency_feed=feeds[-1],
    )


load_silero_vad = partial(_load, "silero_vad", "silero_vad.onnx")
load_silero_vad_16k = partial(_load, "silero_vad_16k", "silero_vad_16k_op15.onnx")
