"""The rules of one server, as its people want to see them: NAT and forwarding. They do not count here. Reads only.

Called by linux.py for the live reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.forwarding import FORWARD, NAT, TABLE, source_of
from agent.kernel.nftables.ruleset import Expressions, matched
from agent.objects import ANYWHERE, ANYWHERE_IPV6, THE_INTERNET, ShownRule, ShownRules, summed


def shown(interface: str, network: IPv4Network | IPv6Network) -> ShownRules:
    """Those of the network's family, as they stand, right or not. Raises KernelError."""
    family, anywhere = ("ip", ANYWHERE) if network.version == 4 else ("ip6", ANYWHERE_IPV6)
    table = ruleset.find(nft.listing(TABLE, family), TABLE, family)
    rules = table.rules if table else {}
    nat = [rule for rule in rules.get(NAT, []) if _network(matched(rule, "saddr")) == str(network)]
    through = [
        rule for rule in rules.get(FORWARD, []) if interface in (matched(rule, "iifname"), matched(rule, "oifname"))
    ]
    return ShownRules(
        summed(ShownRule(str(network), anywhere, _translation(rule)) for rule in nat),
        summed(_forward(rule, interface, str(network), anywhere) for rule in through),
    )


def _translation(rule: Expressions) -> str:
    address = source_of(rule)
    return "MASQUERADE" if address is None else f"SNAT to:{address}"


def _forward(rule: Expressions, interface: str, network: str, anywhere: str) -> ShownRule:
    """A rule that names only the link is about the network behind it."""
    source, destination = (_network(matched(rule, field)) or anywhere for field in ("saddr", "daddr"))
    if (others := _network(matched(rule, "saddr", "!="))) is not None:
        source = f"!{others}"
    elif source == anywhere and matched(rule, "iifname") == interface:
        source = network
    if destination == anywhere and matched(rule, "oifname") == interface:
        destination = network
    if matched(rule, "daddr", "!=") is not None:
        destination = THE_INTERNET
    return ShownRule(source, destination, _verdict(rule))


def _network(listed: Any) -> str | None:
    """None = the rule names none, or none that we would write."""
    prefix = listed.get("prefix", {}) if isinstance(listed, dict) else {"addr": listed}
    try:
        return str(ip_network(f"{prefix['addr']}/{prefix['len']}" if "len" in prefix else prefix["addr"]))
    except (KeyError, ValueError):
        return None


def _verdict(rule: Iterable[object]) -> str:
    names = [name.upper() for piece in rule if isinstance(piece, dict) for name in piece if name in ("accept", "drop")]
    return " ".join(names)
