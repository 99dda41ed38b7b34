"""The targets by name, and which of them this machine is."""

from __future__ import annotations

import platform
from pathlib import Path

from lowbit.exceptions import TargetError
from lowbit.targets import (
    elsewhere,
    litert,
    onnxruntime_arm64,
    onnxruntime_x86_avx2,
    onnxruntime_x86_vnni,
    openvino_x86,
)
from lowbit.targets.target import Target

__all__ = ["TARGETS", "find_target", "host_target"]

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        onnxruntime_x86_avx2.TARGET,
        onnxruntime_x86_vnni.TARGET,
        onnxruntime_arm64.TARGET,
        openvino_x86.AVX2,
        openvino_x86.VNNI,
        *elsewhere.TARGETS,
        litert.TARGET,
    )
}


def find_target(name: str | Target) -> Target:
    """Return the target called `name`; `host` is the one that fits this machine.

    Raises:
        TargetError: There is no such target, or none fits this machine.
    """
    if isinstance(name, Target):
        return name
    if name == "host":
        return host_target()
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}", remedy=f"use one of host, {', '.join(TARGETS)}")
    return TARGETS[name]


def host_target(cpuinfo: str | None = None, machine: str | None = None) -> Target:
    """Return the target that this machine is.

    Args:
        cpuinfo: Text of `/proc/cpuinfo`; read from this machine by default.
        machine: Processor architecture as `platform.machine` names it.

    Raises:
        TargetError: The architecture has no target yet.
    """
    machine = (machine or platform.machine()).lower()
    if machine in {"arm64", "aarch64"}:
        features = _processor_flags(cpuinfo)
        if "i8mm" in features:
            return elsewhere.ARM64_I8MM
        return elsewhere.ARM64_DOTPROD if "asimddp" in features else onnxruntime_arm64.TARGET
    if machine not in {"x86_64", "amd64"}:
        raise TargetError(
            f"no target fits this processor ({machine})", remedy=f"name the device's: {', '.join(TARGETS)}"
        )
    flags = _processor_flags(cpuinfo)
    # Without the flags (not Linux) the saturating target is the safe guess: its files are exact everywhere.
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return onnxruntime_x86_vnni.TARGET
    return onnxruntime_x86_avx2.TARGET


def _processor_flags(cpuinfo: str | None) -> frozenset[str]:
    """Return the instruction sets of the first processor, an empty set where they cannot be read."""
    path = Path("/proc/cpuinfo")
    text = cpuinfo if cpuinfo is not None else (path.read_text(encoding="utf-8") if path.exists() else "")
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
