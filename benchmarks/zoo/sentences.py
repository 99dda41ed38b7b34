"""Labelled sentences: the rated snippets of the VADER paper, which its source distribution carries (MIT licence)."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.zoo.case import ZooError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["load_polarity"]

SDIST = "vaderSentiment-3.3.2.tar.gz"
INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def load_polarity(cache: Path, *, per_source: int, threshold: float) -> tuple[list[str], list[int]]:
    """Return sentences of four sources and whether people found them negative (0) or positive (1).

    Film reviews, product reviews, newspaper editorials and tweets, each rated by about 20 people from -4 to 4
    (Hutto and Gilbert, ICWSM 2014).

    Args:
        cache: Folder that holds the source distribution.
        per_source: Sentences drawn of each source, half of each polarity.
        threshold: Smallest absolute mean rating; what lies between is left out as neutral.

    Returns:
        `4 * per_source` sentences, shuffled, and their labels.

    Raises:
        ZooError: The source distribution is not in the cache.
    """
    sdist = cache / SDIST
    if not sdist.exists():
        command = f"pip download --no-deps --no-build-isolation --no-binary :all: vaderSentiment==3.3.2 -d {cache}"
        raise ZooError(f"{sdist} is missing; run: {command}")
    rng = np.random.default_rng(0)
    drawn: list[tuple[str, int]] = []
    with tarfile.open(sdist) as outer:
        inner = outer.extractfile(f"{SDIST.removesuffix('.tar.gz')}/{INNER}")
        if inner is None:
            raise ZooError(f"{sdist} has no {INNER}")
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            for name in FILES:
                member = archive.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                if member is None:
                    raise ZooError(f"{sdist} has no {name}")
                rows = [line.split("\t", 2) for line in member.read().decode("utf-8", "replace").splitlines()]
                for label, sign in ((0, -1.0), (1, 1.0)):
                    chosen = [row[2].strip() for row in rows if len(row) == 3 and sign * float(row[1]) >= threshold]
                    order = rng.permutation(len(chosen))[: per_source // 2]
                    drawn += [(chosen[i], label) for i in order]
    drawn = [drawn[i] for i in rng.permutation(len(drawn))]
    return [text for text, _ in drawn], [label for _, label in drawn]
