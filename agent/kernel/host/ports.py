"""Which ports of this host are taken."""

from __future__ import annotations

import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path


def udp_ports() -> frozenset[int]:
    """Of UDP, those of the network namespace of the calling thread, whatever address they are bound to.

    Asking is the only way that disturbs nobody: to try a port by binding it would refuse it to its owner meanwhile.
    """
    ports: set[int] = set()
    for table in ("udp", "udp6"):
        with suppress(FileNotFoundError):  # no IPv6 here
            for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                ports.add(int(line.split(maxsplit=2)[1].rpartition(":")[2], 16))
    return frozenset(ports)


DRAWN = 32_768  # from here on Linux gives out ports by itself (net.ipv4.ip_local_port_range)
_LISTENING = {"tcp": "0A", "udp": "07"}  # states: TCP_LISTEN, and of UDP not connected


def listening() -> frozenset[tuple[str, int]]:
    """Protocol and port of what programs of this host listen on for others; of UDP not what Linux has drawn for them,
    for it is gone in a moment."""
    found: set[tuple[str, int]] = set()
    for protocol, state in _LISTENING.items():
        for table in (protocol, f"{protocol}6"):
            with suppress(FileNotFoundError):
                for line in Path("/proc/thread-self/net", table).read_text().splitlines()[1:]:
                    _, local, _, of, *_ = line.split(maxsplit=4)
                    address, port = local.split(":")
                    if of == state and not _is_loopback(address) and (protocol == "tcp" or int(port, 16) < DRAWN):
                        found.add((protocol, int(port, 16)))
    return frozenset(found)


def _is_loopback(listed: str) -> bool:
    """An address as /proc has it: words of four bytes, each in the order of this machine."""
    words = (int(listed[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(listed), 8))
    return ip_address(b"".join(words)).is_loopback
