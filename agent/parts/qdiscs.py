"""Qdiscs: our root with its classifier, on each link and on the uplink that all of them share."""

from __future__ import annotations

from agent.model import Server
from agent.objects import Qdisc
from agent.parts.part import Place, ServerPart


def _into(held: dict[str, Qdisc], server: Server, place: Place) -> None:
    for device in (*server.devices, place.uplink):
        held[device] = Qdisc(device)


QDISCS = ServerPart[str, Qdisc](name="qdiscs", noun="qdisc", device=str, detail=lambda one: one.device, into=_into)
