"""Links: a server's WireGuard interface, up and addressed."""

from __future__ import annotations

from agent.model import Server, clamped
from agent.objects import Link
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Link], server: Server, place: Place) -> None:
    key, mtu = clamped(server.private_key), server.mtu or place.mtu
    held[server.interface] = Link(server.interface, key, server.listen_port, server.address, mtu)


LINKS = ServerPart[str, Link](
    name="links",
    noun="link",
    device=str,
    detail=lambda one: f"{one.interface} {one.address} UDP {one.listen_port} MTU {one.mtu}",
    goes_first=True,  # its port is free for a new one
    into=_into,
)
