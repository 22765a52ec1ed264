"""/api/v1/wireguard/{name}/port_forward, which v1's documents spell port_forwarding too."""

from __future__ import annotations

from gateway.accepted import Accepted, Placed
from gateway.errors import InvalidValue, NotFound
from gateway.http.v1.calls import INTEGER, ROOT, TEXT, Asked, Call, Field, by_name, record, shown
from gateway.port_forwards import Led

SERVER = ROOT + "/wireguard/{name}"
SPELLINGS = ("port_forward", "port_forwarding")
MISSING = "Wireguard server not found"
NO_FORWARD = "There is no such port forwarding"
WRONG_PROTOCOL = "Protocol must be tcp or udp"
WRONG_PORT = "DST port must be within 1-65535"
WRONG_TO_PORT = "To port must be within 1-65535"
PROTOCOLS = ("tcp", "udp")

PortObject = dict[str, str | int]


def _object(led: Led) -> PortObject:
    one, account = led
    return {"dst_port": one.port, "protocol": one.protocol, "to_peer": account, "to_port": one.to_port}


def _port(text: str) -> int:
    """0 = it is none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535 else 0


async def _list(asked: Asked) -> Placed[dict[str, PortObject]]:
    found = await asked.services.port_forwards.list(asked.name(MISSING))
    return Placed({f"{led[0].port}_{led[0].protocol}": _object(led) for led in found.value}, found.node)


async def _add(asked: Asked) -> Accepted[PortObject]:
    name, form = asked.name(MISSING), asked.form
    protocol, port, to_port = (form.get(field, "") for field in ("protocol", "dst_port", "to_port"))
    protocol = protocol.strip().lower()
    if protocol not in PROTOCOLS:
        await _check_server(asked)
        raise InvalidValue(WRONG_PROTOCOL, "protocol")
    for text, field, wrong in ((port, "dst_port", WRONG_PORT), (to_port, "to_port", WRONG_TO_PORT)):
        if not _port(text):
            await _check_server(asked)
            raise InvalidValue(wrong, field)
    peer = form.get("to_peer", "").strip()
    return (await asked.services.port_forwards.add(name, protocol, _port(port), peer, _port(to_port))).told(_object)


async def _check_server(asked: Asked) -> None:
    """Of two things that are wrong it is told first that the server is not there."""
    await asked.services.servers.get(asked.name(MISSING))


async def _delete(asked: Asked) -> Accepted[str]:
    name, port, protocol = asked.name(MISSING), _port(asked.path["port"]), asked.path["protocol"].lower()
    if not port or protocol not in PROTOCOLS:
        await _check_server(asked)
        raise NotFound(NO_FORWARD)
    return (await asked.services.port_forwards.remove(name, protocol, port)).told(lambda _: "success")


OBJECT = record(
    {
        "dst_port": shown(INTEGER, 25565),
        "protocol": shown(TEXT, "udp"),
        "to_peer": shown(TEXT, "NAME"),
        "to_port": shown(INTEGER, 7777),
    }
)
ADD_ERRORS = (
    *(MISSING, WRONG_PROTOCOL, WRONG_PORT, WRONG_TO_PORT, "Entered incorrect peer", "DstPort cannot be ListenPort"),
    *("DST port .../... is of node ... itself", "DST port and protocol are already enabled"),
    "1000 ports lead to ... already",
)
PORT = r"^[0-9]{1,5}$"
FIELDS = (
    Field("dst_port", "Port of the node, 1-65535", PORT, required=True),
    Field("protocol", "tcp or udp", r"^(tcp|udp)$", required=True),
    Field("to_peer", "Account of this server that it leads to", r"^[A-Za-z0-9_-]{1,64}$", required=True),
    Field("to_port", "Port of the account, 1-65535", PORT, required=True),
)
CALLS = tuple(
    call
    for path in (f"{SERVER}/{spelling}" for spelling in SPELLINGS)
    for call in (
        Call("GET", path, "Ports that lead to its accounts", _list, by_name(OBJECT, "25565_udp"), errors=(MISSING,)),
        Call("POST", path, "A port leads to an account", _add, OBJECT, FIELDS, errors=ADD_ERRORS),
        Call(
            *("DELETE", path + "/{port}/{protocol}", "It leads there no more", _delete, TEXT),
            example=path.replace("{name}", "NAME") + "/25565/udp",
            errors=(MISSING, NO_FORWARD),
        ),
    )
)
