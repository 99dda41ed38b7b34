"""Groups of channels: those of the same weights, of which any may be removed while the others stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.graph.channels.trace import Role, Trace

__all__ = ["ChannelGroup", "find_groups"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelGroup:
    """Units that can be removed one by one; a unit is a channel, or several that stand and fall together.

    Attributes:
        name: The operator that makes the channels, the first of them if there are several.
        makers: All operators that make them.
        units: `[U]` int64, the channel that stands for each unit.
        members: For an initializer and an axis, `[U, M]` int64: where along the axis the M members of each unit lie.
        roles: What the initializer does along that axis.
        reason: Why none of the units can be removed; empty if they can.
    """

    name: str
    makers: tuple[str, ...]
    units: NDArray[np.int64]
    members: dict[tuple[str, int], NDArray[np.int64]]
    roles: dict[tuple[str, int], Role]
    reason: str

    @property
    def width(self) -> int:
        """Channels of a unit, in the weight where they are fewest."""
        return min(int(places.shape[1]) for places in self.members.values())


def find_groups(trace: Trace) -> list[ChannelGroup]:
    """Return the groups of a graph in its order, those that have to stay included."""
    places: dict[int, dict[tuple[str, int], list[int]]] = {}
    for key, channels in trace.parameters.items():
        for place, root in enumerate(trace.channels.roots(channels).tolist()):
            places.setdefault(root, {}).setdefault(key, []).append(place)
    consumers: dict[str, list[str]] = {}
    for node in trace.model.graph:
        for value in node.inputs:
            if value is not None:
                consumers.setdefault(str(value.name), []).append(str(node.name))
    alike: dict[tuple[object, ...], list[int]] = {}
    for root, found in places.items():
        signature = (tuple(sorted((key, len(rows)) for key, rows in found.items())), trace.channels.reason(root))
        alike.setdefault(signature, []).append(root)
    groups = []
    for (_, reason), roots in alike.items():
        members = {key: np.array([places[root][key] for root in roots], np.int64) for key in places[roots[0]]}
        roles = {key: trace.roles[key] for key in members}
        made = [name for (name, _), role in roles.items() if role == "makes"]
        if not made:
            continue
        makers = tuple(dict.fromkeys(node for name in made for node in consumers.get(name, ())))
        if not reason and all(role != "reads" for role in roles.values()):
            reason = "nothing that is known reads it"
        groups.append(
            ChannelGroup(
                name=makers[0],
                makers=makers,
                units=np.array(roots, np.int64),
                members=members,
                roles=roles,
                reason=str(reason),
            )
        )
    order = {str(node.name): number for number, node in enumerate(trace.model.graph)}
    return sorted(groups, key=lambda group: (order[group.name], int(group.units[0])))
