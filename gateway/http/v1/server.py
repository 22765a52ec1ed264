"""/api/v1/wireguard: servers, as v1's WireGuard page has them. Each call parses, asks one use case, spells the answer.

`/wireguard/online` stands before `/wireguard/{name}`: no server can be named `online` or `info` (gateway/fields.py).
"""

from __future__ import annotations

from zoneinfo import ZoneInfo

from gateway import fields
from gateway.accepted import Accepted, Placed
from gateway.errors import InvalidValue
from gateway.http.configuration import refuse_unreadable
from gateway.http.v1 import objects
from gateway.http.v1.calls import ROOT, TEXT, Asked, Call, Field, by_name, listing, shown, texts
from gateway.keypair import WRONG_KEYS
from gateway.live import LiveServer
from gateway.model import Server
from gateway.servers import NO_ENDPOINT

MISSING = "Wireguard server not found"
SERVERS = f"{ROOT}/wireguard"
SERVER = SERVERS + "/{name}"

ServerObject = dict[str, str | bool | int]


async def _list(asked: Asked) -> dict[str, ServerObject]:
    return {server.name: objects.server_object(server) for server in await asked.services.servers.list()}


async def _detail(asked: Asked) -> Placed[ServerObject]:
    server = await _server(asked)
    refuse_unreadable(server)
    return Placed(objects.server_object(server), server.node)


async def _add(asked: Asked) -> Accepted[ServerObject]:
    # Forms post their empty fields too: on create they are absent, on edit they clear.
    form = {key: text for key, text in asked.form.items() if text.strip()}
    accepted = await asked.services.servers.create(fields.server_values(form), asked.is_gone)
    return accepted.told(objects.server_object)


async def _edit(asked: Asked) -> Accepted[ServerObject]:
    try:
        values = fields.server_values(asked.form)
    except InvalidValue:
        await _server(asked)
        raise
    return (await asked.services.servers.edit(asked.name(MISSING), values)).told(objects.server_object)


async def _delete(asked: Asked) -> Accepted[str]:
    return (await asked.services.servers.delete(asked.name(MISSING))).told(lambda _: "success")


async def _peers(asked: Asked) -> Placed[dict[str, dict[str, str]]]:
    server, accounts = await asked.services.servers.accounts(asked.name(MISSING))
    return Placed({account.name: objects.account_object(account) for account in accounts}, server.node)


async def _available_ips(asked: Asked) -> Placed[list[str]]:
    server, addresses = await asked.services.servers.available_addresses(asked.name(MISSING))
    return Placed([str(address) for address in addresses], server.node)


async def _set_bandwidth(asked: Asked) -> Accepted[str]:
    return (await asked.services.servers.set_bandwidth(asked.name(MISSING))).told(lambda _: "")


async def _dump(asked: Asked) -> Placed[dict[str, str]]:
    server = await _server(asked)
    return Placed({"port": str(server.listen_port), "public_key": server.public_key}, server.node)


async def _nat_rules(asked: Asked) -> Placed[str]:
    server, live = await _live(asked)
    return Placed("".join(map(objects.nat_line, live.nat)), server.node)


async def _filter_rules(asked: Asked) -> Placed[str]:
    server, live = await _live(asked)
    return Placed("".join(map(objects.filter_line, live.forward)), server.node)


async def _traffic_control(asked: Asked) -> Placed[str]:
    server, live = await _live(asked)
    return Placed("".join(f"{device} --> {text}\n" for device, text in live.roots), server.node)


async def _live(asked: Asked) -> tuple[Server, LiveServer]:
    return await asked.services.servers.live(asked.name(MISSING))


async def _online(asked: Asked) -> list[dict[str, str]]:
    zone = ZoneInfo(asked.settings.time_zone)
    return [objects.online_object(account, peer, zone) for account, peer in await asked.services.servers.online()]


async def _server(asked: Asked) -> Server:
    return await asked.services.servers.get(asked.name(MISSING))


