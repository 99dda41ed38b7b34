"""What `lowbit probe` said of a file before: read back without loading the model or anything that understands it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from typing import TYPE_CHECKING

from lowbit.exceptions import OutputError, TargetError
from lowbit.plan.cache import cache_folder
from lowbit.plan.cost_table import CostTable
from lowbit.plan.probed import OperatorCost, ProbeResult
from lowbit.plan.text_files import write_text
from lowbit.runtime.machine import this_machine
from lowbit.runtime.session import available_threads

if TYPE_CHECKING:
    from pathlib import Path

    from lowbit.targets import Target

__all__ = ["recall_probe", "remember_probe"]

_VERSION = 1


def recall_probe(model: Path, target: Target, *, threads: int, batch: int) -> ProbeResult | None:
    """Return what was measured of this very file with these settings, `None` if nothing was."""
    started = time.perf_counter()
    machine = this_machine(threads=threads, engine=target.engine)
    try:
        path = _path(model, target, threads, batch)
        data = json.loads(path.read_text(encoding="utf-8"))
        table = CostTable.from_dict(data["table"])
        operators = tuple(OperatorCost(**row) for row in data["operators"])
        saturates, version, warnings = bool(data["saturates"]), data["version"], tuple(data["warnings"])
    except (OSError, ValueError, KeyError, TypeError, TargetError):
        return None  # never measured, or by another version of lowbit
    if table.machine != machine or version != _VERSION:
        return None
    return ProbeResult(
        source=model.name,
        target=target,
        machine=machine,
        processors=available_threads(),
        saturates=saturates,
        operators=operators,
        table=table,
        cache=None,
        measured=0,
        seconds=time.perf_counter() - started,
        warnings=warnings,
    )


def remember_probe(model: Path, found: ProbeResult, *, batch: int) -> None:
    """Keep a result; where the cache cannot be written, the next run measures again."""
    data = {
        "version": _VERSION,
        "saturates": found.saturates,
        "warnings": list(found.warnings),
        "operators": [dataclasses.asdict(row) for row in found.operators],
        "table": found.table.to_dict(),
    }
    with contextlib.suppress(OSError, OutputError):
        path = _path(model, found.target, found.machine.threads, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(data))


def _path(model: Path, target: Target, threads: int, batch: int) -> Path:
    content = hashlib.sha256(model.read_bytes()).hexdigest()
    engine = this_machine(threads=threads, engine=target.engine).to_dict()
    identity = hashlib.sha256(f"{content} {target.name} {batch} {engine}".encode()).hexdigest()[:32]
    return cache_folder() / "probes" / f"{identity}.json"
