"""Responder: the programs of IKEv2 and the device by which all its sessions come in; one for all servers."""

from __future__ import annotations

from agent.model import IKEV2_DEVICE, Server
from agent.objects import Responder
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Responder], server: Server, place: Place) -> None:
    if server.ikev2:
        ipv6 = server.address_ipv6 is not None or (IKEV2_DEVICE in held and held[IKEV2_DEVICE].ipv6)
        held[IKEV2_DEVICE] = Responder(IKEV2_DEVICE, ipv6=ipv6)


RESPONDER = ServerPart[str, Responder](
    name="responder",
    noun="responder of IKEv2",
    device=str,
    detail=lambda one: one.device + (" with IPv6" if one.ipv6 else ""),
    into=_into,
)
