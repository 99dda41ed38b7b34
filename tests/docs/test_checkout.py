"""What a clone of the repository, and so a wheel built from it, contains."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_no_file_of_the_package_is_ignored() -> None:
    """An ignored file is neither in a clone nor in a wheel, while everything works where it was written."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    command = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--", "src"]
    ignored = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [name for name in ignored if "__pycache__" not in name] == []
