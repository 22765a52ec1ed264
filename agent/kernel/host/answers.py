"""The way back for answers to clients who come in by a former uplink.

wireguard-go answers by the interface that a client's last packet came in on, whatever the routes say. Once the default
route has moved to another interface nothing leads to the client from there, and Linux takes him for a neighbour: his
tunnel is dead although his packets arrive. So while the main table has a default route, those that it had by other
interfaces are kept in the table `default`, which Linux asks after `main`: it finds them only for packets that are bound
to such an interface and would be lost without them. No rule is needed, and nothing else on the host goes another way.

Owns the routes of protocol PROTOCOL in that table. Remembers which gateway each interface had; after a restart that
stands in the routes themselves. Called by the writer's thread, in its network namespace.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.kernel.host.interfaces import explained
from agent.kernel.host.routes import MAIN_TABLE, ONLINK, Route, read_defaults

TABLE = 253  # RT_TABLE_DEFAULT
PROTOCOL = 87  # RTPROT of ours; nobody else's in linux/rtnetlink.h and iproute2's rt_protos


@dataclass(frozen=True, slots=True)
class Way:
    """A default route by one interface. `gateway`: "" = straight out of it, as by a modem."""

    interface: int  # index
    gateway: str
    onlink: bool


class Answers:
    def __init__(self) -> None:
        self._last: dict[int, Way] = {}  # by interface: what it last had

    def keep(self, wanted: bool) -> None:
        """Makes the routes what they should be. `wanted`: does anybody answer by interface here? Raises KernelError."""
        main, kept = _read()
        for way in (*kept, *main):
            self._last[way.interface] = way
        current = {way.interface for way in main}
        former = {way for index, way in self._last.items() if index not in current} if wanted and main else set()
        if former == kept:
            return
        with explained("cannot keep the way back by a former uplink"), IPRoute() as route:
            for way in kept - former:
                with _if_there():
                    route.route("del", **_spelled(way))
            for way in former - kept:
                try:
                    route.route("add", **_spelled(way))
                except NetlinkError as error:
                    if error.code not in (errno.ENODEV, errno.ENETUNREACH, errno.ENETDOWN, errno.EINVAL):
                        raise
                    del self._last[way.interface]  # the interface is gone or down, or its gateway no neighbour any more


def _read() -> tuple[set[Way], set[Way]]:
    """The best default route of each interface in the main table, and ours in the other one."""
    best: dict[int, tuple[int, Way]] = {}
    ours: set[Way] = set()
    for one in read_defaults(MAIN_TABLE, TABLE):
        for way in _ways(one):
            if one.table == MAIN_TABLE:
                ranked = one.priority, way
                best[way.interface] = min(best.get(way.interface, ranked), ranked, key=lambda pair: pair[0])
            elif one.protocol == PROTOCOL:
                ours.add(way)
    return {way for _, way in best.values()}, ours


def _ways(route: Route) -> Iterator[Way]:
    for hop in route.hops:
        if hop.interface and hop.is_told:
            yield Way(hop.interface, str(hop.gateway or ""), hop.onlink)


def _spelled(way: Way) -> dict[str, Any]:
    spelled: dict[str, Any] = {"dst": "0.0.0.0/0", "table": TABLE, "proto": PROTOCOL, "oif": way.interface}
    spelled["priority"] = way.interface  # several interfaces may have had one
    if way.gateway:
        spelled |= {"gateway": way.gateway, "flags": ONLINK if way.onlink else 0}
    else:
        spelled["scope"] = 253  # RT_SCOPE_LINK
    return spelled


@contextmanager
def _if_there() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (errno.ESRCH, errno.ENODEV):
            raise
