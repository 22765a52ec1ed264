"""The routes to each client who is in by IKEv2: its addresses, by the responder's device, while its session lasts.

More special than the route to the server's network, so an account's packets go where it is: by IKEv2 while it is in
by that, else by WireGuard. charon would make such routes only in a table of its own, not for the kernel's XFRM
interface, and not under the name that the device has here.

charon tells of each session that comes and goes, and by which number it knows one from now on. Who holds an address is
kept by those numbers: the session of a second device of an account comes before the first one ends, and what is told
while the list is read is in the list as well. What was missed while nobody listened is made up for by that list, at
each beginning; and there is another one every minute, for Linux drops routes by itself (those of IPv6, where a device
has it no more).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
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
EVENTS = ("child-updown", "ike-rekey")
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
            charon.listening(EVENTS, LISTEN_SECONDS) as events,
            explained("routes of IKEv2"),
            IPRoute() as route,
        ):
            _keep(charon, events, route, stop)


def _keep(charon: Charon, events: Iterator[Mapping[str, Any] | None], route: IPRoute, stop: threading.Event) -> None:
    """For a minute."""
    again = time.monotonic() + MISTRUST_SECONDS
    held = defaultdict[Address, set[bytes]](set)
    for sa in charon.sas():
        for address in sa.addresses:
            held[address].add(sa.number.encode())
    _make_equal(route, held.keys())
    for event in events:
        if stop.is_set() or time.monotonic() > again:
            return
        for old, new in _renumbered(event or {}):
            for holders in held.values():
                if old in holders:
                    holders.symmetric_difference_update((old, new))
        for address, number, comes in _told(event or {}):
            if comes and not held[address]:
                _change(route, "replace", address)
            if comes:
                held[address].add(number)
                continue
            held[address].discard(number)
            if not held[address]:
                del held[address]
                _change(route, "del", address)


def _told(event: Mapping[str, Any]) -> Iterator[tuple[Address, bytes, bool]]:
    """Of a session's client and its number: does it come, or go?"""
    comes = event.get("up") == b"yes"
    for held in event.values():
        if isinstance(held, Mapping) and "uniqueid" in held:
            for address in addresses_of(held):
                yield address, held["uniqueid"], comes


def _renumbered(event: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """A session with new keys has a new number."""
    for said in event.values():
        if isinstance(said, Mapping) and "old" in said and "new" in said:
            yield said["old"]["uniqueid"], said["new"]["uniqueid"]


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
