"""Forwarding: what lets a server's traffic through."""

from __future__ import annotations

from agent.model import Server
from agent.objects import Forwarding
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Forwarding], server: Server, place: Place) -> None:
    held[server.interface] = Forwarding(
        server.interface,
        server.address,
        "" if server.name in place.nowhere else place.uplink,
        server.listen_port,
        server.internal_traffic,
        server.external_ip,
        server.reach,
    )


def _detail(one: Forwarding) -> str:
    return f"{one.interface} {one.network} to {one.uplink}" if one.interface else "rules that are damaged or nobody's"


FORWARDING = ServerPart[str, Forwarding](name="forwarding", noun="forwarding", device=str, detail=_detail, into=_into)
