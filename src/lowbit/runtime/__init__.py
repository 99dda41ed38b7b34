"""Engines: load an artifact, run it, time it, weigh it, and read back what it fused.

May import `lowbit.exceptions` and the rooms below it (`formats`, `statistics`, `rounding`, `graph`, `data`).
"""

from lowbit.runtime.session import Session, engine_version, open_session

__all__ = ["Session", "engine_version", "open_session"]
