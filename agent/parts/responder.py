"""Responder: the programs of IKEv2 and the device by which all its sessions come in; one for all servers."""

from __future__ import annotations

from agent.model import IKEV2_DEVICE, Server
from agent.objects import Responder
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Responder], server: Server, place: Place) -> None:
    if server.ikev2:
        held[IKEV2_DEVICE] = Responder(IKEV2_DEVICE)


RESPONDER = ServerPart[str, Responder](
    name="responder", noun="responder of IKEv2", device=str, detail=lambda one: one.device, into=_into
)
