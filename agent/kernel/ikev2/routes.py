"""The routes to each client who is in by IKEv2: its addresses, by the responder's device, while its session lasts.

More special than the route to the server's network, so an account's packets go where it is: by IKEv2 while it is in
by that, else by WireGuard. charon would make such routes only in a table of its own, not for the kernel's XFRM
interface, and not under the name that the device has here.

charon tells of each session that comes and goes; counted by address, for the session of a second device of an account
comes before the first one ends. What was missed while nobody listened is made up for by its list, at each beginning;
and there is another one every minute, for Linux drops routes by itself (those of IPv6, where a device has it no more).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, if_nametoindex
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import KernelError
from agent.kernel.host.interfaces import explained
from agent.kernel.ikev2 import programs
from agent.kernel.ikev2.charon import Charon, addresses_of
from agent.kernel.ikev2.files import Paths
from agent.model import IKEV2_DEVICE, Address

log = logging.getLogger("agent.ikev2")

AGAIN_SECONDS = 0.3
LISTEN_SECONDS = 1.0  # how late it notices that it shall stop
MISTRUST_SECONDS = 60.0
# linux/rtnetlink.h; strongSwan's own number, for who reads `ip route`
TABLE_MAIN, SCOPE_UNIVERSE, SCOPE_LINK, PROTOCOL = 254, 0, 253, 220
FAMILIES = {4: AF_INET, 6: AF_INET6}  # by version of an address


def keep(folder: Path, stop: threading.Event) -> None:
    """Until `stop`; on a thread of its own."""
    paths, said = Paths(folder), ""
    while not stop.wait(AGAIN_SECONDS):
        charon = programs.remembered(paths.running).get("charon")
        if charon is None or not charon.is_alive():
            continue
        try:
            _follow(Charon(paths.control), stop)
            said = ""
        except KernelError as error:
            if str(error) != said and charon.is_alive():
                log.warning("routes of IKEv2 cannot be kept, trying again: %s", error)
                said = str(error)


def _follow(charon: Charon, stop: threading.Event) -> None:
    """Raises KernelError when charon is gone."""
    while not stop.is_set():
        with (
            charon.listening("child-updown", LISTEN_SECONDS) as events,
            explained("routes of IKEv2"),
            IPRoute() as route,
        ):
            _keep(charon, events, route, stop)


def _keep(charon: Charon, events: Iterator[Mapping[str, Any] | None], route: IPRoute, stop: threading.Event) -> None:
    """For a minute."""
    again = time.monotonic() + MISTRUST_SECONDS
    held = Counter(address for sa in charon.sas() for address in sa.addresses)
    _make_equal(route, held.keys())
    for event in events:
        if stop.is_set() or time.monotonic() > again:
            return
        for address, comes in _told(event or {}):
            held[address] += 1 if comes else -1
            if comes and held[address] == 1:
                _change(route, "replace", address)
            elif not comes and held[address] <= 0:
                del held[address]
                _change(route, "del", address)


def _told(event: Mapping[str, Any]) -> Iterator[tuple[Address, bool]]:
    comes = event.get("up") == b"yes"
    for held in event.values():
        if isinstance(held, Mapping):
            for address in addresses_of(held):
                yield address, comes


def _make_equal(route: IPRoute, wanted: Iterable[Address]) -> None:
    index, there = if_nametoindex(IKEV2_DEVICE), set[Address]()
    for family in FAMILIES.values():
        for found in route.get_routes(family=family, oif=index):
            attributes = dict(found["attrs"])
            if found["table"] == TABLE_MAIN and "RTA_DST" in attributes:
                address = ip_address(attributes["RTA_DST"])
                there |= {address} if found["dst_len"] == address.max_prefixlen else set()
    wanted = set(wanted)
    for address in there - wanted:
        _change(route, "del", address)
    for address in wanted - there:
        _change(route, "replace", address)


def _change(route: IPRoute, verb: str, address: Address) -> None:
    with suppress(OSError):  # the device is gone, and its routes with it
        index = if_nametoindex(IKEV2_DEVICE)
        named = {"dst": f"{address}/{address.max_prefixlen}", "oif": index, "proto": PROTOCOL}
        scope = SCOPE_LINK if address.version == 4 else SCOPE_UNIVERSE  # IPv6 knows no other
        try:
            route.route(verb, family=FAMILIES[address.version], scope=scope, **named)
        except NetlinkError as error:
            if verb == "replace" and address.version == 4:
                raise
            if verb == "replace":  # the other family goes on
                log.warning("no route of IPv6 to a client of IKEv2 address=%s: %s", address, error)
