"""What lets the traffic of a server through, by nftables: NAT, forward and input rules, MSS clamp, and the switch of
forwarding.

Owns the table `ip wirelane_forwarding` whole; whatever else is found in it goes; and what `ip_forward` owns. Touches no
other table or setting. Called by the writer on hosts whose marks are nftables' too; iptables/forwarding.py is the
same for legacy iptables, and says why each rule is there.

    postrouting   nat, 100       network to the uplink: snat to the external address, or masquerade; TCP and UDP to
                                 ports of our choice
    clamp         forward, -150  TCP SYNs from and to the link: MSS clamped to the path
    forward       forward, 0     by a port that leads to an account (ports.py), and its answers: accept
                                 from the link, of no connection, or an error about one: drop
                                 link to uplink from its network, to the networks of its reach: accept
                                 the same to what is the internet, where its reach has that: accept
                                 uplink to link to its network, if it belongs to a connection: accept
                                 link to the same link: accept or drop (internal_traffic)
                                 all else from or to the link: drop
                                 at the end what came in on the uplink for others: drop or return, see `ip_forward`
    input         input, 0       from the link: answers to the box, echo requests and what is opened: accept; else drop
                                 UDP to the server's port, not from a link: accept

A server with IKEv2 has the same once more for `ipsec0`, as in iptables.

What differs from iptables: an accept ends only our own chain. It does not overrule a drop in another table, so where
the host closes forwarding or input by itself (firewalld, ufw, Docker's policy), the host has to let the network and the
port through (`foreign` says where it does not). A drop of ours is final whatever others say. Our accepts of input open
nothing then; they say what is meant, and are how `read` knows a server's port.

`read` computes, as there, the rules that each interface's Forwarding would have and compares them with those that
libnftables lists. If anything in the table is wrong, one more entry under the key `BROKEN` says so. `apply` writes
all rules anew, in one transaction: none of them counts, and connections keep their translation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

from agent.errors import KernelError
from agent.kernel.host import ip_forward
from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.pieces import (
    ACCEPT,
    ANSWER,
    BEGINNER,
    CLAMP,
    DROP,
    ECHO,
    ESTABLISHED,
    FROM_ACCOUNTS,
    FROM_IKEV2,
    LED,
    NEW_OR_KNOWN,
    REPLY,
    STRAY,
    SYN,
    TCP_OR_UDP,
    THE_INTERNET,
    TO_ACCOUNTS,
    TO_IKEV2,
    VERDICTS,
    on_interface,
    on_network,
    to_port,
    translation,
)
from agent.kernel.nftables.ruleset import Chain, Expressions, Piece, Rule, Table, Writing, matched, normal
from agent.model import IKEV2_DEVICE, INTERFACE_PATTERN, Reach
from agent.objects import IKEV2_PORTS, NAT_PORTS, Diff, Forwarding, Opening, Scope

TABLE = "wirelane_forwarding"
BROKEN = ""
"""Key of the extra entry in what `read` returns when our table is damaged. It is never the name of an interface."""
NOTHING = Forwarding(BROKEN, IPv4Interface("0.0.0.0/32"), "", 0, False, None)

NAT, MSS, FORWARD, INPUT = "postrouting", "clamp", "forward", "input"
CHAINS = {
    NAT: Chain("nat", "postrouting", 100),
    MSS: Chain("filter", "forward", -150),
    FORWARD: Chain("filter", "forward", 0),
    INPUT: Chain("filter", "input", 0),
}
Rules = Mapping[str, tuple[Rule, ...]]  # by chain, in order

_write = Writing(TABLE)


# -- what should be there -----------------------------------------------------------------------------------------


# Of the device by which the accounts of several servers come in: what belongs to none of them.
BY_IKEV2: Rules = {
    NAT: (),
    MSS: ((FROM_IKEV2, SYN, CLAMP), (TO_IKEV2, SYN, CLAMP)),
    FORWARD: ((FROM_IKEV2, DROP), (TO_IKEV2, DROP)),
    INPUT: (
        (FROM_IKEV2, DROP),
        *((on_interface("iifname", IKEV2_DEVICE, "!="), to_port(port), ACCEPT) for port in sorted(IKEV2_PORTS)),
    ),
}


@lru_cache(1024)
def wanted_rules(forwarding: Forwarding, opened: tuple[Opening, ...] = ()) -> Rules:
    """The rules of one interface."""
    network, external = forwarding.network, forwarding.external_ip
    from_link, to_link = on_interface("iifname", forwarding.interface), on_interface("oifname", forwarding.interface)
    elsewhere = on_interface("iifname", forwarding.interface, "!=")
    own = on_network("daddr", IPv4Network(forwarding.address.ip))
    doors = (ECHO, *(to_port(one.port, one.protocol) for one in opened))
    source = on_network("saddr", network)
    in_by_ikev2: tuple[Rule, ...] = (
        (FROM_IKEV2, source, ANSWER, REPLY, ACCEPT),
        *((FROM_IKEV2, source, own, door, ACCEPT) for door in doors),
    )
    out_of = (source, on_interface("oifname", forwarding.uplink))
    nat = (
        (*out_of, TCP_OR_UDP, translation(external, forwarding.nat_ports)),
        (*out_of, translation(external, None)),
    )
    return {
        NAT: nat if forwarding.uplink else (),
        MSS: ((from_link, SYN, CLAMP), (to_link, SYN, CLAMP)),
        FORWARD: (
            (from_link, STRAY, DROP),
            *(_by_ikev2(forwarding) if forwarding.ikev2 else ()),
            *_outside(forwarding, from_link, to_link),
            (from_link, to_link, ACCEPT if forwarding.internal_traffic else DROP),
            (from_link, DROP),
            (to_link, DROP),
        ),
        # The rule of the port names the link again, to be told to be its own.
        INPUT: (
            (from_link, ANSWER, REPLY, ACCEPT),
            *((from_link, own, door, ACCEPT) for door in doors),
            (from_link, DROP),
            *(in_by_ikev2 if forwarding.ikev2 else ()),
            *([(elsewhere, to_port(forwarding.listen_port), ACCEPT)] if forwarding.listen_port else []),
        ),
    }


def _outside(one: Forwarding, came_in: Piece, goes_out: Piece) -> tuple[Rule, ...]:
    """Between the uplink and the device by which its accounts come in."""
    if not one.uplink:
        return ()
    from_uplink, to_uplink = on_interface("iifname", one.uplink), on_interface("oifname", one.uplink)
    reached = [on_network("daddr", network) for network in one.reach.networks]
    reached += [THE_INTERNET] if one.reach.internet else []
    ways = ((came_in, to_uplink, on_network("saddr", one.network), there, ACCEPT) for there in reached)
    return *ways, (from_uplink, goes_out, on_network("daddr", one.network), ESTABLISHED, ACCEPT)


def _by_ikev2(one: Forwarding) -> tuple[Rule, ...]:
    """Of its own accounts alone, for others come in there too."""
    source, destination = on_network("saddr", one.network), on_network("daddr", one.network)
    from_link, to_link = on_interface("iifname", one.interface), on_interface("oifname", one.interface)
    inside = ((FROM_IKEV2, TO_IKEV2), (FROM_IKEV2, to_link), (from_link, TO_IKEV2)) if one.internal_traffic else ()
    return (
        (FROM_IKEV2, source, STRAY, DROP),
        *_outside(one, FROM_IKEV2, TO_IKEV2),
        *((came_in, goes_out, source, destination, ACCEPT) for came_in, goes_out in inside),
        (FROM_IKEV2, source, DROP),
        (TO_IKEV2, destination, DROP),
    )


def all_rules(
    forwardings: Iterable[Forwarding], opened: tuple[Opening, ...] = (), endings: Mapping[str, str] | None = None
) -> Rules:
    """The chains whole, interfaces in order of their names; in input first all that is closed, as in iptables."""
    ordered = sorted(forwardings, key=lambda one: one.interface)
    each = [wanted_rules(one, opened) for one in ordered]
    if any(one.ikev2 for one in ordered):
        each.append(BY_IKEV2)
    joined = {chain: tuple(rule for rules in each for rule in rules[chain]) for chain in CHAINS}
    joined[INPUT] = tuple(sorted(joined[INPUT], key=lambda rule: "!=" in rule[0].text))
    last = ((on_interface("iifname", uplink), VERDICTS[verdict]) for uplink, verdict in (endings or {}).items())
    return {**joined, FORWARD: (*BY_A_PORT, *joined[FORWARD], *last)}


# To an account by a port of the box that leads to it, and its answers: whatever is closed to its server.
BY_A_PORT: tuple[Rule, ...] = (
    *((to_link, LED, BEGINNER, NEW_OR_KNOWN, ACCEPT) for to_link in TO_ACCOUNTS),
    *((from_link, LED, REPLY, ANSWER, ACCEPT) for from_link in FROM_ACCOUNTS),
)


# -- what is there ------------------------------------------------------------------------------------------------


def _listed(rule: Rule) -> Expressions:
    listed: Expressions = normal([piece.listed for piece in rule])
    return listed


def network_of(listed: Any) -> IPv4Network | None:
    prefix = listed.get("prefix", {}) if isinstance(listed, dict) else {"addr": listed, "len": 32}
    try:
        return IPv4Network((prefix.get("addr"), prefix.get("len")))
    except ValueError:
        return None


def source_of(rule: Expressions) -> IPv4Address | None:
    for piece in rule:
        if isinstance(piece, dict) and isinstance(piece.get("snat"), dict):
            try:
                return IPv4Address(piece["snat"].get("addr"))
            except ValueError:
                return None
    return None


def _nat_ports(rule: Expressions) -> tuple[int, int] | None:
    """Of a translation; None = it leaves ports alone."""
    for piece in rule:
        said = (piece.get("snat") or piece.get("masquerade")) if isinstance(piece, dict) else None
        listed = said.get("port") if isinstance(said, dict) else None
        match listed.get("range") if isinstance(listed, dict) else None:
            case [int(first), int(last)]:
                return first, last
    return None


def guessed(rules: Mapping[str, list[Expressions]]) -> dict[str, Forwarding]:
    """The Forwarding that the listed rules of each interface seem to be, right or not."""
    inputs = rules.get(INPUT, [])
    ports = {matched(rule, "iifname", "!="): matched(rule, "dport") for rule in inputs}
    own = {
        matched(rule, "iifname"): network_of(matched(rule, "daddr"))
        for rule in inputs
        if matched(rule, "type") is not None
    }
    sources = {
        (network_of(matched(rule, "saddr")), matched(rule, "oifname")): source_of(rule) for rule in rules.get(NAT, [])
    }
    ports_of = {network_of(matched(rule, "saddr")): found for rule in rules.get(NAT, []) if (found := _nat_ports(rule))}
    guesses: dict[str, Forwarding] = {}
    for rule in rules.get(FORWARD, []):
        link, uplink, network = matched(rule, "iifname"), matched(rule, "oifname"), network_of(matched(rule, "saddr"))
        port, address = ports.get(link, 0), own.get(link)
        if (
            link in (*guesses, IKEV2_DEVICE)
            or not isinstance(port, int)
            or network is None
            or (network, uplink) not in sources
        ):
            continue
        if address is None:
            continue
        inside = _listed((on_interface("iifname", link), on_interface("oifname", link), ACCEPT))
        internal = inside in rules.get(FORWARD, [])
        interface = IPv4Interface((address.network_address, network.prefixlen))
        reach = _reach(rules, link, uplink)
        external, nat_ports = sources[network, uplink], ports_of.get(network, NAT_PORTS)
        said = Forwarding(link, interface, uplink, port, internal, external, reach, nat_ports)
        ikev2 = _listed((FROM_IKEV2, on_network("saddr", network), DROP)) in rules.get(FORWARD, [])
        guesses[link] = replace(said, ikev2=ikev2)
    return guesses


def _reach(rules: Mapping[str, list[Expressions]], link: str, uplink: str) -> Reach:
    internet, networks = False, []
    for rule in rules.get(FORWARD, []):
        if (matched(rule, "iifname"), matched(rule, "oifname")) != (link, uplink):
            continue
        there = network_of(matched(rule, "daddr"))
        internet = internet or matched(rule, "daddr", "!=") is not None
        if there is not None:
            networks.append(there)
    return Reach(internet, tuple(networks))


def sound(found: Mapping[str, list[Expressions]], opened: tuple[Opening, ...] = ()) -> dict[str, Forwarding]:
    """The interfaces whose rules are all there, once, in order. `found`: as listed, normal."""
    right = {}
    for interface, forwarding in guessed(found).items():
        wanted = {chain: [_listed(rule) for rule in rules] for chain, rules in wanted_rules(forwarding, opened).items()}
        if all(wanted[chain] == [rule for rule in found.get(chain, []) if rule in wanted[chain]] for chain in CHAINS):
            right[interface] = forwarding
    return right


def last_rules(found: Mapping[str, list[Expressions]]) -> dict[str, str]:
    """DROP or RETURN by uplink, as `ip_forward` means them. What is dropped both ways is a link."""
    rules, ends = found.get(FORWARD, []), {}
    for rule in rules:
        device = matched(rule, "iifname")
        for verdict, piece in VERDICTS.items():
            if isinstance(device, str) and rule == _listed((on_interface("iifname", device), piece)):
                ends[device] = verdict
    return {
        device: end for device, end in ends.items() if _listed((on_interface("oifname", device), DROP)) not in rules
    }


# -- the door -----------------------------------------------------------------------------------------------------


class NftForwardings:
    """`Part[str, Forwarding]`. Any thread, any network namespace; each call opens what it needs.

    `opened`: what of the box accounts may use.
    """

    def __init__(self, opened: tuple[Opening, ...] = ()) -> None:
        self._opened = opened

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        """What is right, and `BROKEN` if something is not. Raises KernelError."""
        table = _read_table()
        if table is None:
            return {}
        if not is_framed(table):
            return {BROKEN: NOTHING}
        rules = _rules(table)
        right = sound(rules, self._opened)
        uplinks = {one.uplink for one in right.values()}
        wanted = all_rules(right.values(), self._opened, ip_forward.endings(uplinks, right, last_rules(rules)))
        whole = bool(right) and all(table.has_rules(chain, wanted[chain]) for chain in CHAINS)
        result = {link: one for link, one in right.items() if not ip_forward.is_off(link)}
        if not whole or any(map(ip_forward.is_off, uplinks)):
            result[BROKEN] = NOTHING
        return result

    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]:
        """One transaction. Raises KernelError; returns no errors of single interfaces."""
        if not diff:
            return {}
        table = _read_table()
        rules = _rules(table) if table else {}
        # What is wanted and not right is in `add`; what is not right and not there belongs to nobody.
        stay = {key: one for key, one in sound(rules, self._opened).items() if key not in diff.remove}
        final = stay | {**diff.add, **diff.change}
        last = last_rules(rules)
        uplinks = ip_forward.uplinks(final.values(), last)
        endings = ip_forward.endings(uplinks, final, last)
        ip_forward.switch_back(last, uplinks)
        if final:
            _write_all(table, final.values(), all_rules(final.values(), self._opened, endings))
            ip_forward.switch_on(final, uplinks)
        elif table is not None:
            nft.apply([_write.delete_table()])
        return {}

    def is_there(self) -> bool:
        """Is anything of ours there? Raises KernelError; False where there is no nftables."""
        return nft.has_table(TABLE)

    def clear(self) -> None:
        """Removes everything of ours, right or not. Raises KernelError."""
        if self.is_there():
            nft.apply([_write.delete_table()])


def _write_all(table: Table | None, final: Iterable[Forwarding], wanted: Rules) -> None:
    for one in final:
        if one.uplink and not INTERFACE_PATTERN.fullmatch(one.uplink):  # nft(8) would take some for a pattern
            raise KernelError(f"nftables: the uplink's name {one.uplink!r} cannot be used in a rule", retry=False)
    if table is not None and is_framed(table):
        if all(table.has_rules(chain, wanted[chain]) for chain in CHAINS):
            return
        frame = [_write.flush_rules()]
    else:
        anew = [_write.add_table(), _write.delete_table()] if table is not None else []
        frame = [*anew, _write.add_table(), *(_write.add_chain(name, chain) for name, chain in CHAINS.items())]
    nft.apply([*frame, *(line for chain in CHAINS for line in _write.add_rules(chain, wanted[chain]))])


def _read_table() -> Table | None:
    return ruleset.find(nft.listing(TABLE), TABLE)


def is_framed(table: Table) -> bool:
    """Is all but the rules as it should be?"""
    return table.chains == CHAINS and not (table.flags or table.sets or table.others)


def _rules(table: Table) -> dict[str, list[Expressions]]:
    return {chain: [normal(rule) for rule in rules] for chain, rules in table.rules.items()}
