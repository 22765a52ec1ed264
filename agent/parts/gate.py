"""Gate: the one connection of IKEv2 by which everybody logs in; the last to be opened, the first to be closed."""

from __future__ import annotations

from agent.model import IKEV2_DEVICE, Server
from agent.objects import Gate
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Gate], server: Server, place: Place) -> None:
    if server.ikev2:
        ipv6 = server.address_ipv6 is not None or (IKEV2_DEVICE in held and held[IKEV2_DEVICE].ipv6)
        held[IKEV2_DEVICE] = Gate(IKEV2_DEVICE, server.ikev2.digest, server.ikev2, ipv6)


GATE = ServerPart[str, Gate](
    name="gate",
    noun="gate of IKEv2",
    device=str,
    detail=lambda one: f"{one.device} {one.digest}" + (" with IPv6" if one.ipv6 else ""),
    goes_first=True,
    comes_last=True,
    into=_into,
)
