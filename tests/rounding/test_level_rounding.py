"""Codebooks beyond nearest: worse on the weights, better on the outputs, and the optimum where it is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lowbit.exceptions import FormatError
from lowbit.formats import ELEMENTS
from lowbit.rounding import gptq
from lowbit.rounding.compensate import CodeLimits
from lowbit.rounding.level_rounding import decode_levels, level_errors, round_to_levels

LEVELS = {name: np.array(ELEMENTS[name].levels) for name in ("nf4", "nf2", "apot4", "pot3")}


def alike(generator: np.random.Generator, depth: int, groups: int = 1) -> np.ndarray:
    mixing = generator.standard_normal((groups, depth, depth)) * np.geomspace(1, 0.05, depth)
    return mixing @ mixing.transpose(0, 2, 1) / depth


def nearest(weight: np.ndarray, levels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    table = np.broadcast_to(levels, (weight.shape[1], levels.shape[-1]))
    return np.abs((weight / scale)[..., None] - table).argmin(axis=2)


@pytest.mark.parametrize("kind", ["gptq", "compensated"])
@pytest.mark.parametrize("name", LEVELS)
def test_worse_on_weights_better_on_outputs(name: str, kind: str) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((48, 20)).astype(np.float32)
    scale = np.abs(weight).max(axis=0)
    H = alike(generator, 48)
    plain = nearest(weight, LEVELS[name], scale)
    found = round_to_levels(weight, LEVELS[name], scale, H, kind=kind)
    outputs = [level_errors(weight, codes, LEVELS[name], scale, H) for codes in (plain, found)]
    assert (outputs[1] <= outputs[0] * 1.05).all()
    assert outputs[1].sum() < 0.6 * outputs[0].sum()
    weights = [np.square(decode_levels(codes, LEVELS[name], scale) - weight).sum() for codes in (plain, found)]
    assert weights[1] > weights[0]


@pytest.mark.parametrize("kind", ["gptq", "compensated"])
def test_inputs_that_have_nothing_in_common_leave_nearest(kind: str) -> None:
    generator = np.random.default_rng(1)
    weight = generator.standard_normal((12, 7)).astype(np.float32)
    scale = np.abs(weight).max(axis=0)
    found = round_to_levels(weight, LEVELS["nf4"], scale, np.diag(generator.uniform(0.1, 2, 12))[None], kind=kind)
    np.testing.assert_array_equal(found, nearest(weight, LEVELS["nf4"], scale))


def test_near_the_best_of_all_codes() -> None:
    """Five weights of four levels: all 1024 combinations are tried."""
    generator = np.random.default_rng(2)
    levels, ratios, plain = LEVELS["nf2"], [], []
    for _ in range(12):
        weight = generator.standard_normal((5, 1)).astype(np.float32)
        scale = np.abs(weight).max(axis=0)
        H = alike(generator, 5)
        every = np.array(list(itertools.product(range(4), repeat=5)))
        wrong = levels[every] * scale - weight[:, 0]
        best = np.einsum("ck,kl,cl->c", wrong, H[0], wrong).min()
        found = round_to_levels(weight, levels, scale, H, damping=0.0)
        ratios.append(level_errors(weight, found, levels, scale, H)[0] / best)
        plain.append(level_errors(weight, nearest(weight, levels, scale), levels, scale, H)[0] / best)
    assert min(ratios) >= 1 - 1e-6
    assert np.median(ratios) < 1.3
    assert np.mean(ratios) < 0.5 * np.mean(plain)


def test_even_levels_are_a_grid() -> None:
    """What GPTQ finds on a grid cannot be better by much, nor worse."""
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((32, 16)).astype(np.float32)
    scale = np.abs(weight).max(axis=0) / 7
    H = alike(generator, 32)
    levels = np.arange(-8.0, 8.0)
    codes = gptq(weight, scale.astype(np.float32), H, CodeLimits(low=-8, high=7))
    ours = level_errors(weight, round_to_levels(weight, levels, scale, H), levels, scale, H).sum()
    theirs = level_errors(weight, codes + 8, levels, scale, H).sum()
    assert ours <= theirs * 1.02


def test_own_levels_blocks_and_groups() -> None:
    generator = np.random.default_rng(4)
    weight = generator.standard_normal((16, 6)).astype(np.float32)
    own = np.sort(generator.standard_normal((6, 8)), axis=1)
    scale = generator.uniform(0.5, 2, (4, 6))
    H = alike(generator, 16, groups=2)
    found = round_to_levels(weight, own, scale, H)
    whole = np.repeat(scale, 4, axis=0)
    for group in range(2):
        part = slice(3 * group, 3 * group + 3)
        alone = round_to_levels(weight[:, part], own[part], whole[:, part], H[group : group + 1])
        np.testing.assert_array_equal(found[:, part], alone)


def test_shapes_that_do_not_match() -> None:
    weight = np.zeros((4, 3), np.float32)
    with pytest.raises(FormatError, match="second moments"):
        round_to_levels(weight, np.zeros(4), np.ones(3), np.eye(5)[None])
    with pytest.raises(FormatError, match="no fraction"):
        round_to_levels(weight, np.zeros(4), np.ones(3), np.eye(4)[None], damping=2.0)
