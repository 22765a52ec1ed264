"""Ports of the node that lead to accounts: by nftables with either backend.

Owns the table `ip wirelane_ports` whole, which is there while a port leads to somebody. Called by the writer. Why it is
so: docs/decisions/0031-port-forwarding.md.

    map own, map external   protocol, port : where to;   the same of one address alone, a server's external_ip
    arriving   prerouting, -100  from the uplink or an account, to an address of the map `external`: dnat
                                 the same to any address of the box itself: dnat by the map `own`
    strangers  forward, 50       the first packet of a connection that comes in by a port: drop where its target has as
                                 many as STRANGERS already (what an account begins itself is bounded apart, bounded.py),
                                 else its ends are remembered where it comes from an account
    leaving    postrouting, 99   what was remembered so: masquerade, for the target sees nobody's address in the tunnel

That such packets are let through is said in the forwarding of each backend, by the status that conntrack gives them.

`read` takes the ports from the elements, whatever else is damaged, and says with the entry `BROKEN` that something is.
`apply` changes elements; where the rest is not as it should be it makes the table anew, in one transaction. Connections
that came in by a port that goes are forgotten; all others go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Any

from agent.errors import KernelError
from agent.kernel.host import conntrack
from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.pieces import (
    BEGINNER,
    DROP,
    FROM_ACCOUNTS,
    LED,
    RETURN,
    TO_ACCOUNTS,
    match,
    on_interface,
)
from agent.kernel.nftables.ruleset import Chain, Expressions, Piece, Rule, Set, Table, Writing
from agent.model import IKEV2_DEVICE, INTERFACE_PATTERN
from agent.objects import Diff, Port, PortKey, Scope

TABLE = "wirelane_ports"
STRANGERS = 1_000  # connections that others have with one account by its ports
BROKEN: PortKey = ("", 0)
NOTHING = Port("", 0, IPv4Address(0), 0, None, "")
ARRIVING, LEAVING, BOUND = "arriving", "leaving", "strangers"
CHAINS = {
    ARRIVING: Chain("nat", "prerouting", -100),
    LEAVING: Chain("nat", "postrouting", 99),
    BOUND: Chain("filter", "forward", 50),
}
NUMBERS = {"tcp": 6, "udp": 17}
NAMES: dict[Any, str] = {6: "tcp", 17: "udp", "tcp": "tcp", "udp": "udp"}  # both spellings of a listing
_write = Writing(TABLE)


def _map(name: str, *of: str) -> Set:
    to = "ipv4_addr . inet_service"
    return Set("map", name, f"type {' . '.join(of)} : {to};", {"type": list(of), "map": to})


OWN = _map("own", "inet_proto", "inet_service")
EXTERNAL = _map("external", "ipv4_addr", "inet_proto", "inet_service")
HELD = Set("set", "held", "type ipv4_addr; size 65535; flags dynamic;", {})
INSIDE = Set("set", "inside", "type ipv4_addr . ipv4_addr; size 65535; flags dynamic,timeout; timeout 1s;", {})
SETS = (OWN, EXTERNAL, HELD, INSIDE)


def _led_by(one: Set) -> Piece:
    key: list[dict[str, Any]] = [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]
    text = "meta l4proto . th dport"
    if one is EXTERNAL:
        key, text = [{"payload": {"protocol": "ip", "field": "daddr"}}, *key], f"ip daddr . {text}"
    listed = {"family": "ip", "addr": {"map": {"key": {"concat": key}, "data": f"@{one.name}"}}}
    return Piece(f"dnat ip addr . port to {text} map @{one.name}", {"dnat": listed})


TO_THE_BOX = Piece("fib daddr type local", match({"fib": {"result": "type", "flags": ["daddr"]}}, "local"))
KNOWN = Piece("ct status confirmed", match({"ct": {"key": "status"}}, "confirmed", "in"))
TOO_MANY = Piece(
    f"add @{HELD.name} {{ ip daddr ct count over {STRANGERS} }}",
    {
        "set": {
            "op": "add",
            "elem": {"payload": {"protocol": "ip", "field": "daddr"}},
            "set": f"@{HELD.name}",
            "stmt": [{"ct count": {"val": STRANGERS, "inv": True}}],
        }
    },
)
# Rules that translate are not told where a packet came in.
_ENDS = {"concat": [{"payload": {"protocol": "ip", "field": field}} for field in ("saddr", "daddr")]}
REMEMBER = Piece(
    f"add @{INSIDE.name} {{ ip saddr . ip daddr }}", {"set": {"op": "add", "elem": _ENDS, "set": f"@{INSIDE.name}"}}
)
FROM_AN_ACCOUNT = Piece(f"ip saddr . ip daddr @{INSIDE.name}", match(_ENDS, f"@{INSIDE.name}"))
MASQUERADE = Piece("masquerade", {"masquerade": None})


def wanted_rules(uplink: str) -> dict[str, tuple[Rule, ...]]:
    came_in = (on_interface("iifname", uplink), *FROM_ACCOUNTS)
    return {
        ARRIVING: (
            *((one, _led_by(EXTERNAL)) for one in came_in),
            *((one, TO_THE_BOX, _led_by(OWN)) for one in came_in),
        ),
        LEAVING: tuple((to_link, FROM_AN_ACCOUNT, LED, BEGINNER, MASQUERADE) for to_link in TO_ACCOUNTS),
        BOUND: (
            (KNOWN, RETURN),
            *((to_link, LED, BEGINNER, TOO_MANY, DROP) for to_link in TO_ACCOUNTS),
            *((one, to_link, LED, BEGINNER, REMEMBER) for one in FROM_ACCOUNTS for to_link in TO_ACCOUNTS),
        ),
    }


class Ports:
    """`Part[PortKey, Port]`. Any thread, any network namespace; each call opens what it needs."""

    def read(self, scope: Scope) -> dict[PortKey, Port]:
        """What leads to somebody, and `BROKEN` if something is not right. Raises KernelError."""
        if not nft.has_table(TABLE):
            return {}
        table = _read_table()
        if table is None:
            return {}
        uplink = _uplink(table)
        found, strange = _ports(table, uplink)
        if strange or not found or not _is_whole(table, uplink):
            found[BROKEN] = NOTHING
        return found

    def apply(self, diff: Diff[PortKey, Port]) -> Mapping[PortKey, KernelError]:
        """One transaction. Raises KernelError; returns no errors of single ports."""
        if not diff:
            return {}
        table = _read_table()
        uplink = _uplink(table) if table else ""
        found, strange = _ports(table, uplink) if table else ({}, True)
        put = {**diff.add, **diff.change}
        final = {key: one for key, one in found.items() if key not in diff.remove} | put
        going = {key: one for key, one in found.items() if _changes(one, final.get(key))}
        leads_to = next((one.uplink for one in put.values()), uplink)
        if not final:
            nft.apply([_write.delete_table()] if table else [])
        # Where the uplink cannot be told, all ports are to be changed, which tells it.
        elif leads_to and (table is None or strange or leads_to != uplink or not _is_whole(table, uplink)):
            nft.apply(_anew(table, final.values(), leads_to))
        else:
            new = {key: one for key, one in final.items() if _changes(one, found.get(key))}
            nft.apply([*_elements("delete", going.values()), *_elements("add", new.values())])
        try:
            conntrack.forget_led(going.values())
        except KernelError as error:
            if error.retry:  # else a warning says what this kernel lacks
                raise
        return {}


def _changes(one: Port, other: Port | None) -> bool:
    """Does it lead elsewhere?"""
    return other is None or _element(one) != _element(other)


def _element(one: Port) -> tuple[str, str]:
    """The map, and what is in it."""
    key, to = f"{NUMBERS[one.protocol]} . {one.port}", f"{one.address} . {one.to_port}"
    return (EXTERNAL.name, f"{one.external_ip} . {key} : {to}") if one.external_ip else (OWN.name, f"{key} : {to}")


def _elements(verb: str, ports: Iterable[Port]) -> list[str]:
    texts: dict[str, list[str]] = {}
    for name, text in map(_element, ports):
        texts.setdefault(name, []).append(text)
    return [line for name, some in texts.items() for line in _write.elements(verb, name, some)]


def _anew(table: Table | None, ports: Iterable[Port], uplink: str) -> list[str]:
    if not INTERFACE_PATTERN.fullmatch(uplink):  # nft(8) would take some for a pattern
        raise KernelError(f"nftables: the uplink's name {uplink!r} cannot be used in a rule", retry=False)
    lines = [_write.add_table(), _write.delete_table()] if table else []
    lines += [_write.add_table(), *map(_write.add_set, SETS)]
    lines += [_write.add_chain(name, chain) for name, chain in CHAINS.items()]
    lines += [line for chain, rules in wanted_rules(uplink).items() for line in _write.add_rules(chain, rules)]
    return [*lines, *_elements("add", ports)]


# -- what is there ------------------------------------------------------------------------------------------------


def _read_table() -> Table | None:
    return ruleset.find(nft.listing(TABLE), TABLE)


def _uplink(table: Table) -> str:
    """As the rules name it; "" = it cannot be told."""
    for rule in table.rules.get(ARRIVING, []):
        if any(rule[:-1] == [one.listed] for one in (on_interface("iifname", name) for name in _named(rule))):
            return _named(rule)[0]
    return ""


def _named(rule: Expressions) -> list[str]:
    """The interface that a rule begins with, where it is none of the accounts'."""
    name = rule[0].get("match", {}).get("right") if rule and isinstance(rule[0], dict) else None
    return [name] if isinstance(name, str) and INTERFACE_PATTERN.fullmatch(name) and name != IKEV2_DEVICE else []


def _is_whole(table: Table, uplink: str) -> bool:
    """Is everything but the elements as it should be, and nothing else there?"""
    sets = table.sets.keys() == {one.name for one in SETS}
    led = all(table.has_rules(chain, rules) for chain, rules in wanted_rules(uplink).items())
    return table.chains == CHAINS and sets and led and not (table.flags or table.others)


def _ports(table: Table, uplink: str) -> tuple[dict[PortKey, Port], bool]:
    """From the elements; and whether there is anything else among them."""
    found: dict[PortKey, Port] = {}
    strange = False
    for one in (OWN, EXTERNAL):
        if not table.holds(one):
            strange = True
            continue
        for element in nft.elements(TABLE, one.name):
            port = _port(element, uplink)
            strange = strange or port is None or port.key in found
            if port is not None:
                found.setdefault(port.key, port)
    return found, strange


def _port(element: Any, uplink: str) -> Port | None:
    try:
        key, to = (part["concat"] for part in element)
        *at, protocol, port = key
        external = IPv4Address(at[0]) if at else None
        return Port(NAMES[protocol], int(port), IPv4Address(to[0]), int(to[1]), external, uplink)
    except (KeyError, TypeError, ValueError, IndexError):
        return None
