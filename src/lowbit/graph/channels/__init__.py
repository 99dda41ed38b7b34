"""Channels that can be removed from a graph: which of them stand and fall together, and taking them out for real.

May import what `lowbit.graph` may.
"""

from __future__ import annotations

from lowbit.graph.channels.groups import ChannelGroup, find_groups
from lowbit.graph.channels.removal import remove_channels
from lowbit.graph.channels.trace import Trace, trace_channels

__all__ = ["ChannelGroup", "Trace", "find_groups", "remove_channels", "trace_channels"]
