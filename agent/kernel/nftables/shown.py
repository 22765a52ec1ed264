"""The rules of one server, as its people want to see them: NAT and forwarding. They do not count here. Reads only.

Called by linux.py for the live reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.forwarding import FORWARD, NAT, TABLE, matched, network_of, source_of
from agent.kernel.nftables.ruleset import Expressions
from agent.objects import ANYWHERE, THE_INTERNET, ShownRule, ShownRules, summed


def shown(interface: str, network: IPv4Network) -> ShownRules:
    """As they stand, right or not. Raises KernelError."""
    table = ruleset.find(nft.listing(TABLE), TABLE)
    rules = table.rules if table else {}
    nat = [rule for rule in rules.get(NAT, []) if network_of(matched(rule, "saddr")) == network]
    through = [
        rule for rule in rules.get(FORWARD, []) if interface in (matched(rule, "iifname"), matched(rule, "oifname"))
    ]
    return ShownRules(
        summed(ShownRule(str(network), ANYWHERE, _translation(rule)) for rule in nat),
        summed(_forward(rule, interface, network) for rule in through),
    )


def _translation(rule: Expressions) -> str:
    address = source_of(rule)
    return "MASQUERADE" if address is None else f"SNAT to:{address}"


def _forward(rule: Expressions, interface: str, network: IPv4Network) -> ShownRule:
    """A rule that names only the link is about the network behind it."""
    source, destination = (_network(matched(rule, field)) for field in ("saddr", "daddr"))
    if source == ANYWHERE and matched(rule, "iifname") == interface:
        source = str(network)
    if destination == ANYWHERE and matched(rule, "oifname") == interface:
        destination = str(network)
    if matched(rule, "daddr", "!=") is not None:
        destination = THE_INTERNET
    return ShownRule(source, destination, _verdict(rule))


def _network(listed: object) -> str:
    return ANYWHERE if listed is None else str(network_of(listed))


def _verdict(rule: Iterable[object]) -> str:
    names = [name.upper() for piece in rule if isinstance(piece, dict) for name in piece if name in ("accept", "drop")]
    return " ".join(names)
