"""Which WireGuard links are ours, also when somebody has written over the sign that they carry.

A link is ours by its alias; by its index, when it carried that alias a moment ago (monitoring writes descriptions
there, and a peer of ours lives on behind them); or by the private key of the server that it is to be, after a restart.
A stranger's link of the same name has neither. One Ownership for the whole agent, shared by `links` and `peers` of each
thread: it is only ever added to by one of them.
"""

from __future__ import annotations

import socket

from agent.kernel.host.interfaces import WIREGUARD_KINDS, Interface


class Ownership:
    def __init__(self) -> None:
        self._index: dict[str, int] = {}  # of links of ours, by the name that they had when they were last seen

    def owns(self, interface: Interface) -> bool:
        if interface.ours:
            self._index[interface.name] = interface.index
        return interface.kind in WIREGUARD_KINDS and interface.index in self._index.values()

    def learn(self, interface: Interface) -> None:
        """It has the private key of a server of ours."""
        self._index[interface.name] = interface.index

    def forget(self, name: str) -> None:
        """It is removed."""
        self._index.pop(name, None)

    def elsewhere(self, name: str) -> str:
        """The name under which a link of ours lives on that had this one; "" = it is gone."""
        try:
            return socket.if_indextoname(self._index[name])
        except (KeyError, OSError):
            return ""
