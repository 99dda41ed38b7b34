"""Plans: read back exactly as they were written, and never half-written."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowbit.exceptions import OutputError, RecipeError
from lowbit.plan.files import read_plan, write_plan
from lowbit.plan.packed import pack_floats, unpack_floats
from lowbit.plan.plan import EXECUTIONS, ActivationPlan, Plan, SitePlan
from lowbit.plan.text_files import write_text

if TYPE_CHECKING:
    from pathlib import Path

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
# What a scale is: a float32, held as the float64 that equals it.
scales = st.floats(2.0**-126, 2.0**100, width=32)
sites = st.builds(
    SitePlan,
    node=words,
    op_type=st.sampled_from(["Conv", "MatMul"]),
    execution=st.sampled_from(EXECUTIONS),
    reason=words,
    weights=st.none() | st.sampled_from(["int8:per-channel", "int4:block=32"]),
    activations=st.none() | st.just("uint8"),
    predicted_float_us=st.none() | numbers,
    predicted_us=st.none() | numbers,
    decode=st.none() | st.sampled_from(["load", "kernel"]),
    input_mean=st.none() | hnp.arrays(np.float32, st.integers(0, 5)).map(pack_floats),
    notes=st.lists(words, max_size=3).map(tuple),
)
activations = st.builds(
    ActivationPlan,
    tensor=words,
    format=st.just("uint8"),
    scale=scales,
    zero_point=st.integers(0, 255),
    low=numbers,
    high=numbers,
    reason=words,
)
plans = st.builds(
    Plan,
    target=words,
    method=words,
    model_sha256=words,
    sites=st.lists(sites, max_size=4).map(tuple),
    activations=st.lists(activations, max_size=4).map(tuple),
    options=st.dictionaries(words, words | numbers | st.integers() | st.booleans(), max_size=3),
    warnings=st.lists(words, max_size=2).map(tuple),
)


@settings(max_examples=60)
@given(plan=plans)
def test_plans_survive_their_file_to_the_last_bit(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    write_plan(plan, path)
    again = read_plan(path)
    assert again == plan
    for one, two in zip(plan.activations, again.activations, strict=True):
        assert (one.scale.hex(), one.low.hex(), one.high.hex()) == (two.scale.hex(), two.low.hex(), two.high.hex())
        assert np.float32(two.scale).tobytes() == np.float32(one.scale).tobytes()


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_packed_floats_are_exact(array: np.ndarray) -> None:
    again = unpack_floats(pack_floats(array))
    assert again.dtype == np.float32
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize("text", ["not base64!", "AAA", "AAAA", "ÄÖÜ="])
def test_unreadable_arrays_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="unreadable array"):
        unpack_floats(text)


SITE = {"node": "c", "op_type": "Conv", "execution": "static", "reason": "why"}
GOOD: dict[str, Any] = {"version": 1, "target": "t", "method": "static", "model_sha256": "0", "sites": [SITE]}


def test_the_smallest_plan() -> None:
    plan = Plan.from_dict(GOOD)
    assert plan.site("c").execution == "static"
    with pytest.raises(KeyError):
        plan.site("d")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"sites": None}, "malformed"),
        ({"sites": [{"node": "c"}]}, "malformed"),
        ({"sites": [{**SITE, "colour": "red"}]}, "colour"),
        ({"sites": [{**SITE, "execution": "magic"}]}, "magic"),
        ({"sites": ["c"]}, "malformed"),
        ({"activations": [{"tensor": "x"}]}, "malformed"),
        ({"options": 3}, "malformed"),
    ],
)
def test_malformed_plans_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Plan.from_dict({**GOOD, **change})


@pytest.mark.parametrize("key", ["target", "method", "model_sha256", "sites"])
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        Plan.from_dict({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize("content", ["", "[]", "words", "a: ["])
def test_files_that_are_no_plans_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(content)
    with pytest.raises(RecipeError):
        read_plan(tmp_path / "plan.yaml")


def test_plans_are_readable(tmp_path: Path) -> None:
    """Defaults are left out, order is kept, and what is written is plain YAML."""
    plan = dataclasses.replace(Plan.from_dict(GOOD), warnings=("100 Bilder wären besser",))
    write_plan(plan, tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)) == [
        "version",
        "target",
        "method",
        "model_sha256",
        "sites",
        "activations",
        "options",
        "warnings",
    ]
    assert yaml.safe_load(text)["sites"] == [SITE]
    assert "wären" in text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.yaml"
    write_text(path, "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["plan.yaml"], "a temporary file is left"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_into_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "missing" / "plan.yaml", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert not list((tmp_path / "folder").iterdir())
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]
