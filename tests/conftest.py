"""Settings of all tests: hypothesis draws the same examples every time, and no example is failed for its time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("lowbit", derandomize=True, deadline=None)
settings.load_profile("lowbit")
