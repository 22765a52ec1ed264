"""Ports: those of the node by which an account is reached from the internet."""

from __future__ import annotations

from agent.model import Account, Server
from agent.objects import Port, PortKey
from agent.parts.part import AccountPart, Place


def _into(held: dict[PortKey, Port], account: Account, server: Server, place: Place) -> None:
    for one in account.ports if place.uplink else ():
        to = account.address, one.to_port, server.external_ip, place.uplink
        held[one.key] = Port(one.protocol, one.port, *to, account.id)


def _detail(one: Port) -> str:
    return f"{one.protocol}/{one.port} to {one.address}:{one.to_port}" if one.port else "rules that are damaged"


PORTS = AccountPart[PortKey, Port](
    name="ports",
    noun="port",
    device=lambda key: "",
    detail=_detail,
    goes_first=True,  # strangers come in by it
    into=_into,
    owner=lambda desired, key: desired.by_port.get(key, 0),
)
