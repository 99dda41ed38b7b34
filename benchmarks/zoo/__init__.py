"""The zoo: real trained models with real data and the score of their task. `LOADERS` maps each name to its loader."""

from __future__ import annotations

from pathlib import Path

from benchmarks.zoo.assets import data_folder
from benchmarks.zoo.case import Case, Loader, ZooError
from benchmarks.zoo.crepe import load_crepe_tiny
from benchmarks.zoo.efficientnet import load_efficientnet_lite0
from benchmarks.zoo.fastestdet import load_fastestdet
from benchmarks.zoo.magika_bytes import load_magika
from benchmarks.zoo.minilm import load_minilm
from benchmarks.zoo.mlperf_tiny import load_keyword_spotting, load_keyword_spotting_float, load_resnet8_cifar10
from benchmarks.zoo.ppocr import load_ppocr_cls, load_ppocr_det, load_ppocr_rec
from benchmarks.zoo.silero import load_silero_vad, load_silero_vad_16k

__all__ = ["DEFAULT_CACHE", "LOADERS", "Case", "ZooError", "load_case"]

DEFAULT_CACHE = Path("~/.cache/lowbit-bench").expanduser()

LOADERS: dict[str, Loader] = {
    "efficientnet_lite0": load_efficientnet_lite0,
    "keyword_spotting": load_keyword_spotting,
    "keyword_spotting_float": load_keyword_spotting_float,
    "resnet8_cifar10": load_resnet8_cifar10,
    "ppocr_rec": load_ppocr_rec,
    "ppocr_cls": load_ppocr_cls,
    "ppocr_det": load_ppocr_det,
    "minilm": load_minilm,
    "fastestdet": load_fastestdet,
    "silero_vad": load_silero_vad,
    "silero_vad_16k": load_silero_vad_16k,
    "crepe_tiny": load_crepe_tiny,
    "magika": load_magika,
}


def load_case(name: str, *, cache: Path = DEFAULT_CACHE) -> Case:
    """Load one case of the zoo.

    Args:
        name: A key of `LOADERS`.
        cache: Folder for models that are built on first use.

    Raises:
        ZooError: The case is unknown, or a file or package that it needs is missing.
    """
    if name not in LOADERS:
        raise ZooError(f"{name!r} is not a case; there are: {', '.join(LOADERS)}")
    cache.mkdir(parents=True, exist_ok=True)
    return LOADERS[name](data_folder(), cache)
