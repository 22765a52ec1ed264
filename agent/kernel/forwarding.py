"""What lets the traffic of a server through: NAT, forward and input rules, MSS clamp, ip_forward.

Owns the chains WL_NAT, WL_FORWARD, WL_INPUT and WL_MSS with the one jump to each, and sets net.ipv4.ip_forward to 1.
Never touches another rule or setting (rp_filter stays as the host has it: the answers to an account come in where the
route to them points). Called by the reconciler.

    nat POSTROUTING -> WL_NAT        -s network -o uplink: SNAT to the external address, or MASQUERADE
    mangle FORWARD -> WL_MSS         TCP SYNs from and to the link: MSS clamped to the path
    filter INPUT -> WL_INPUT         -i link: RETURN, for all links: what comes through a tunnel gets nothing from us
                                     UDP to the server's port: ACCEPT
    filter FORWARD -> WL_FORWARD     link to uplink from its network: ACCEPT
                                     uplink to link to its network, if it belongs to a connection: ACCEPT
                                     link to the same link: ACCEPT or DROP (internal_traffic)
                                     all else from or to the link: DROP

Without the conntrack match in the kernel all packets from the uplink to the network are let through.

The rules name their interface, so `read` needs no memory: it takes from each link's rules the Forwarding that they
seem to be, computes the rules that this would have, and compares bytes. An interface whose rules are not all there and
right is left out of the result. If anything else is wrong (a rule too many, an order, a hook, ip_forward off) one more
entry under the key `BROKEN`, which nobody wants, keeps the difference from being empty. `apply` reads again inside its
own transactions, one for each table, and writes what should be there; a rule that stays keeps its counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from ipaddress import IPv4Network
from socket import IPPROTO_TCP, IPPROTO_UDP

from agent.errors import KernelError
from agent.kernel import entries, ip_forward, tables, xtables
from agent.kernel.entries import Image, entry, jump
from agent.kernel.xtables import Hook, Transaction
from agent.model import Diff, Forwarding, Scope

BROKEN = ""
"""Key of the extra entry in what `read` returns when our chains are damaged. It is never the name of an interface."""
_NOTHING = Forwarding(BROKEN, IPv4Network("0.0.0.0/32"), "", 0, False, None)


NAT = Hook("POSTROUTING", "WL_NAT", yields=True)
FORWARD = Hook("FORWARD", "WL_FORWARD", yields=True)
INPUT = Hook("INPUT", "WL_INPUT", yields=True)
MSS = Hook("FORWARD", "WL_MSS", behind=("WL_MARK",))
# In the order of writing. Filter comes last: it is what opens the way.
TABLES = {"mangle": (MSS,), "nat": (NAT,), "filter": (INPUT, FORWARD)}
CHAINS = frozenset(hook.chain for hooks in TABLES.values() for hook in hooks)

Rules = Mapping[str, tuple[bytes, ...]]  # chain -> its rules, in order


# -- what should be there -----------------------------------------------------------------------------------------


@lru_cache(1024)
def wanted_rules(forwarding: Forwarding, stateful: bool) -> Rules:
    """The rules of one interface."""
    link, uplink, network = forwarding.interface, forwarding.uplink, forwarding.network
    external = forwarding.external_ip
    known = entries.established() if stateful else b""
    return {
        NAT.chain: (
            entry(
                entries.masquerade() if external is None else entries.snat(external), source=network, goes_out=uplink
            ),
        ),
        FORWARD.chain: (
            entry(jump("ACCEPT"), source=network, came_in=link, goes_out=uplink),
            entry(jump("ACCEPT"), destination=network, came_in=uplink, goes_out=link, match=known),
            entry(jump("ACCEPT" if forwarding.internal_traffic else "DROP"), came_in=link, goes_out=link),
            entry(jump("DROP"), came_in=link),
            entry(jump("DROP"), goes_out=link),
        ),
        # Two parts: see `_joined`. The second names the link again, so that the port can be told to be its own.
        INPUT.chain: (
            entry(jump("RETURN"), came_in=link),
            entry(
                jump("ACCEPT"),
                not_in=link,
                protocol=IPPROTO_UDP,
                match=entries.udp_destination(forwarding.listen_port),
            ),
        ),
        MSS.chain: (
            entry(entries.tcpmss_clamp(), came_in=link, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
            entry(entries.tcpmss_clamp(), goes_out=link, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
        ),
    }


def all_rules(forwardings: Iterable[Forwarding], stateful: bool) -> Rules:
    """The chains whole, interfaces in order of their names."""
    each = [wanted_rules(one, stateful) for one in sorted(forwardings, key=lambda one: one.interface)]
    return {chain: _joined(chain, [rules[chain] for rules in each]) for chain in CHAINS}


def _joined(chain: str, groups: list[tuple[bytes, ...]]) -> tuple[bytes, ...]:
    if chain == INPUT.chain:  # first all the RETURNs: no tunnel may reach the port of another server either
        return (*(group[0] for group in groups), *(group[1] for group in groups))
    return tuple(rule for group in groups for rule in group)


# -- what is there ------------------------------------------------------------------------------------------------


def guessed(found: Rules) -> dict[str, Forwarding]:
    """The Forwarding that the rules of each interface seem to be, right or not."""
    ports, sources = {}, {}
    for rule in found[INPUT.chain]:
        if port := entries.udp_port(rule):
            ports[entries.in_interface(rule)] = port
    for rule in found[NAT.chain]:
        sources[entries.source(rule), entries.out_interface(rule)] = entries.snat_address(rule)
    guesses: dict[str, Forwarding] = {}
    for rule in found[FORWARD.chain]:
        link, uplink, network = entries.in_interface(rule), entries.out_interface(rule), entries.source(rule)
        if link in ports and uplink and (network, uplink) in sources and link not in guesses:
            internal = entry(jump("ACCEPT"), came_in=link, goes_out=link) in found[FORWARD.chain]
            guesses[link] = Forwarding(link, network, uplink, ports[link], internal, sources[network, uplink])
    return guesses


def sound(found: Rules, stateful: bool) -> dict[str, Forwarding]:
    """The interfaces whose rules are all there, once, in order."""
    right = {}
    for interface, forwarding in guessed(found).items():
        wanted = wanted_rules(forwarding, stateful)
        if all(wanted[chain] == tuple(rule for rule in found[chain] if rule in wanted[chain]) for chain in CHAINS):
            right[interface] = forwarding
    return right


# -- the door -----------------------------------------------------------------------------------------------------


class Forwardings:
    """`Part[str, Forwarding]`. Any thread, any network namespace; each call opens what it needs."""

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        """What is right, and `BROKEN` if something is not. Raises KernelError."""
        images = {table: tables.read(table) for table in TABLES}
        if not any(chain in image.chains for image in images.values() for chain in CHAINS):
            return {}
        rules = _rules(images)
        stateful = _is_stateful()
        right = sound(rules, stateful)
        led = all(xtables.is_hooked(images[table], hooks, CHAINS) for table, hooks in TABLES.items())
        if not led or not ip_forward.is_on():
            return {BROKEN: _NOTHING}
        if not right or rules != all_rules(right.values(), stateful):
            right[BROKEN] = _NOTHING
        return right

    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]:
        """One transaction for each table. Raises KernelError; returns no errors of single interfaces."""
        if not diff:
            return {}
        stateful = _is_stateful()
        rules = _rules({table: tables.read(table) for table in TABLES})
        # What is wanted and not right is in `add`; what is not right and not there belongs to nobody.
        stay = {key: one for key, one in sound(rules, stateful).items() if key not in diff.remove}
        final = stay | {**diff.add, **diff.change}
        wanted = all_rules(final.values(), stateful) if final else {}
        for table, hooks in TABLES.items():
            xtables.transact(table, partial(_settle, hooks, wanted))
        if final:
            ip_forward.switch_on()
        return {}

    def standing(self) -> bool:
        """Is any chain of ours there? Raises KernelError; False where there are no legacy tables."""
        return any(_stands(table) for table in TABLES)

    def clear(self) -> None:
        """Removes everything of ours, right or not. Raises KernelError."""
        for table, hooks in TABLES.items():
            if _stands(table):
                xtables.transact(table, partial(_settle, hooks, {}))


def _stands(table: str) -> bool:
    return tables.has_table(table) and not CHAINS.isdisjoint(tables.read(table).chains)


def _settle(hooks: tuple[Hook, ...], wanted: Rules, transaction: Transaction) -> None:
    if not wanted:
        transaction.unhook(CHAINS)
        transaction.drop([hook.chain for hook in hooks])
        return
    for hook in hooks:
        transaction.settle(hook.chain, wanted[hook.chain])
    transaction.hook(hooks, CHAINS)


def _rules(images: Mapping[str, Image]) -> Rules:
    return {
        hook.chain: tuple(rule.entry for rule in images[table].rules(hook.chain))
        for table, hooks in TABLES.items()
        for hook in hooks
    }


def _is_stateful() -> bool:
    return tables.supports_match("conntrack", 3)