EDIT_FIELDS = (
    Field("private_key", "WireGuard key, base64"),
    Field("public_key", "WireGuard key, base64"),
    Field("listen_port", "51820-65535", r"^([0-9]{5})?$"),
    Field("address", "The server's own address and its accounts' network: 10.0.86.1/24; prefix 16-30"),
    Field("external_ip", "IPv4 address that accounts have on the internet; empty: the uplink's own"),
    Field("endpoint", "IP address or domain that clients connect to; empty: the default"),
    Field("dns_1", "IPv4 address"),
    Field("dns_2", "IPv4 address"),
    Field("ipv6", "Do its accounts have IPv6 too; 0: not any more", r"^(0|1|true|false)?$"),
    Field("address_ipv6", "As address, prefix 48-112: fd00:1:2:3::1/64; a private network when absent and ipv6 is 1"),
    Field("nat_ipv6", "Do they leave with the uplink's own address; yes for a private network", r"^(0|1|true|false)?$"),
    Field("dns_1_ipv6", "IPv6 address"),
    Field("dns_2_ipv6", "IPv6 address"),
    Field("mtu", "Bytes, 576-9100; 0: the default", r"^(0|[1-9][0-9]{2,3})?$"),
    Field("keep_alive", "Seconds, for the clients' configuration; 0: off", r"^(0|[1-9][0-9]{0,4})?$"),
    Field("allowed_ips", "Networks that clients send into the tunnel; empty: 0.0.0.0/0, and ::/0"),
    Field("internal_traffic", "May accounts of this server reach one another", r"^(0|1|true|false)?$"),
    Field("reach", "Where accounts may go: internet, all, or networks: internet,10.20.0.0/16; empty: internet"),
    Field("b_download", "Mbit/s, 0 = unlimited; default of its accounts", r"^(0|[1-9][0-9]{0,4})?$"),
    Field("b_upload", "Mbit/s, 0 = unlimited; default of its accounts", r"^(0|[1-9][0-9]{0,4})?$"),
    Field("ikev2", "May its accounts come in by IKEv2 too, where that is on", r"^(0|1|true|false)?$"),
)
STAYS = Field("node", "Node that carries it; another one is refused", r"^[A-Za-z0-9_-]{0,64}$")
NEW_FIELDS = (
    Field("name", "Unique; Default_N when absent", r"^[A-Za-z0-9_-]{0,64}$"),
    Field("interface_name", "wgN", r"^(wg[0-9]{1,10})?$"),
    Field("node", "Node that shall carry it", r"^[A-Za-z0-9_-]{0,64}$"),
    *EDIT_FIELDS,
)
NONE_SUCH = (MISSING,)
LIVE_ERRORS = (MISSING, "Node ... is not available")
VALUE_ERRORS = (
    *(WRONG_KEYS, "Port already in use", "Wrong Port format", "Wrong external IP format"),
    *("IP address or subnet already in use", "Wrong DNS1 IP format", "Wrong DNS2 IP format", NO_ENDPOINT),
)
ADD_ERRORS = (
    *("The name is already in use", "Wrong name (only letters, numbers and '_', '-')", "Interface already in use"),
    *("Wrong network interface name (wgXXX)", *VALUE_ERRORS),
)
CALLS = (
    Call("GET", SERVERS, "Servers LIST", _list, by_name(objects.SERVER)),
    Call("POST", SERVERS, "Server ADD", _add, objects.SERVER, NEW_FIELDS, typical=("name",), errors=ADD_ERRORS),
    Call("GET", SERVERS + "/online", "Accounts that are connected now", _online, listing(objects.ONLINE)),
    Call("GET", SERVER, "Server DETAIL", _detail, objects.SERVER, errors=NONE_SUCH),
    Call(
        *("PUT", SERVER, "Server EDIT", _edit, objects.SERVER, (STAYS, *EDIT_FIELDS)),
        typical=("b_download",),
        errors=(MISSING, *VALUE_ERRORS),
    ),
    Call(
        "DELETE", SERVER, "Server DELETE", _delete, TEXT, errors=(MISSING, "Cannot be deleted. There are active peers.")
    ),
    Call("GET", SERVER + "/peers", "Accounts of the server", _peers, by_name(objects.ACCOUNT), errors=NONE_SUCH),
    Call(
        "GET",
        SERVER + "/available_ips",
        "Free addresses, also those that rest yet: one that is asked for is given at once",
        _available_ips,
        listing(shown(TEXT, "10.0.0.2")),
        errors=NONE_SUCH,
    ),
    Call(
        "PUT", SERVER + "/set_bandwidth", "Give its limits to all its accounts", _set_bandwidth, TEXT, errors=NONE_SUCH
    ),
    Call(
        "GET",
        SERVER + "/firewall_nat_rules",
        "Its rules of NAT, as the node has them now",
        _nat_rules,
        TEXT,
        errors=LIVE_ERRORS,
    ),
    Call(
        "GET",
        SERVER + "/firewall_filter_rules",
        "Its rules of forwarding, likewise",
        _filter_rules,
        TEXT,
        errors=LIVE_ERRORS,
    ),
    Call(
        "GET",
        SERVER + "/traffic_control",
        "Root qdiscs, as `tc -s qdisc show` prints them",
        _traffic_control,
        TEXT,
        errors=LIVE_ERRORS,
    ),
    Call("GET", SERVER + "/dump", "Port and public key", _dump, texts("port", "public_key"), errors=NONE_SUCH),
)
