"""Tells at once when somebody else changes interfaces, IPv4 addresses, the default route or one by a link of ours.

Owns a route netlink socket in the network namespace of the thread that runs it. Reads only; decides nothing: `wiring`
starts it and wakes the one writer, who reads what is there. Without it such a change is found by the next resync.

Our own changes are told too, a few for each link. They die down by themselves, because a pass that finds everything
right changes nothing; whoever is called back should gather for a moment (say 0.2 s) before waking anybody. An event
that changes nothing of interest (statistics, neighbours, another interface's queue) is not told.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterator

from agent.kernel.netlink import attributes

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x10, 0x40
IFLA_IFNAME, IFLA_MTU, IFLA_IFALIAS, RTA_OIF = 3, 4, 20, 4
IFF_UP = 0x1
LINKS = "wg"  # what the names of our links begin with

ANY = ""  # told when the kernel dropped events: anything may have changed

_MESSAGE = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BBHiII")  # ifinfomsg: family, pad, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, destination length, ...

Told = Callable[[str], None]


async def watch(told: Told) -> None:
    """Calls `told` with the name of each device that changed or vanished, or ANY; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    news = News()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.setblocking(False)
        netlink.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))
        while True:
            try:
                data = await loop.sock_recv(netlink, 1 << 16)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                told(ANY)
                continue
            for device in dict.fromkeys(news.devices(data)):
                told(device)


class News:
    """Tells which events are news, by what it has seen of each link. The first event of a link always is."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, ...]] = {}  # by index: name, up, MTU, alias
        self._names: dict[int, str] = {}

    def devices(self, data: bytes) -> Iterator[str]:
        """The devices that one datagram from the kernel tells something new about."""
        offset = 0
        while offset + _MESSAGE.size <= len(data):
            length, kind = _MESSAGE.unpack_from(data, offset)[:2]
            body = data[offset + _MESSAGE.size : offset + length]
            device: str | None = None
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                device = self._link(body, gone=kind == RTM_DELLINK)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                device = self._name(_ADDRESS.unpack_from(body)[4])
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                device = self._route(body)
            if device is not None:
                yield device
            offset += max((length + 3) & ~3, _MESSAGE.size)

    def _link(self, body: bytes, *, gone: bool) -> str | None:
        _, _, _, index, flags, _ = _LINK.unpack_from(body)
        values = attributes(body, _LINK.size)
        name = values.get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
        if gone:
            self._seen.pop(index, None)
            self._names.pop(index, None)
            return name
        state = (name, flags & IFF_UP, values.get(IFLA_MTU), values.get(IFLA_IFALIAS))
        if self._seen.get(index) == state:
            return None
        self._seen[index] = state
        self._names[index] = name
        return name

    def _route(self, body: bytes) -> str | None:
        """A default route makes the uplink, and a link of ours needs the one to its network. A router's table may
        change thousands of times a minute: nothing else is of interest."""
        is_default = _ROUTE.unpack_from(body)[1] == 0
        index = attributes(body, _ROUTE.size).get(RTA_OIF)
        if index is None:
            return ANY if is_default else None
        device = self._name(struct.unpack("=i", index)[0])
        return device if is_default or (device or "").startswith(LINKS) else None

    def _name(self, index: int) -> str | None:
        if index not in self._names:
            try:
                self._names[index] = socket.if_indextoname(index)
            except OSError:
                return None  # gone meanwhile, which is an event of its own
        return self._names[index]
