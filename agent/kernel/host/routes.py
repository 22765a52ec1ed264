"""The IPv4 routes of this network namespace, read fast enough for a router that has ten thousand of them.

Reads only, and decides nothing. Called by whoever wants to know the default routes or the host's networks; everything
happens in the network namespace of the calling thread.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from socket import AF_INET

from agent.kernel.netlink import HEADER_BYTES, Netlink, attributes, message

MAIN_TABLE = 254  # RT_TABLE_MAIN
ONLINK = 0x4  # RTNH_F_ONLINK: the gateway is no neighbour by any address

# linux/rtnetlink.h
RTM_GETROUTE = 26
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 6, 8, 9, 18
RTAX_MTU = 2
_ROUTE = struct.Struct(
    "=BBBBBBBBI"
)  # rtmsg: family, length of destination, of source, tos, table, protocol, ..., flags
_LENGTH_AT, _TABLE_AT = HEADER_BYTES + 1, HEADER_BYTES + 4
_HOP = struct.Struct("=HBBi")  # rtnexthop: length, flags, weight, index


@dataclass(frozen=True, slots=True)
class Hop:
    """`gateway`: None = straight out of the interface. `is_told`: False = by a gateway of IPv6."""

    interface: int  # index; 0 = the route leads nowhere
    gateway: IPv4Address | None
    onlink: bool
    is_told: bool


@dataclass(frozen=True, slots=True)
class Route:
    network: IPv4Network
    table: int
    protocol: int
    priority: int  # the metric
    mtu: int  # bytes; 0 = that of the interface
    hops: tuple[Hop, ...]  # at least one


def read_defaults(*tables: int) -> list[Route]:
    """The default routes of these tables. Raises KernelError."""
    return _read(lambda data: not data[_LENGTH_AT] and data[_TABLE_AT] in tables)


def read_networks_of_main() -> list[Route]:
    """All routes of the main table but the default ones. Raises KernelError."""
    return _read(lambda data: bool(data[_LENGTH_AT]) and data[_TABLE_AT] == MAIN_TABLE)


def _read(keep: Callable[[bytes], bool]) -> list[Route]:
    with Netlink() as netlink:
        return [_route(data) for data in netlink.dump(message(RTM_GETROUTE, 0, _asked()), keep=keep)]


def _asked() -> bytes:
    return _ROUTE.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)


def _route(data: bytes) -> Route:
    _, length, _, _, table, protocol, _, _, flags = _ROUTE.unpack_from(data, HEADER_BYTES)
    values = attributes(data, HEADER_BYTES + _ROUTE.size)
    several = values.get(RTA_MULTIPATH)
    return Route(
        network=IPv4Network((values.get(RTA_DST, bytes(4)), length)),
        table=table,
        protocol=protocol,
        priority=_number(values.get(RTA_PRIORITY)),
        mtu=_number(attributes(values.get(RTA_METRICS, b"")).get(RTAX_MTU)),
        hops=tuple(_hops(several)) if several else (_hop(_number(values.get(RTA_OIF)), flags, values),),
    )


def _hops(data: bytes) -> Iterator[Hop]:
    offset = 0
    while offset + _HOP.size <= len(data):
        length, flags, _, index = _HOP.unpack_from(data, offset)
        yield _hop(index, flags, attributes(data[offset : offset + length], _HOP.size))
        offset += max(length + 3 & ~3, _HOP.size)


def _hop(index: int, flags: int, values: dict[int, bytes]) -> Hop:
    gateway = values.get(RTA_GATEWAY)
    return Hop(index, IPv4Address(gateway) if gateway else None, bool(flags & ONLINK), RTA_VIA not in values)


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", sys.byteorder)
