"""Measured costs on disk: what is read is what was written, and anything else is one clear error."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit.exceptions import OutputError, TargetError
from lowbit.plan.cost_table import TABLE_VERSION, CostTable, merge, read_table, write_table
from lowbit.runtime.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = Machine(engine="onnxruntime 1.30.0", processor="Xeon® 2.7 GHz", instruction_sets=("avx2", "fma"), threads=2)
TABLE = CostTable(
    machine=HERE,
    operators={
        "Conv group=32 (1x32x56x56, 32x1x3x3)+Clip": {"float": 1234.0, "static": 987.0},
        "MatMul (1x8, 8x8)+bias": {"float": 10.0, "static": 0.0, "dynamic": 30.0},
    },
    conversions={"1x32x56x56 inside": {"quantize": 500.0, "dequantize": 400.0}},
    spread=0.0312,
)

MACHINES = st.builds(
    Machine,
    engine=st.text(max_size=20),
    processor=st.text(max_size=20),
    instruction_sets=st.lists(st.text(max_size=8), max_size=4).map(tuple),
    threads=st.integers(1, 256),
)
# Files hold whole nanoseconds.
ENTRIES = st.dictionaries(
    st.text(max_size=30),
    st.dictionaries(st.sampled_from(["float", "static", "dynamic"]), st.integers(0, 10**12).map(float), max_size=3),
    max_size=5,
)


def tables(machines: st.SearchStrategy[Machine] = MACHINES) -> st.SearchStrategy[CostTable]:
    return st.builds(
        CostTable,
        machine=machines,
        operators=ENTRIES,
        conversions=ENTRIES,
        spread=st.integers(0, 10_000).map(lambda value: value / 10_000),
    )


@given(tables())
def test_a_table_survives_json(table: CostTable) -> None:
    text = json.dumps(table.to_dict(), ensure_ascii=False)
    assert CostTable.from_dict(json.loads(text)) == table


def test_a_table_survives_a_file_and_replaces_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text("older")
    write_table(TABLE, path)
    assert read_table(path) == read_table(str(path)) == TABLE
    assert [item.name for item in tmp_path.iterdir()] == ["costs.json"]
    # It is meant to be read by people as well.
    assert "Xeon® 2.7 GHz" in path.read_text(encoding="utf-8")
    assert '"unit": "ns"' in path.read_text(encoding="utf-8")


def test_the_same_costs_give_the_same_bytes(tmp_path: Path) -> None:
    turned = dataclasses.replace(
        TABLE,
        operators={key: dict(reversed(entry.items())) for key, entry in reversed(TABLE.operators.items())},
    )
    write_table(TABLE, tmp_path / "one.json")
    write_table(turned, tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_times_are_rounded_to_a_nanosecond() -> None:
    table = CostTable(machine=HERE, operators={"Conv": {"float": 12.499, "static": 0.4}}, spread=0.123456)
    again = CostTable.from_dict(table.to_dict())
    assert again.operators == {"Conv": {"float": 12.0, "static": 0.0}}
    assert again.spread == 0.1235


def test_where_nothing_can_be_written_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_table(TABLE, tmp_path / "missing" / "costs.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_table(TABLE, tmp_path / "folder")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "are not JSON"),
        (b"{", "are not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00", "cannot be read"),
        (b"[]", "no file of costs"),
        (b"null", "no file of costs"),
        (b'"lowbit costs"', "no file of costs"),
        (b"{}", "no file of costs"),
        (b'{"kind": "lowbit plan", "version": 1}', "no file of costs"),
        (b'{"kind": "lowbit costs"}', "version None"),
        (b'{"kind": "lowbit costs", "version": 99}', "version 99"),
        (b'{"kind": "lowbit costs", "version": 1}', "malformed"),
        (b"[" * 200_000, "are not JSON"),
        (b"1" * 10_000, "are not JSON"),
    ],
)
def test_a_file_that_holds_no_costs_is_one_typed_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=said) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder_are_typed_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(TargetError, match="cannot be read"):
            read_table(path)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested dictionaries and lists."""
    yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*path, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from places(value, (*path, index))


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = data.copy()
    copy[path[0]] = replaced(data[path[0]], path[1:], value)
    return copy


WRONG = (None, [], {}, "", "text", "12", [1], {"a": 1}, -1, 2.5, True, math.nan, math.inf, -math.inf, 10**400)


@pytest.mark.parametrize("place", list(places(TABLE.to_dict())), ids=lambda place: "/".join(map(str, place)) or "root")
def test_whatever_stands_anywhere_in_a_file_is_costs_or_one_typed_error(place: tuple[Any, ...]) -> None:
    refused = 0
    for value in WRONG:
        data = json.loads(json.dumps(replaced(TABLE.to_dict(), place, value)))
        try:
            table = CostTable.from_dict(data)
        except TargetError:
            refused += 1
            continue
        # What is read can be planned with, compared and written again.
        times = [
            ns for part in (table.operators, table.conversions) for entry in part.values() for ns in entry.values()
        ]
        assert all(type(ns) is float and math.isfinite(ns) and ns >= 0 for ns in (*times, table.spread))
        assert table.machine.to_dict() == CostTable.from_dict(table.to_dict()).machine.to_dict()
        assert type(table.machine.threads) is int
        assert all(type(text) is str for text in (table.machine.engine, table.machine.processor))
        assert all(type(text) is str for text in table.machine.instruction_sets)
    # The unit is for people only; everywhere else most of this is wrong.
    assert refused >= len(WRONG) // 2 or place == ("unit",)


@pytest.mark.parametrize("place", [("machine",), ("operators",), ("conversions",), ("spread",), ("machine", "threads")])
def test_what_is_missing_is_named(place: tuple[str, ...]) -> None:
    data = TABLE.to_dict()
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    with pytest.raises(TargetError, match=place[-1]):
        CostTable.from_dict(data)


def test_a_table_of_another_version_says_what_to_do() -> None:
    with pytest.raises(TargetError, match=f"reads version {TABLE_VERSION}.*lowbit probe"):
        CostTable.from_dict({**TABLE.to_dict(), "version": TABLE_VERSION + 1})


@given(tables(st.just(HERE)), tables(st.just(HERE)))
def test_merging_keeps_all_and_the_new_wins(old: CostTable, new: CostTable) -> None:
    both = merge(old, new)
    for name in ("operators", "conversions"):
        one, two, joined = getattr(old, name), getattr(new, name), getattr(both, name)
        assert set(joined) == set(one) | set(two)
        for key, entry in joined.items():
            assert set(entry) == set(one.get(key, {})) | set(two.get(key, {}))
            for kind, ns in entry.items():
                assert ns == (two if kind in two.get(key, {}) else one)[key][kind]
    assert both.spread == max(old.spread, new.spread)
    assert both.machine == HERE


@given(tables(st.just(HERE)), tables(st.just(HERE)), tables(st.just(HERE)))
def test_merging_is_associative_and_idempotent(one: CostTable, two: CostTable, three: CostTable) -> None:
    assert merge(merge(one, two), three) == merge(one, merge(two, three))
    assert merge(one, one) == one
    assert merge(CostTable(machine=HERE), one) == one == merge(one, CostTable(machine=HERE))


def test_costs_of_different_machines_are_not_merged() -> None:
    other = dataclasses.replace(TABLE, machine=dataclasses.replace(HERE, threads=1))
    with pytest.raises(ValueError, match="different machines"):
        merge(TABLE, other)
