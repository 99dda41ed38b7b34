"""Runs a command as on an x86 processor that ends at AVX2, whose 8-bit products saturate.

A processor with VNNI multiplies 8-bit numbers exactly. What saturation does, and what an artifact costs where it is
possible, can still be tested and timed there: the command is told that the processor has no AVX-512, VNNI or AMX, and
its engine chooses the kernels of AVX2, at their full speed. Works with Linux on Intel processors since Ivy Bridge.

    python -m benchmarks.processor python -m benchmarks.latency …
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

__all__ = ["LimitError", "environment", "needed"]

_SOURCE = Path(__file__).with_name("without_vnni.c")
_HIDDEN = re.compile(r"\b(avx512\w*|avx_vnni\w*|amx_\w+|avx10\w*)\b ?")


class LimitError(Exception):
    """This machine cannot hide instruction sets from a process; the text says why."""


def needed() -> bool:
    """Whether this processor has instruction sets beyond AVX2 that would be hidden."""
    return platform.machine() == "x86_64" and bool(_HIDDEN.search(_cpuinfo()))


def environment(folder: Path) -> dict[str, str]:
    """Return the environment in which a process believes that its processor ends at AVX2.

    Args:
        folder: Where the library and the copy of /proc/cpuinfo are built; they have to stay while processes run.

    Raises:
        LimitError: There is no C compiler, or the processor or the kernel cannot do it.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise LimitError(f"only Linux on x86-64 can hide instruction sets, this is {platform.platform()}")
    if "cpuid_fault" not in _cpuinfo():
        raise LimitError("this processor or its virtual machine cannot make CPUID fault")
    if compiler is None:
        raise LimitError("there is no C compiler: install gcc")
    folder.mkdir(parents=True, exist_ok=True)
    library, cpuinfo = folder / "without_vnni.so", folder / "cpuinfo"
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        raise LimitError(f"{_SOURCE.name} does not compile: {built.stderr.strip()}")
    cpuinfo.write_text(_HIDDEN.sub("", _cpuinfo()), encoding="utf-8")
    limited = {**os.environ, "LD_PRELOAD": str(library), "WITHOUT_VNNI_CPUINFO": str(cpuinfo)}
    probe = subprocess.run(["true"], env=limited, capture_output=True, text=True, check=False)
    if probe.returncode:
        raise LimitError(probe.stderr.strip() or "the limited process does not start")
    return limited


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""
