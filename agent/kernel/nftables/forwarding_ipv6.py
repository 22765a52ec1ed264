"""What lets the IPv6 of servers through, by nftables with either backend: NAT66, forward and input rules, MSS clamp.

Owns the table `ip6 wirelane_forwarding` whole, which is there while a server has IPv6, and what `ipv6_forward` owns.
Wraps the part that lets IPv4 through, for an interface's two families come and go together. Called by the writer.

The chains and their order are those of `forwarding`. Other than there:
    postrouting   nothing where the network is routed to this box (`nat` is off)
    forward       from the link, with a source that is not of its network: drop, before all else. WireGuard has seen to
                  the account's own address already, and so has IPsec for `ipsec0`, where each rule names a network
                  to the uplink: only the internet (INTERNET_IPV6 without CLOSED_IPV6), where the reach has it
                  at the end everything else: drop where the switch of forwarding is ours, return where it is not
                  What is about a connection (a router's "packet too big") comes in with it, so that the MTU of a path
                  is found; the box's own such answers pass no chain of ours
    input         nothing opens the server's port: who closes input for IPv6 has to open it

`read` knows an interface by its rules of IPv4 and takes address and NAT from the rules here; if the table is not what
these come to, none of it is believed: all rules are written anew, in one transaction, and connections go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import Any, Protocol

from agent.errors import KernelError
from agent.kernel.host import ipv6_forward
from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.forwarding import (
    BROKEN,
    CHAINS,
    FORWARD,
    INPUT,
    MSS,
    NAT,
    NOTHING,
    TABLE,
    Rules,
    is_framed,
)
from agent.kernel.nftables.pieces import (
    ACCEPT,
    ANSWER,
    CLAMP,
    DROP,
    ESTABLISHED,
    FROM_IKEV2,
    REPLY,
    RETURN,
    STRAY,
    SYN,
    TCP_OR_UDP,
    TO_IKEV2,
    on_interface,
    on_network,
    to_port,
    translation,
)
from agent.kernel.nftables.ruleset import Piece, Rule, Table, Writing, matched
from agent.model import CLOSED_IPV6, EVERYWHERE, INTERNET_IPV6
from agent.objects import Diff, Forwarding, ForwardingIPv6, Opening, Scope

FAMILY = "ip6"
_EVERYWHERE = Scope(frozenset(), "")
_write = Writing(TABLE, FAMILY)


class Inner(Protocol):
    """The part that lets IPv4 through."""

    def read(self, scope: Scope) -> dict[str, Forwarding]: ...
    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]: ...


# -- what should be there -----------------------------------------------------------------------------------------


def _echo() -> Piece:
    left = {"payload": {"protocol": "icmpv6", "field": "type"}}
    return Piece("icmpv6 type echo-request", {"match": {"op": "==", "left": left, "right": "echo-request"}})


THE_INTERNET = (on_network("daddr", INTERNET_IPV6), *(on_network("daddr", one, "!=") for one in CLOSED_IPV6))
ECHO = _echo()


# Of the device by which the accounts of several servers come in: what belongs to none of them.
BY_IKEV2: Rules = {
    NAT: (),
    MSS: ((FROM_IKEV2, SYN, CLAMP), (TO_IKEV2, SYN, CLAMP)),
    FORWARD: ((FROM_IKEV2, DROP), (TO_IKEV2, DROP)),
    INPUT: ((FROM_IKEV2, DROP),),
}


def wanted_rules(one: Forwarding, ipv6: ForwardingIPv6, opened: tuple[Opening, ...]) -> Rules:
    """The rules of one interface."""
    network, own = ipv6.address.network, on_network("daddr", IPv6Network(ipv6.address.ip))
    from_link, to_link = on_interface("iifname", one.interface), on_interface("oifname", one.interface)
    source = on_network("saddr", network)
    leaving = (source, on_interface("oifname", one.uplink))
    nat: tuple[Rule, ...] = (
        (*leaving, TCP_OR_UDP, translation(None, one.nat_ports)),
        (*leaving, translation(None, None)),
    )
    doors = (ECHO, *(to_port(door.port, door.protocol) for door in opened))
    in_by_ikev2: tuple[Rule, ...] = (
        (FROM_IKEV2, source, ANSWER, REPLY, ACCEPT),
        *((FROM_IKEV2, source, own, door, ACCEPT) for door in doors),
    )
    return {
        NAT: nat if ipv6.nat and one.uplink else (),
        MSS: ((from_link, SYN, CLAMP), (to_link, SYN, CLAMP)),
        FORWARD: (
            (from_link, on_network("saddr", network, "!="), DROP),
            (from_link, STRAY, DROP),
            *(_by_ikev2(one, network) if one.ikev2 else ()),
            *_outside(one, network, (from_link,), to_link),
            (from_link, to_link, ACCEPT if one.internal_traffic else DROP),
            (from_link, DROP),
            (to_link, DROP),
        ),
        INPUT: (
            (from_link, ANSWER, REPLY, ACCEPT),
            *((from_link, own, door, ACCEPT) for door in doors),
            (from_link, DROP),
            *(in_by_ikev2 if one.ikev2 else ()),
        ),
    }


def _outside(one: Forwarding, network: IPv6Network, came_in: Rule, goes_out: Piece) -> tuple[Rule, ...]:
    """Between the uplink and the device by which its accounts come in. `came_in`: by it, as one of them."""
    if not one.uplink:
        return ()
    from_uplink, to_uplink = on_interface("iifname", one.uplink), on_interface("oifname", one.uplink)
    has_internet = one.reach.internet or EVERYWHERE in one.reach.networks
    out: tuple[Rule, ...] = ((*came_in, to_uplink, *THE_INTERNET, ACCEPT),) if has_internet else ()
    return *out, (from_uplink, goes_out, on_network("daddr", network), ESTABLISHED, ACCEPT)


def _by_ikev2(one: Forwarding, network: IPv6Network) -> tuple[Rule, ...]:
    """Of its own accounts alone, for others come in there too."""
    source, destination = on_network("saddr", network), on_network("daddr", network)
    from_link, to_link = on_interface("iifname", one.interface), on_interface("oifname", one.interface)
    inside = ((FROM_IKEV2, TO_IKEV2), (FROM_IKEV2, to_link), (from_link, TO_IKEV2)) if one.internal_traffic else ()
    return (
        (FROM_IKEV2, source, STRAY, DROP),
        *_outside(one, network, (FROM_IKEV2, source), TO_IKEV2),
        *((came_in, goes_out, source, destination, ACCEPT) for came_in, goes_out in inside),
        (FROM_IKEV2, source, DROP),
        (TO_IKEV2, destination, DROP),
    )


def all_rules(forwardings: Iterable[Forwarding], opened: tuple[Opening, ...], passes_others: bool) -> Rules:
    """The chains whole, interfaces in order of their names."""
    ordered = sorted(forwardings, key=lambda one: one.interface)
    each = [wanted_rules(one, one.ipv6, opened) for one in ordered if one.ipv6]
    if any(one.ipv6 and one.ikev2 for one in ordered):
        each.append(BY_IKEV2)
    joined = {chain: tuple(rule for rules in each for rule in rules[chain]) for chain in CHAINS}
    return {**joined, FORWARD: (*joined[FORWARD], (RETURN if passes_others else DROP,))}


# -- what is there ------------------------------------------------------------------------------------------------


def guessed(table: Table) -> dict[str, ForwardingIPv6]:
    """By interface, what the rules seem to be for, right or not."""
    own: dict[Any, Any] = {
        matched(rule, "iifname"): matched(rule, "daddr")
        for rule in table.rules.get(INPUT, [])
        if matched(rule, "type") is not None
    }
    translated = [matched(rule, "saddr") for rule in table.rules.get(NAT, [])]
    found: dict[str, ForwardingIPv6] = {}
    for rule in table.rules.get(FORWARD, []):
        link, listed = matched(rule, "iifname"), matched(rule, "saddr", "!=")
        if not isinstance(link, str) or not isinstance(own.get(link), str) or not isinstance(listed, dict):
            continue
        try:
            address = IPv6Interface((IPv6Address(own[link]), listed["prefix"]["len"]))
        except (KeyError, ValueError):
            continue
        found.setdefault(link, ForwardingIPv6(address, listed in translated))
    return found


# -- the door -----------------------------------------------------------------------------------------------------


class BothFamilies:
    """`Part[str, Forwarding]`. Any thread, any network namespace. `opened`: what of the box accounts may use."""

    def __init__(self, inner: Inner, opened: tuple[Opening, ...] = ()) -> None:
        self._inner = inner
        self._opened = opened
        self._stood = False  # was our table there, as far as this object has seen?

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        """What the wrapped part says, with the IPv6 of each; `BROKEN` if that is not right. Raises KernelError."""
        found = self._inner.read(scope)
        table = _read_table()
        if table is None:
            if self._stood and ipv6_forward.is_ours():  # somebody flushed it, and perhaps nobody wants it any more
                found[BROKEN] = NOTHING
            return found
        self._stood = True
        guesses = guessed(table)
        both = {name: replace(one, ipv6=guesses.get(name)) for name, one in found.items()}
        wanted = all_rules(both.values(), self._opened, ipv6_forward.is_elses())
        if ipv6_forward.is_on() and any(one.ipv6 for one in both.values()) and _is_made(table, wanted):
            return both
        found[BROKEN] = NOTHING
        return found

    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]:
        """First IPv4. An error of IPv6 is one of the servers that have it."""
        standing = {} if _is_absent() else self.read(_EVERYWHERE)
        # What is damaged is not in `standing`, and in `add` or `change`.
        final = {name: one for name, one in standing.items() if name not in diff.remove}
        final |= {**diff.add, **diff.change}
        errors = self._inner.apply(diff)
        served = [one for one in final.values() if one.ipv6]
        if not (served or self._stood) and _is_absent():
            return errors
        try:
            self._make(served)
        except KernelError as error:
            refused = KernelError(f"forwarding of IPv6: {error}", retry=error.retry)
            return {**errors, **dict.fromkeys((BROKEN, *(one.interface for one in served)), refused)}
        return errors

    def _make(self, served: list[Forwarding]) -> None:
        table = _read_table()
        if not served:
            ipv6_forward.switch_back()
            if table is not None:
                nft.apply([_write.delete_table()])
            self._stood = False
            return
        rules = all_rules(served, self._opened, ipv6_forward.is_elses())
        if table is None or not _is_made(table, rules):
            anew = [_write.add_table(), _write.delete_table()] if table is not None else []
            frame = [*anew, _write.add_table(), *(_write.add_chain(name, chain) for name, chain in CHAINS.items())]
            nft.apply([*frame, *(line for chain in CHAINS for line in _write.add_rules(chain, rules[chain]))])
        self._stood = True
        ipv6_forward.switch_on()


def _is_absent() -> bool:
    return not nft.has_table(TABLE, FAMILY)


def _read_table() -> Table | None:
    return None if _is_absent() else ruleset.find(nft.listing(TABLE, FAMILY), TABLE, FAMILY)


def _is_made(table: Table, wanted: Rules) -> bool:
    return is_framed(table) and all(table.has_rules(chain, wanted[chain]) for chain in CHAINS)
