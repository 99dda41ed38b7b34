"""Settings of all tests: hypothesis draws the same examples every time, and costs are remembered for one run."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

settings.register_profile("lowbit", derandomize=True, deadline=None)
settings.load_profile("lowbit")

# What earlier runs measured, and what users have in their cache, decides nothing here; nor do tests leave anything.
_CACHE = tempfile.TemporaryDirectory(prefix="lowbit-test-cache-")
os.environ["LOWBIT_CACHE"] = _CACHE.name
