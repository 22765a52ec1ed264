"""What other rules of nftables on this host do to packets of ours: drop them all, or carry them past us.

Owns nothing and changes nothing: it reads the ruleset and walks a few packets through it, in thought. A base chain of
somebody else that lets none of them through is told with the cure; a packet that only perhaps gets through is not told,
for the warning has to be right. Our accepts cannot help: in nftables, and beside legacy iptables too, each base chain
has to let a packet pass. Called after each full pass, and by the doctor.

Rules that iptables-nft wrote (ufw, Docker) hold matches that a listing only names; of these the one for states of
connections is read by hand (`states`), since nearly every firewall begins with it. All others count as "perhaps".

A flowtable is another thing: what it has taken goes from interface to interface past marks and classes, unlimited and
uncounted. If its devices are ours or the uplink, that is a problem of the node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.errors import KernelError
from agent.kernel.nftables import nft
from agent.kernel.nftables.packet import Packet, Rules, outcomes, with_states
from agent.model import SOMEBODY
from agent.objects import Forwarding

OURS = {("inet", "wirelane_filter")} | {
    ("ip", name) for name in ("wirelane", "wirelane_forwarding", "wirelane_connections", "wirelane_ports")
}
FAMILIES = ("ip", "inet")
Key = tuple[str, str]  # family and table


@dataclass(slots=True)
class Ruleset:
    """The tables of others, by family and name, as far as they filter IPv4."""

    unread: str = ""  # why it could not be read
    bases: list[Mapping[str, Any]] = field(default_factory=list)
    rules: dict[Key, dict[str, list[list[dict[str, Any]]]]] = field(default_factory=dict)
    flowtables: list[Mapping[str, Any]] = field(default_factory=list)


def parse(objects: Iterable[Mapping[str, Any]], states: Mapping[nft.Place, list[int]]) -> Ruleset:
    """`states`: see `nft.conntrack_states`."""
    found = Ruleset()
    for entry in objects:
        for kind, value in entry.items():
            if kind not in ("chain", "rule", "flowtable") or value["family"] not in FAMILIES:
                continue
            key = value["family"], value["table"]
            if key in OURS:
                continue
            if kind == "flowtable":
                found.flowtables.append(value)
            elif kind == "rule":
                place = (*key, value["chain"], value["handle"])
                expressions = with_states(value["expr"], states.get(place, []))
                found.rules.setdefault(key, {}).setdefault(value["chain"], []).append(expressions)
            else:
                found.rules.setdefault(key, {}).setdefault(value["name"], [])
                if value.get("hook") in ("forward", "input") and value.get("type") == "filter":
                    found.bases.append(value)
    return found


def read() -> Ruleset:
    """Empty where there is no nftables. What others wrote must not stop us: what cannot be read is told."""
    try:
        return _read()
    except KernelError as error:
        return Ruleset(str(error) if error.retry else "")


def _read() -> Ruleset:
    objects = nft.everything()
    hand = any("xt" in piece for one in objects for piece in one.get("rule", {}).get("expr", []) if piece)
    return parse(objects, nft.conntrack_states() if hand else {})


# -- what drops ---------------------------------------------------------------------------------------------------


def warnings(ruleset: Ruleset, forwardings: Collection[Forwarding]) -> tuple[str, ...]:
    """A sentence for each base chain that swallows what our servers live from."""
    told = [f"the rules of others cannot be told: {ruleset.unread}"] if ruleset.unread else []
    for base in ruleset.bases:
        rules = ruleset.rules[base["family"], base["table"]]
        swallowed = [one for one in forwardings if _is_swallowed(base, rules, one)]
        if swallowed:
            told.append(_sentence(base, rules, sorted(swallowed, key=lambda one: one.interface)))
    return tuple(told)


def _is_swallowed(base: Mapping[str, Any], rules: Rules, one: Forwarding) -> bool:
    policy = base.get("policy", "accept")
    try:
        ends = [outcomes(rules, base["name"], policy, packet) for packet in _packets(base["hook"], one)]
    except (LookupError, TypeError, ValueError, AttributeError):  # listed in words that nobody knows yet
        return False
    return any("accept" not in end for end in ends)


def _packets(hook: str, one: Forwarding) -> Iterator[Packet]:
    """What has to get through, or nothing of a server works."""
    if hook == "input":
        if one.listen_port:
            yield Packet(one.uplink, "", SOMEBODY, None, "udp", 40_000, one.listen_port, "new")
        return
    client, there = one.client, one.target
    yield Packet(one.interface, one.uplink, client, there, "tcp", 40_000, 443, "new")
    yield Packet(one.uplink, one.interface, there, client, "tcp", 443, 40_000, "established")


def _sentence(base: Mapping[str, Any], rules: Rules, swallowed: list[Forwarding]) -> str:
    family, table, chain, hook = base["family"], base["table"], base["name"], base["hook"]
    links = ", ".join(one.interface for one in swallowed)
    what = f"what clients send to the ports of {links}" if hook == "input" else f"the traffic of accounts of {links}"
    cure = "; ".join(dict.fromkeys(line for one in swallowed for line in _cure(base, rules, one)))
    how = f"hook {hook}, policy {base.get('policy', 'accept')}"
    return (
        f"a firewall of this host drops {what}: chain {chain} of nftables table {family} {table} ({how}). Cure: {cure}"
    )


def _cure(base: Mapping[str, Any], rules: Rules, one: Forwarding) -> tuple[str, ...]:
    """In the words of who made the chain, for they write it again when they start."""
    link, uplink, port = one.interface, one.uplink, one.listen_port
    forward = base["hook"] == "forward"
    if any(chain.startswith("ufw-") for chain in rules):
        return (f"ufw route allow in on {link} out on {uplink}",) if forward else (f"ufw allow {port}/udp",)
    if base["table"] == "firewalld":
        opened = f"--zone=trusted --add-interface={link}" if forward else f"--add-port={port}/udp"
        return (f"firewall-cmd --permanent {opened}", "firewall-cmd --reload")
    if forward and "DOCKER-USER" in rules:
        user = "iptables -I DOCKER-USER"
        return (
            f"{user} -i {link} -o {uplink} -j ACCEPT",
            f"{user} -i {uplink} -o {link} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        )
    insert = f"nft insert rule {base['family']} {base['table']} {base['name']}"
    if not forward:
        return (f"{insert} udp dport {port} accept",)
    return (
        f'{insert} iifname "{link}" oifname "{uplink}" accept',
        f'{insert} iifname "{uplink}" oifname "{link}" ct state established,related accept',
    )


# -- what passes us by --------------------------------------------------------------------------------------------


def problem(ruleset: Ruleset, devices: Collection[str]) -> str:
    """What is wrong with the node as a whole; "" = nothing. `devices`: our links and the uplink."""
    told = []
    for one in ruleset.flowtables:
        named = one.get("dev", [])
        taken = sorted({named} & set(devices) if isinstance(named, str) else set(named) & set(devices))
        if taken:
            at = f"{one['family']} {one['table']} {one['name']}"
            told.append(
                f"the nftables flowtable {at} takes {', '.join(taken)}: connections pass unlimited and uncounted. "
                f"Cure: take these devices out of it, or the flowtable away with its rules (flow add @{one['name']}); "
                f"it is shown by: nft list flowtable {at}"
            )
    return "; ".join(told)
