"""The rules of one server, as its people want to see them: NAT and forwarding, with what they counted. Reads only.

Called by linux.py for the live reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

from agent.kernel.iptables import entries, tables
from agent.kernel.iptables.entries import Rule
from agent.kernel.iptables.forwarding import FORWARD, NAT, REACH
from agent.objects import THE_INTERNET, ShownRule, ShownRules, summed


def shown(interface: str, network: IPv4Network) -> ShownRules:
    """As they stand, right or not. Raises KernelError."""
    nat = [rule for rule in _rules("nat", NAT.chain) if entries.source(rule.entry) == network]
    through = [
        rule
        for rule in _rules("filter", FORWARD.chain)
        if interface in (entries.in_interface(rule.entry), entries.out_interface(rule.entry))
    ]
    return ShownRules(summed(map(_nat, nat)), summed(_forward(rule, interface, network) for rule in through))


def _rules(table: str, chain: str) -> Iterable[Rule]:
    return tables.read(table).rules(chain) if tables.has_table(table) else ()


def _nat(rule: Rule) -> ShownRule:
    address = entries.snat_address(rule.entry)
    target = rule.target if address is None else f"{rule.target} to:{address}"
    return _counted(rule, str(entries.source(rule.entry)), str(entries.destination(rule.entry)), target)


def _forward(rule: Rule, interface: str, network: IPv4Network) -> ShownRule:
    """A rule that names only the link is about the network behind it."""
    source, destination = entries.source(rule.entry), entries.destination(rule.entry)
    if not source.prefixlen and entries.in_interface(rule.entry) == interface:
        source = network
    if not destination.prefixlen and entries.out_interface(rule.entry) == interface:
        destination = network
    if rule.target == REACH:
        return _counted(rule, str(source), THE_INTERNET, "ACCEPT")
    return _counted(rule, str(source), str(destination), rule.target)


def _counted(rule: Rule, source: str, destination: str, target: str) -> ShownRule:
    return ShownRule(source, destination, target, rule.packets, rule.octets)
