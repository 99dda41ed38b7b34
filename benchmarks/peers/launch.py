"""Which quantizers there are, and how one is run in its own process and interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PEERS", "LaunchError", "Peer", "launch"]

ROOT = Path(__file__).resolve().parents[2]


class LaunchError(Exception):
    """A quantizer ended with an error; the message is the last line that it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to quantize a model.

    Attributes:
        script: Module in `benchmarks.peers`.
        options: Command line options of the script.
        own_interpreter: Whether it runs in the interpreter of the peers and not in ours.
        environment: Name of that interpreter's folder in the cache, for tools whose requirements exclude each other.
        suffix: Ending of the file that it writes; `.xml` is OpenVINO's own format.
        deterministic: Whether to run it twice and compare the files.
        tells_architecture: Whether transformers are announced with `--transformer`.
    """

    script: str
    options: tuple[str, ...] = ()
    own_interpreter: bool = True
    environment: str = "peers"
    suffix: str = ".onnx"
    deterministic: bool = False
    tells_architecture: bool = False


_U8S8 = ("--activations", "uint8", "--per-channel")
PEERS: dict[str, Peer] = {
    "float": Peer(script="float_copy", own_interpreter=False),
    "lowbit": Peer(script="lowbit_ptq", own_interpreter=False, deterministic=True),
    "ort-u8s8": Peer(script="onnxruntime_static", options=_U8S8),
    "ort-u8s8-reduced": Peer(script="onnxruntime_static", options=(*_U8S8, "--reduce-range")),
    "ort-percentile": Peer(
        script="onnxruntime_static", options=(*_U8S8, "--reduce-range", "--calibrate", "percentile")
    ),
    "ort-default": Peer(script="onnxruntime_static"),
    "ort-dynamic": Peer(script="onnxruntime_dynamic"),
    "nncf": Peer(script="nncf_ptq", tells_architecture=True),
}


def launch(
    peer: Peer,
    *,
    python: Path,
    model: Path,
    calibration: Path,
    output: Path,
    options: Sequence[str] = (),
    timeout: float | None = None,
) -> dict[str, Any]:
    """Quantize a model in a fresh process.

    Args:
        peer: How.
        python: Interpreter of the peers.
        model: The float ONNX file.
        calibration: Folder of feeds.
        output: Where to write.
        options: Further command line options.
        timeout: Seconds after which the process is ended.

    Returns:
        What the script measured: `seconds`, `peak_mb`, `samples` and more.

    Raises:
        LaunchError: The script failed, took too long, or wrote nothing.
    """
    interpreter = str(python) if peer.own_interpreter else sys.executable
    command = [interpreter, "-m", f"benchmarks.peers.{peer.script}", *peer.options, *options]
    command += ["--model", str(model), "--calibration", str(calibration), "--output", str(output)]
    # Some tools drop temporary files where they stand; the checkout is no place for them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    run = partial(subprocess.run, capture_output=True, text=True, check=False, timeout=timeout)
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = run(command, cwd=folder, env=environment)
    except FileNotFoundError as error:
        raise LaunchError(f"no interpreter at {interpreter}; see benchmarks/README.md") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"not done after {timeout:.0f} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = " ".join(lines[-1].split()) if lines else ""
        raise LaunchError(f"exit {done.returncode}: {reason}"[:200])
    if not output.exists():
        raise LaunchError("it reported success and wrote nothing")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
