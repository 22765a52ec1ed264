"""Forwarding: what lets a server's traffic through."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from agent.model import Server
from agent.objects import NAT_PORTS, Forwarding, ForwardingIPv6
from agent.parts.part import Place, ServerPart


def free_ports(listening: Iterable[int]) -> tuple[int, int]:
    """The longest part of NAT_PORTS on which no server listens."""
    first, last = NAT_PORTS
    ends = sorted({first - 1, *(port for port in listening if first <= port <= last), last + 1})
    return max(((a + 1, b - 1) for a, b in pairwise(ends)), key=lambda part: part[1] - part[0])


def _into(held: dict[str, Forwarding], server: Server, place: Place) -> None:
    held[server.interface] = Forwarding(
        server.interface,
        server.address,
        "" if server.name in place.nowhere else place.uplink,
        server.listen_port,
        server.internal_traffic,
        server.external_ip,
        server.reach,
        place.nat_ports,
        ForwardingIPv6(server.address_ipv6, server.nat_ipv6) if server.address_ipv6 else None,
        server.ikev2 is not None,
    )


def _detail(one: Forwarding) -> str:
    networks = f"{one.network}, {one.ipv6.address.network}" if one.ipv6 else str(one.network)
    return f"{one.interface} {networks} to {one.uplink}" if one.interface else "rules that are damaged or nobody's"


FORWARDING = ServerPart[str, Forwarding](name="forwarding", noun="forwarding", device=str, detail=_detail, into=_into)
