"""The operator's rules for what accounts send and get: by nftables with either backend.

Owns the table `inet wirelane_filter` whole, which is there while there are such rules. Called by the writer. Why it is
so: docs/decisions/0032-filter-rules.md.

    forward   forward, 10   from a device of ours: goto rules;   to one: goto rules
    rules                   the operator's, in order: accept or drop; behind the last: on its way

They only take away: a packet that they accept has still to get through what a server's `reach` and `internal_traffic`
leave open, which is another table's. What they drop is not counted for anybody: that happens behind (dataplane:
POSTROUTING).

`read` guesses the rules from the listing, makes of them what should be listed, and believes them where it is that.
`apply` makes the table anew, in one transaction: no packet meets half of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from agent.errors import InvalidValue, KernelError
from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.pieces import ACCEPT, DROP, match, on_interface, on_network, on_port
from agent.kernel.nftables.ruleset import Chain, Expressions, Piece, Rule, Table, Writing, matched, normal
from agent.model import FilterRule
from agent.objects import DAMAGED, FILTER_KEY, Diff, Filter, Scope

TABLE, FAMILY = "wirelane_filter", "inet"
FORWARD, RULES = "forward", "rules"
HOOK = Chain("filter", "forward", 10)
EVERYWHERE: dict[int, IPv4Network | IPv6Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
ICMP = {4: "icmp", 6: "icmpv6"}
GOTO = Piece(f"goto {RULES}", {"goto": {"target": RULES}})
_write = Writing(TABLE, FAMILY)


def _meta(key: str, word: str) -> Piece:
    return Piece(f"meta {key} {word}", match({"meta": {"key": key}}, word))


def wanted_rule(one: FilterRule) -> Rule:
    """In the words in which it is listed: what another piece implies is left out there."""
    version, networks = one.source.version, (("saddr", one.source), ("daddr", one.destination))
    ends = tuple(on_network(field, network) for field, network in networks if network != EVERYWHERE[version])
    ports = ("sport", one.source_port), ("dport", one.destination_port)
    what = tuple(on_port(field, port, one.protocol) for field, port in ports if port)
    if one.protocol == "icmp":
        what = (_meta("l4proto", ICMP[version]),)
    else:
        ends = ends or (_meta("nfproto", f"ipv{version}"),)
        if one.protocol != "any":
            what = what or (_meta("l4proto", one.protocol),)
    return *ends, *what, ACCEPT if one.accepts else DROP


def _device(key: str, devices: Iterable[str]) -> Piece:
    names = sorted(devices)
    if len(names) == 1:
        return on_interface(key, names[0])
    quoted = ", ".join(f'"{name}"' for name in names)
    return Piece(f"{key} {{ {quoted} }}", match({"meta": {"key": key}}, {"set": names}))


def wanted_rules(one: Filter) -> dict[str, tuple[Rule, ...]]:
    return {
        FORWARD: tuple((_device(key, one.devices), GOTO) for key in ("iifname", "oifname")),
        RULES: tuple(map(wanted_rule, one.rules)),
    }


class Filters:
    """`Part[str, Filter]`. Any thread, any network namespace; each call opens what it needs."""

    def read(self, scope: Scope) -> dict[str, Filter]:
        """DAMAGED where something is not right. Raises KernelError."""
        if not nft.has_table(TABLE, FAMILY):
            return {}
        table = ruleset.find(nft.listing(TABLE, FAMILY), TABLE, FAMILY)
        return {FILTER_KEY: _guessed(table)} if table else {}

    def apply(self, diff: Diff[str, Filter]) -> Mapping[str, KernelError]:
        """One transaction. Raises KernelError."""
        one = (dict(diff.add) | dict(diff.change)).get(FILTER_KEY)
        lines = [_write.add_table(), _write.delete_table()] if one or nft.has_table(TABLE, FAMILY) else []
        if one:
            lines += [_write.add_table(), _write.add_chain(FORWARD, HOOK), _write.add_plain_chain(RULES)]
            for chain, rules in wanted_rules(one).items():
                lines += _write.add_rules(chain, rules)
        nft.apply(lines)
        return {}


# -- what is there ------------------------------------------------------------------------------------------------


def _guessed(table: Table) -> Filter:
    led = table.rules.get(FORWARD, [])
    named = matched(led[0], "iifname") if led else None
    devices = named.get("set") if isinstance(named, dict) else [named]
    if not isinstance(devices, list) or not all(isinstance(name, str) for name in devices):
        return DAMAGED
    try:
        rules = tuple(map(_rule, table.rules.get(RULES, [])))
    except (ValueError, TypeError, LookupError, AttributeError, InvalidValue):
        return DAMAGED
    one = Filter(rules, frozenset(devices))
    is_whole = table.chains == {FORWARD: HOOK, RULES: None} and not (table.flags or table.sets or table.others)
    is_whole = is_whole and all(table.has_rules(chain, wanted) for chain, wanted in wanted_rules(one).items())
    return one if rules and is_whole else DAMAGED


def _rule(listed: Expressions) -> FilterRule:
    """What it seems to be. Raises one of many errors where it is nothing of ours."""
    protocol = matched(normal(listed), "l4proto")
    ends = [_network(matched(listed, field)) for field in ("saddr", "daddr")]
    known = next((end.version for end in ends if end), 0)
    version = known or (6 if matched(listed, "nfproto") == "ipv6" or protocol == ICMP[6] else 4)
    source, destination = (end or EVERYWHERE[version] for end in ends)
    ports = [matched(listed, field) or 0 for field in ("sport", "dport")]
    if any(ports):
        protocol = next((name for name in ("tcp", "udp") if _names(listed, name)), "none")
    said = "icmp" if protocol in ICMP.values() else protocol or "any"
    return FilterRule("accept" in listed[-1], source, destination, said, *map(int, ports))


def _names(listed: Expressions, protocol: str) -> bool:
    """Of a field of the packet."""
    compared = (piece.get("match", {}).get("left", {}) for piece in listed)
    return any(left.get("payload", {}).get("protocol") == protocol for left in compared)


def _network(listed: Any) -> IPv4Network | IPv6Network | None:
    if listed is None:
        return None
    prefix = listed["prefix"] if isinstance(listed, dict) else None
    return ip_network((prefix["addr"], prefix["len"])) if prefix else ip_network(listed)
