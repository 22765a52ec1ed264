"""Tells at once when somebody else changes a table of ours: the table itself, its chains, rules and sets.

Owns an nf_tables netlink socket in the network namespace of the thread that runs it. Reads only; decides nothing:
`wiring` wakes the one writer, who reads what is there. Without it such a change is found by the next resync, and after
a `flush ruleset` nobody behind this box reaches anything till then, or reaches what a filter rule forbids.

The kernel tells who committed: the number of a thread. What ours have done is not told. In a container that numbers
processes anew our own changes of servers look like somebody's: one pass more, which finds everything right. Elements of
maps are not looked at, which come by the ten thousand when we write.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress

from agent.kernel.netlink import HEADER_BYTES, NETLINK_NETFILTER, attributes, split
from agent.kernel.nftables import bounded, forwarding, marks
from agent.kernel.nftables.foreign import OURS

# linux/netfilter/nfnetlink.h, nf_tables.h
_GROUP = 1 << 7 - 1  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEWGEN = 15
_ELEMENTS = (12, 14)  # NEWSETELEM, DELSETELEM
_TABLE = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, ...: the same in all of them
_WHO = 2  # NFTA_GEN_PROC_PID
_ATTRIBUTES_AT = HEADER_BYTES + 4  # nfgenmsg
_FAMILIES = {"inet": 1, "ip": 2, "ip6": 10}  # linux/netfilter.h; the first byte of nfgenmsg
_OURS = {
    (_FAMILIES[family], name.encode() + b"\0")
    for family, name in OURS | {("ip6", one.TABLE) for one in (marks, forwarding, bounded)}
}
# A blocklist of others that is loaded at once tells more than the usual buffer takes; what is dropped costs a pass.
_BUFFER_BYTES, _SO_RCVBUFFORCE = 8 << 20, 33  # asm-generic/socket.h


async def watch(told: Callable[[], None]) -> None:
    """Calls `told` after each commit of others that has changed a table of ours, and when the kernel dropped events;
    runs until it is cancelled. Returns where the kernel has no netfilter."""
    loop, news = asyncio.get_running_loop(), News()
    try:
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError:
        return  # there is no table either
    with netlink:
        netlink.setblocking(False)
        with suppress(PermissionError):
            netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        netlink.bind((0, _GROUP))
        while True:
            try:
                is_news = news.in_datagram(await loop.sock_recv(netlink, 1 << 16))
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                is_news = True
            if is_news:
                told()


class News:
    """A commit is told in pieces; who made it stands in the last one."""

    def __init__(self) -> None:
        self._is_ours = False  # has a table of ours been in this commit

    def in_datagram(self, data: bytes) -> bool:
        found = False
        for kind, _, _, whole in split(data):
            what = kind - _SUBSYSTEM
            if what == _NEWGEN:
                found |= self._is_ours and not _is_thread_of_ours(attributes(whole, _ATTRIBUTES_AT).get(_WHO, b""))
                self._is_ours = False
            elif what not in _ELEMENTS and not self._is_ours:
                self._is_ours = (whole[HEADER_BYTES], attributes(whole, _ATTRIBUTES_AT).get(_TABLE)) in _OURS
        return found


def _is_thread_of_ours(number: bytes) -> bool:
    return os.path.exists(f"/proc/self/task/{int.from_bytes(number, 'big')}")
