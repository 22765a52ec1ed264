"""Links: a server's WireGuard interface, up and addressed."""

from __future__ import annotations

from agent.model import Server, clamped
from agent.objects import Link
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Link], server: Server, place: Place) -> None:
    key, mtu = clamped(server.private_key), server.mtu or place.mtu
    address, ipv6 = server.address, server.address_ipv6
    held[server.interface] = Link(server.interface, key, server.listen_port, address, mtu, ipv6)


LINKS = ServerPart[str, Link](
    name="links",
    noun="link",
    device=str,
    detail=lambda one: " ".join(
        [
            f"{one.interface} {one.address}",
            *([str(one.address_ipv6)] if one.address_ipv6 else []),
            f"UDP {one.listen_port} MTU {one.mtu}",
        ]
    ),
    goes_first=True,  # its port is free for a new one
    into=_into,
)
