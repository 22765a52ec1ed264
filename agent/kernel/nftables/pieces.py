"""Pieces of rules about traffic: as nft(8) is told them, and as libnftables lists them. PURE."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

from agent.kernel.nftables.ruleset import Piece
from agent.model import CLOSED, IKEV2_DEVICE, LINKS


def match(left: Mapping[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def on_interface(key: str, name: str, op: str = "==") -> Piece:
    sign = "" if op == "==" else f"{op} "
    return Piece(f'{key} {sign}"{name}"', match({"meta": {"key": key}}, name, op))


def on_network(field: str, network: IPv4Network | IPv6Network, op: str = "==") -> Piece:
    family, sign = "ip" if network.version == 4 else "ip6", "" if op == "==" else f"{op} "
    prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    listed = str(network.network_address) if network.prefixlen == network.max_prefixlen else prefix
    left = {"payload": {"protocol": family, "field": field}}
    return Piece(f"{family} {field} {sign}{network}", match(left, listed, op))


def on_port(field: str, port: int, protocol: str) -> Piece:
    return Piece(f"{protocol} {field} {port}", match({"payload": {"protocol": protocol, "field": field}}, port))


def to_port(port: int, protocol: str = "udp") -> Piece:
    return on_port("dport", port, protocol)


def verdict(name: str) -> Piece:
    return Piece(name, {name: None})


ACCEPT, DROP, RETURN = (verdict(name) for name in ("accept", "drop", "return"))
VERDICTS = {"DROP": DROP, "RETURN": RETURN}
ESTABLISHED = Piece("ct state established,related", match({"ct": {"key": "state"}}, ["established", "related"], "in"))
STRAY = Piece("ct state invalid,related", match({"ct": {"key": "state"}}, ["invalid", "related"], "in"))
ANSWER = Piece("ct state established", match({"ct": {"key": "state"}}, "established", "in"))
REPLY = Piece("ct direction reply", match({"ct": {"key": "direction"}}, "reply"))
LED = Piece("ct status dnat", match({"ct": {"key": "status"}}, "dnat", "in"))
BEGINNER = Piece("ct direction original", match({"ct": {"key": "direction"}}, "original"))
NEW_OR_KNOWN = Piece("ct state established,new", match({"ct": {"key": "state"}}, ["established", "new"], "in"))
ECHO = Piece("icmp type echo-request", match({"payload": {"protocol": "icmp", "field": "type"}}, "echo-request"))
THE_INTERNET = Piece(
    f"ip daddr != {{ {', '.join(map(str, CLOSED))} }}",
    match(
        {"payload": {"protocol": "ip", "field": "daddr"}},
        {"set": [{"prefix": {"addr": str(one.network_address), "len": one.prefixlen}} for one in CLOSED]},
        "!=",
    ),
)
SYN = Piece(
    "tcp flags & (syn | rst) == syn",
    match({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "rst"]]}, "syn"),
)
CLAMP = Piece(
    "tcp option maxseg size set rt mtu",
    {"mangle": {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}},
)


TCP_OR_UDP = Piece("meta l4proto { tcp, udp }", match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}))


def translation(address: IPv4Address | None, ports: tuple[int, int] | None) -> Piece:
    """`address`: None = the uplink's own. With `ports` the rule must match TCP or UDP before."""
    name, to = ("masquerade", "") if address is None else ("snat", str(address))
    listed: dict[str, Any] = {"addr": to} if to else {}
    text = f" to {to}" if to else ""
    if ports:
        first, last = ports
        text = f" to {to}:{first}-{last} fully-random"
        listed |= {"port": {"range": [first, last]}, "flags": "fully-random"}
    return Piece(name + text, {name: listed or None})


FROM_ACCOUNTS, TO_ACCOUNTS = (
    tuple(on_interface(key, name) for name in (f"{LINKS}*", IKEV2_DEVICE)) for key in ("iifname", "oifname")
)
FROM_IKEV2, TO_IKEV2 = on_interface("iifname", IKEV2_DEVICE), on_interface("oifname", IKEV2_DEVICE)
