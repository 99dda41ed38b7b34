"""The pages name what the code has: rooms, formats, targets, keys of recipes and of preprocessing."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

import lowbit
from lowbit import Preprocessing, Recipe
from lowbit.data.pictures import PICTURE_SUFFIXES
from lowbit.exceptions import FormatError
from lowbit.exporters import FORMATS
from lowbit.formats import ELEMENTS, minimum_opset, parse_format
from lowbit.plan.diagnosis import CauseKind
from lowbit.plan.plan import EXECUTIONS, SitePlan
from lowbit.plan.recipe import CALIBRATIONS, METHODS
from lowbit.targets import TARGETS

ROOT = Path(__file__).parents[2]
PACKAGE = Path(lowbit.__path__[0])


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """Return the rows of all tables by the code in their first cell; the first of a name counts."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for name in re.findall(r"`([^`]+)`", cells[0]):
                found.setdefault(name, cells[1:])
    return found


def test_elements() -> None:
    table = rows(page("formats.md"))
    assert set(ELEMENTS) <= set(table)
    for name, element in ELEMENTS.items():
        bits, codes, *opsets = table[name]
        assert int(bits) == element.bits
        if element.kind == "integer":
            assert codes == f"{element.minimum:.0f} … {element.maximum:.0f}"
        elif element.kind == "codebook":
            assert codes == f"{len(element.levels)} levels{', learned' * element.learned}"
        else:
            assert float(codes.removeprefix("up to ±")) == pytest.approx(element.maximum, rel=1e-3)
        for opset, granularity in zip(opsets, ("", ":per-channel", ":block=32"), strict=True):
            try:
                assert int(opset) == minimum_opset(parse_format(name + granularity))
            except FormatError:  # an older onnx that cannot say this format at all
                assert int(opset) > 23


def test_targets() -> None:
    table = rows(page("targets.md"))
    assert set(table) == set(TARGETS)
    for name, target in TARGETS.items():
        assert table[name][1].startswith("saturate") is target.saturates
        assert (table[name][2] == "measured") is (target.costs is not None)


def test_recipe_keys_and_words() -> None:
    text = page("recipes.md")
    table = rows(text)
    assert {field.name for field in dataclasses.fields(Recipe)} <= set(table)
    assert {field.name for field in dataclasses.fields(SitePlan)} <= set(table)
    for word in (*METHODS, *CALIBRATIONS, *EXECUTIONS):
        assert f"`{word}`" in text


def test_recipe_defaults() -> None:
    table = rows(page("recipes.md"))
    for field in dataclasses.fields(Recipe):
        default = table[field.name][-1].strip("`")
        if field.default is None:
            assert default == ("no limit" if field.name.startswith(("min_", "max_", "time")) else "the target's")
        elif field.default == ():
            assert default == "none"
        else:
            assert default == str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def test_export_formats() -> None:
    table = rows(page("export.md"))
    for name, format_ in FORMATS.items():
        assert table[name][0] == ", ".join(f"`{suffix}`" for suffix in format_.suffixes)


def test_preprocessing_keys() -> None:
    text = page("data.md")
    assert {field.name for field in dataclasses.fields(Preprocessing)} <= set(rows(text))
    assert all(f"`{suffix}`" in text for suffix in PICTURE_SUFFIXES)


def test_causes() -> None:
    assert set(get_args(CauseKind)) <= set(rows(page("diagnose.md")))


def rooms() -> set[str]:
    entries = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in entries} - {"__init__", "__main__"}


def test_floors_are_the_enforced_ones() -> None:
    """The picture, the import-linter contract and the folders agree."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(c["layers"] for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    enforced = [layer.removeprefix("lowbit.") for layer in layers]
    assert set(enforced) == rooms()
    drawn = re.search(r"^```text\nsrc/lowbit/\n(.*?)^```", page("architecture.md"), re.MULTILINE | re.DOTALL)
    assert drawn is not None
    floors = re.findall(r"^  (\w+)(?:/|\.py) ", drawn[1], re.MULTILINE)
    assert floors == enforced[::-1]


def test_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md|toml))`", page("architecture.md"))
    assert len(named) > 10
    missing = [name for name in named if not any((base / name).exists() for base in (PACKAGE, ROOT))]
    assert not missing
