"""WordPiece, the tokenizer of BERT models, as described by Wu et al. 2016 (arXiv:1609.08144) and in BERT's release."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.zoo.case import Feed

__all__ = ["encode", "tokenize"]


def _words(text: str) -> list[str]:
    """Lower the case, drop accents, and cut at white space and around punctuation."""
    folded = unicodedata.normalize("NFD", text.lower())
    spaced: list[str] = []
    for character in folded:
        category = unicodedata.category(character)
        if category == "Mn" or (category.startswith("C") and not character.isspace()):
            continue
        # BERT takes all non-alphanumeric ASCII as punctuation, the symbols $+<=>^`|~ too.
        symbol = category.startswith("P") or (
            character.isascii() and not character.isalnum() and character.isprintable()
        )
        spaced.append(f" {character} " if symbol and not character.isspace() else character)
    return "".join(spaced).split()


def tokenize(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the token ids of a text, without the special tokens: per word the longest known prefix, repeatedly."""
    ids: list[int] = []
    for word in _words(text):
        pieces: list[int] = []
        start = 0
        while start < len(word):
            end = len(word)
            while end > start and (word[start:end] if start == 0 else f"##{word[start:end]}") not in vocabulary:
                end -= 1
            if end == start:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[word[start:end] if start == 0 else f"##{word[start:end]}"])
            start = end
        ids += pieces
    return ids


def encode(text: str, vocabulary: Mapping[str, int], *, length: int) -> Feed:
    """Return the feed of a BERT model, cut or padded to `length` tokens.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids`, each `[1, length] int64`.
    """
    ids = [vocabulary["[CLS]"], *tokenize(text, vocabulary)[: length - 2], vocabulary["[SEP]"]]
    padded = np.full((1, length), vocabulary["[PAD]"], np.int64)
    padded[0, : len(ids)] = ids
    mask = np.zeros((1, length), np.int64)
    mask[0, : len(ids)] = 1
    return {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros((1, length), np.int64)}
