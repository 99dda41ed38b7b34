"""What machine this is, as far as the speed of kernels depends on it."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowbit.runtime.engines import version_of

__all__ = ["Machine", "instruction_sets", "this_machine"]

# What 8-bit and float kernels are chosen by, as /proc/cpuinfo writes it on x86 and on arm64.
_RELEVANT = (
    "sse4_1",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A processor with an engine on it.

    Attributes:
        engine: Engine and version, e.g. `onnxruntime 1.32.0`.
        processor: Name of the processor, as the system gives it.
        instruction_sets: The instruction sets that kernels are chosen by.
        threads: Threads that the engine was given.
    """

    engine: str
    processor: str
    instruction_sets: tuple[str, ...]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {**asdict(self), "instruction_sets": list(self.instruction_sets)}

    def differences(self, other: Machine) -> tuple[str, ...]:
        """Return in words what keeps costs measured on one from holding on the other; nothing if they hold."""
        found = []
        for label, one, two in (
            ("engine", self.engine, other.engine),
            ("processor", self.processor, other.processor),
            ("instruction sets", " ".join(self.instruction_sets), " ".join(other.instruction_sets)),
            ("threads", str(self.threads), str(other.threads)),
        ):
            if one != two:
                found.append(f"{label}: {one} there, {two} here")
        return tuple(found)


def this_machine(*, threads: int = 1, engine: str = "onnxruntime") -> Machine:
    """Return what this process runs on.

    Args:
        threads: Threads that the engine is given.
        engine: The engine.

    Raises:
        EngineError: The engine is not installed.
    """
    return Machine(
        engine=version_of(engine), processor=_processor(), instruction_sets=instruction_sets(), threads=threads
    )


def instruction_sets(cpuinfo: str | None = None) -> tuple[str, ...]:
    """Return the instruction sets of this processor that matter to kernels; empty where they cannot be read."""
    flags = set(_field(("flags", "Features"), cpuinfo).split())
    return tuple(flag for flag in _RELEVANT if flag in flags)


def _processor() -> str:
    return _field(("model name", "Model", "Hardware"), None) or platform.processor() or platform.machine()


def _field(names: tuple[str, ...], cpuinfo: str | None) -> str:
    """Return the first of the named fields of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    text = cpuinfo if cpuinfo is not None else (path.read_text(encoding="utf-8") if path.exists() else "")
    lines = [line.partition(":") for line in text.splitlines()]
    for name in names:
        for label, _, value in lines:
            if label.strip() == name:
                return value.strip()
    return ""
