"""Tells at once when somebody else changes interfaces, their root qdisc, IPv4 addresses, a default route, or a route
by a link of ours.

Owns a route netlink socket in the network namespace of the thread that runs it. Reads only; decides nothing: `wiring`
starts it and wakes the one writer, who reads what is there. Without it such a change is found by the next resync.

Our own changes are told too, a few for each link. They die down by themselves, because a pass that finds everything
right changes nothing; whoever is called back should gather for a moment (say 0.2 s) before waking anybody. An event
that changes nothing of interest (statistics, neighbours, another interface's queue) is not told.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable, Iterator

from agent.kernel.netlink import HEADER_BYTES, attributes, split
from agent.model import LINKS

# linux/rtnetlink.h
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
RTM_NEWQDISC, RTM_DELQDISC, RTM_NEWTCLASS, RTM_DELTCLASS, RTM_NEWTFILTER, RTM_DELTFILTER = 36, 37, 40, 41, 44, 45
RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE = 0x1, 0x8, 0x10, 0x40
IFLA_IFNAME, IFLA_MTU, IFLA_IFALIAS, RTA_OIF = 3, 4, 20, 4
IFF_UP = 0x1

ANY = ""  # told of a default route, which may make another device the uplink, and when the kernel dropped events

_LINK = struct.Struct("=BBHiII")  # ifinfomsg: family, pad, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg: family, destination length, ...
_QDISC = struct.Struct("=BxxxiII")  # tcmsg: family, ifindex, handle, parent, ...
ROOT = 0xFFFFFFFF  # linux/pkt_sched.h, TC_H_ROOT

# Classes, filters and leaves come by the ten thousand when we write. A new qdisc is told of to everybody each time that
# somebody only reads it, we for instance; what takes its place has first removed it. The kernel itself leaves all of
# these out for us.
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_LDH, _LDW, _JEQ, _RET = 0x28, 0x20, 0x15, 0x06  # linux/filter.h
_TYPE_AT, _PARENT_AT = 4, 28  # in nlmsghdr; of tcmsg behind it
_INSTRUCTION = struct.Struct("=HBBI")  # sock_filter: code, steps if true, steps if false, value
_PROGRAM = (
    (_LDH, 0, 0, _TYPE_AT),  # loaded as big-endian, whatever this machine is
    (_JEQ, 5, 0, socket.htons(RTM_DELQDISC)),
    (_JEQ, 7, 0, socket.htons(RTM_NEWQDISC)),
    (_JEQ, 6, 0, socket.htons(RTM_NEWTCLASS)),
    (_JEQ, 5, 0, socket.htons(RTM_DELTCLASS)),
    (_JEQ, 4, 0, socket.htons(RTM_NEWTFILTER)),
    (_JEQ, 3, 2, socket.htons(RTM_DELTFILTER)),
    (_LDW, 0, 0, _PARENT_AT),
    (_JEQ, 0, 1, ROOT),
    (_RET, 0, 0, 0xFFFFFFFF),  # take it whole
    (_RET, 0, 0, 0),
)

Told = Callable[[str], None]


async def watch(told: Told) -> None:
    """Calls `told` with the name of each device that changed or vanished, or ANY; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    news = News()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.setblocking(False)
        _leave_out_all_qdiscs_but_removed_roots(netlink)
        netlink.bind((0, RTMGRP_LINK | RTMGRP_TC | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))
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


def _leave_out_all_qdiscs_but_removed_roots(netlink: socket.socket) -> None:
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in _PROGRAM))
    program = struct.pack("@HP", len(_PROGRAM), ctypes.addressof(code))  # sock_fprog
    netlink.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class News:
    """Tells which events are news, by what it has seen of each link. The first event of a link always is."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, ...]] = {}  # by index: name, up, MTU, alias
        self._names: dict[int, str] = {}

    def devices(self, data: bytes) -> Iterator[str]:
        """The devices that one datagram from the kernel tells something new about."""
        for kind, _, _, whole in split(data):
            body = whole[HEADER_BYTES:]
            device: str | None = None
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                yield from self._link(body, gone=kind == RTM_DELLINK)
            elif kind in (RTM_NEWADDR, RTM_DELADDR):
                device = self._name(_ADDRESS.unpack_from(body)[4])
            elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
                device = self._route(body)
            elif kind == RTM_DELQDISC:
                _, index, _, parent = _QDISC.unpack_from(body)
                device = self._name(index) if parent == ROOT else None
            if device is not None:
                yield device

    def _link(self, body: bytes, *, gone: bool) -> Iterator[str]:
        """Of one that was renamed both names: the former one is missing somewhere."""
        _, _, _, index, flags, _ = _LINK.unpack_from(body)
        values = attributes(body, _LINK.size)
        name = values.get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
        if gone:
            self._seen.pop(index, None)
            self._names.pop(index, None)
            yield name
            return
        state = (name, flags & IFF_UP, values.get(IFLA_MTU), values.get(IFLA_IFALIAS))
        if self._seen.get(index) == state:
            return
        former = self._names.get(index, name)
        self._seen[index] = state
        self._names[index] = name
        yield from dict.fromkeys((name, former))

    def _route(self, body: bytes) -> str | None:
        """A default route makes the uplink, and a link of ours needs the one to its network. A router's table may
        change thousands of times a minute: nothing else is of interest."""
        if _ROUTE.unpack_from(body)[1] == 0:
            return ANY
        index = attributes(body, _ROUTE.size).get(RTA_OIF)
        device = self._name(struct.unpack("=i", index)[0]) if index else None
        return device if (device or "").startswith(LINKS) else None

    def _name(self, index: int) -> str | None:
        if index not in self._names:
            try:
                self._names[index] = socket.if_indextoname(index)
            except OSError:
                return None  # gone meanwhile, which is an event of its own
        return self._names[index]
