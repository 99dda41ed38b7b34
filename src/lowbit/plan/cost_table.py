"""Measured costs: what each operator takes on one machine, float and in every format, kept in a file.

A table holds nanoseconds by operator and execution (see `lowbit.plan.cost_keys`), and by tensor shape for conversions
between float and codes. It belongs to one engine version, processor and number of threads, and says so; it can be
copied to another computer, where a plan is then made for the machine that the table is from.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowbit.exceptions import TargetError
from lowbit.plan.text_files import write_text
from lowbit.runtime.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TABLE_VERSION", "CostTable", "merge", "read_table", "write_table"]

TABLE_VERSION = 1
_KIND = "lowbit costs"


@dataclass(frozen=True, slots=True, kw_only=True)
class CostTable:
    """Costs measured on one machine, in nanoseconds.

    Attributes:
        machine: Where they were measured.
        operators: By operator (`site_key`), the time of each execution: `float`, `static`, `dynamic`, `weight-only`.
        conversions: By tensor (`conversion_key`), the time of `quantize` and `dequantize`, layout changes included.
        spread: Largest distance between the quartiles of repeated measurements over their median.
    """

    machine: Machine
    operators: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    conversions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    spread: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; rounded to a nanosecond."""

        def rounded(table: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
            return {
                key: {kind: round(ns) for kind, ns in sorted(entry.items())} for key, entry in sorted(table.items())
            }

        return {
            "kind": _KIND,
            "version": TABLE_VERSION,
            "unit": "ns",
            "machine": self.machine.to_dict(),
            "spread": round(self.spread, 4),
            "operators": rounded(self.operators),
            "conversions": rounded(self.conversions),
        }

    @classmethod
    def from_dict(cls, data: Any) -> CostTable:
        """Build a table from what `to_dict` returned.

        Raises:
            TargetError: It is no table of costs, or one of another version.
        """
        if not isinstance(data, dict) or data.get("kind") != _KIND:
            raise TargetError("this is no file of costs", remedy="write one with `lowbit probe MODEL --save FILE`")
        if data.get("version") != TABLE_VERSION:
            raise TargetError(
                f"the costs have version {data.get('version')!r}",
                cause=f"this lowbit reads version {TABLE_VERSION}",
                remedy="measure again with `lowbit probe`",
            )
        try:
            return cls(
                machine=_machine(data["machine"]),
                operators={key: _entry(entry) for key, entry in data["operators"].items()},
                conversions={key: _entry(entry) for key, entry in data["conversions"].items()},
                spread=_number(data["spread"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise TargetError(
                "the file of costs is malformed", cause=str(error), remedy="measure again with `lowbit probe`"
            ) from error


def merge(old: CostTable, new: CostTable) -> CostTable:
    """Return `old` with everything that `new` knows in its place.

    Raises:
        ValueError: They are from different machines.
    """
    if old.machine != new.machine:
        raise ValueError("costs of different machines cannot be merged")

    def joined(one: Mapping[str, Mapping[str, float]], two: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
        return {key: {**one.get(key, {}), **two.get(key, {})} for key in (*one, *two)}

    return dataclasses.replace(
        old,
        operators=joined(old.operators, new.operators),
        conversions=joined(old.conversions, new.conversions),
        spread=max(old.spread, new.spread),
    )


def read_table(path: str | Path) -> CostTable:
    """Read a table from a JSON file.

    Raises:
        TargetError: The file cannot be read or is no table of costs.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(f"the costs '{path}' cannot be read", cause=str(error)) from error
    except (ValueError, RecursionError) as error:
        raise TargetError(f"the costs '{path}' are not JSON", cause=str(error)) from error
    return CostTable.from_dict(data)


def write_table(table: CostTable, path: str | Path) -> None:
    """Write a table as JSON, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    write_text(path, json.dumps(table.to_dict(), indent=1, ensure_ascii=False) + "\n")


def _machine(data: Mapping[str, Any]) -> Machine:
    machine = Machine(**{**data, "instruction_sets": tuple(data["instruction_sets"])})
    texts = (machine.engine, machine.processor, *machine.instruction_sets)
    if not isinstance(data["instruction_sets"], list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{data} names no machine")
    if type(machine.threads) is not int or machine.threads < 1:
        raise ValueError(f"threads are {machine.threads!r}")
    return machine


def _entry(entry: Mapping[str, Any]) -> dict[str, float]:
    return {str(kind): _number(ns) for kind, ns in entry.items()}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    number = float(value)
    if not math.isfinite(number) or number < 0.0:
        raise ValueError(f"{value!r} is no positive number")
    return number
