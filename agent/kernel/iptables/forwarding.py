"""What lets the traffic of a server through: NAT, forward and input rules, MSS clamp, and the switch of forwarding.

Owns the chains WL_NAT, WL_FORWARD, WL_REACH, WL_INPUT and WL_MSS with the one jump to each but WL_REACH, and what
`ip_forward` owns. Never touches another rule or setting (rp_filter stays as the host has it: the answers to an account
come in where the route to them points). Called by the reconciler.

    nat POSTROUTING -> WL_NAT        -s network -o uplink: SNAT to the external address, or MASQUERADE; TCP and UDP to
                                     ports of our choice, see NAT_PORTS
    mangle FORWARD -> WL_MSS         TCP SYNs from and to the link: MSS clamped to the path
    filter INPUT -> WL_INPUT         from the link: answers to what the box itself began, echo requests and what is
                                     opened to accounts, at the server's own address: ACCEPT; all else: DROP
                                     UDP to the server's port, not from a link: ACCEPT
    filter FORWARD -> WL_FORWARD     by a port that leads to an account (nftables/ports.py), and its answers: ACCEPT
                                     from the link, of no connection (a stray RST): DROP, for NAT would not touch it;
                                     errors about connections (ICMP): DROP, for they may be another account's
                                     link to uplink from its network to a network of its reach: ACCEPT
                                     link to uplink from its network, where its reach has the internet: to WL_REACH
                                     uplink to link to its network, if it belongs to a connection: ACCEPT
                                     link to the same link: ACCEPT or DROP (internal_traffic)
                                     all else from or to the link: DROP
                                     at the end what came in on the uplink for others: DROP or RETURN, see `ip_forward`
                                     A server with IKEv2 has the same once more for `ipsec0`, each rule for its own
                                     network only; UDP 500 and 4500 are open then
    WL_REACH                         to what is not the internet: DROP; then ACCEPT

Without the conntrack match in the kernel all packets from the uplink to the network are let through, and no answer
from an account to the box is.

The rules name their interface, so `read` needs no memory: it takes from each link's rules the Forwarding that they
seem to be, computes the rules that this would have, and compares bytes. An interface whose rules are not all there and
right, or that does not pass on what comes in, is left out of the result. If anything else is wrong (a rule too many, an
order, a hook, the uplink's switch) one more entry under the key `BROKEN`, which nobody wants, keeps the difference from
being empty. `apply` reads again inside its own transactions, one for each table, and writes what should be there; a
rule that stays keeps its counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Interface
from socket import IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP

from agent.errors import KernelError
from agent.kernel.host import ip_forward
from agent.kernel.iptables import entries, tables, xtables
from agent.kernel.iptables.entries import Image, entry, jump
from agent.kernel.iptables.xtables import Hook, Transaction
from agent.model import CLOSED, IKEV2_DEVICE, LINKS, Reach
from agent.objects import IKEV2_PORTS, NAT_PORTS, Diff, Forwarding, Opening, Scope

BROKEN = ""
"""Key of the extra entry in what `read` returns when our chains are damaged. It is never the name of an interface."""
_NOTHING = Forwarding(BROKEN, IPv4Interface("0.0.0.0/32"), "", 0, False, None)


NAT = Hook("POSTROUTING", "WL_NAT", yields=True)
FORWARD = Hook("FORWARD", "WL_FORWARD", yields=True)
INPUT = Hook("INPUT", "WL_INPUT", yields=True)
MSS = Hook("FORWARD", "WL_MSS", behind=("WL_MARK",))
# In the order of writing. Filter comes last: it is what opens the way.
TABLES = {"mangle": (MSS,), "nat": (NAT,), "filter": (INPUT, FORWARD)}
REACH = "WL_REACH"
CHAINS = frozenset({REACH, *(hook.chain for hooks in TABLES.values() for hook in hooks)})
THE_INTERNET = (*(entry(jump("DROP"), destination=network) for network in CLOSED), entry(jump("ACCEPT")))

Rules = Mapping[str, tuple[bytes, ...]]  # chain -> its rules, in order


# -- what should be there -----------------------------------------------------------------------------------------


@lru_cache(1024)
def wanted_rules(forwarding: Forwarding, stateful: bool, opened: tuple[Opening, ...] = ()) -> Rules:
    """The rules of one interface."""
    link, uplink = forwarding.interface, forwarding.uplink
    return {
        NAT.chain: _nat_rules(forwarding) if uplink else (),
        FORWARD.chain: _forward_rules(forwarding, stateful),
        INPUT.chain: _input_rules(forwarding, stateful, opened),
        MSS.chain: (
            entry(entries.tcpmss_clamp(), came_in=link, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
            entry(entries.tcpmss_clamp(), goes_out=link, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
        ),
    }


def _nat_rules(one: Forwarding) -> tuple[bytes, ...]:
    def translated(protocol: int, ports: tuple[int, int] | None) -> bytes:
        target = entries.masquerade(ports) if one.external_ip is None else entries.snat(one.external_ip, ports)
        return entry(target, source=one.network, goes_out=one.uplink, protocol=protocol)

    return *(translated(protocol, one.nat_ports) for protocol in (IPPROTO_TCP, IPPROTO_UDP)), translated(0, None)


def _forward_rules(one: Forwarding, stateful: bool) -> tuple[bytes, ...]:
    link, uplink, network = one.interface, one.uplink, one.network
    known = entries.established() if stateful else b""

    def outside(link: str) -> list[bytes]:
        rules = [
            entry(jump("ACCEPT"), source=network, destination=reached, came_in=link, goes_out=uplink)
            for reached in one.reach.networks
        ]
        if one.reach.internet:
            rules.append(entry(jump(REACH), source=network, came_in=link, goes_out=uplink, goto=True))
        return [*rules, entry(jump("ACCEPT"), destination=network, came_in=uplink, goes_out=link, match=known)]

    def by_ikev2() -> list[bytes]:
        """The same of its accounts alone, for others come in there too."""
        own, inside = IKEV2_DEVICE, ((IKEV2_DEVICE, IKEV2_DEVICE), (IKEV2_DEVICE, link), (link, IKEV2_DEVICE))
        return [
            *([entry(jump("DROP"), source=network, came_in=own, match=entries.stray())] if stateful else ()),
            *(outside(own) if uplink else ()),
            *(
                entry(jump("ACCEPT"), source=network, destination=network, came_in=came, goes_out=goes)
                for came, goes in (inside if one.internal_traffic else ())
            ),
            entry(jump("DROP"), source=network, came_in=own),
            entry(jump("DROP"), destination=network, goes_out=own),
        ]

    return (
        *([entry(jump("DROP"), came_in=link, match=entries.stray())] if stateful else ()),
        *(by_ikev2() if one.ikev2 else ()),
        *(outside(link) if uplink else ()),
        entry(jump("ACCEPT" if one.internal_traffic else "DROP"), came_in=link, goes_out=link),
        entry(jump("DROP"), came_in=link),
        entry(jump("DROP"), goes_out=link),
    )


def _input_rules(one: Forwarding, stateful: bool, opened: tuple[Opening, ...]) -> tuple[bytes, ...]:
    """First what is for packets from the link. The rule of the port names it too, to be told to be its own."""
    link, own = one.interface, IPv4Interface(one.address.ip).network
    rules = [entry(jump("ACCEPT"), came_in=link, match=entries.replies())] if stateful else []
    doors = [(IPPROTO_ICMP, entries.echo_request())]
    for door in opened:
        udp = door.protocol == "udp"
        match = entries.udp_destination(door.port) if udp else entries.tcp_destination(door.port)
        doors.append((IPPROTO_UDP if udp else IPPROTO_TCP, match))
    rules += [
        entry(jump("ACCEPT"), destination=own, came_in=link, protocol=protocol, match=match)
        for protocol, match in doors
    ]
    rules.append(entry(jump("DROP"), came_in=link))
    if one.ikev2:
        from_own = partial(entry, jump("ACCEPT"), source=one.network, came_in=IKEV2_DEVICE)
        rules += [from_own(match=entries.replies())] if stateful else []
        rules += [from_own(destination=own, protocol=protocol, match=match) for protocol, match in doors]
    if one.listen_port:
        port = entries.udp_destination(one.listen_port)
        rules.append(entry(jump("ACCEPT"), not_in=link, protocol=IPPROTO_UDP, match=port))
    return tuple(rules)


def all_rules(
    forwardings: Iterable[Forwarding],
    stateful: bool,
    opened: tuple[Opening, ...] = (),
    endings: Mapping[str, str] | None = None,
) -> Rules:
    """The chains whole, interfaces in order of their names. `endings`: by uplink, see `ip_forward`."""
    ordered = sorted(forwardings, key=lambda one: one.interface)
    each: list[Rules] = [wanted_rules(one, stateful, opened) for one in ordered]
    if any(one.ikev2 for one in ordered):
        each.append(BY_IKEV2)
    rules = {hook.chain: _joined(hook.chain, [rules[hook.chain] for rules in each]) for hook in (NAT, INPUT, MSS)}
    last = tuple(entry(jump(verdict), came_in=uplink) for uplink, verdict in (endings or {}).items())
    forward = _joined(FORWARD.chain, [rules[FORWARD.chain] for rules in each])
    return {**rules, FORWARD.chain: (*(BY_A_PORT if stateful else ()), *forward, *last), REACH: THE_INTERNET}


# To an account by a port of the box that leads to it, and its answers: whatever is closed to its server.
BY_A_PORT = (
    *(entry(jump("ACCEPT"), goes_out=link, match=entries.led_in()) for link in (f"{LINKS}+", IKEV2_DEVICE)),
    *(entry(jump("ACCEPT"), came_in=link, match=entries.led_back()) for link in (f"{LINKS}+", IKEV2_DEVICE)),
)


# Of the device by which the accounts of several servers come in: what belongs to none of them.
BY_IKEV2: Rules = {
    NAT.chain: (),
    FORWARD.chain: (entry(jump("DROP"), came_in=IKEV2_DEVICE), entry(jump("DROP"), goes_out=IKEV2_DEVICE)),
    INPUT.chain: (
        entry(jump("DROP"), came_in=IKEV2_DEVICE),
        *(
            entry(jump("ACCEPT"), not_in=IKEV2_DEVICE, protocol=IPPROTO_UDP, match=entries.udp_destination(port))
            for port in sorted(IKEV2_PORTS)
        ),
    ),
    MSS.chain: (
        entry(entries.tcpmss_clamp(), came_in=IKEV2_DEVICE, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
        entry(entries.tcpmss_clamp(), goes_out=IKEV2_DEVICE, protocol=IPPROTO_TCP, match=entries.tcp_syn()),
    ),
}


def _joined(chain: str, groups: list[tuple[bytes, ...]]) -> tuple[bytes, ...]:
    rules = [rule for group in groups for rule in group]
    if chain == INPUT.chain:  # first all that is closed: no tunnel may reach the port of another server either
        rules.sort(key=entries.is_not_in)
    return tuple(rules)


# -- what is there ------------------------------------------------------------------------------------------------


def guessed(found: Rules) -> dict[str, Forwarding]:
    """The Forwarding that the rules of each interface seem to be, right or not."""
    ports: dict[str, int] = {}
    own: dict[str, IPv4Address] = {}
    for rule in found[INPUT.chain]:
        link = entries.in_interface(rule)
        if entries.is_not_in(rule) and (port := entries.udp_port(rule)):
            ports[link] = port
        if entries.protocol(rule) == IPPROTO_ICMP:
            own[link] = entries.destination(rule).network_address
    sources = {
        (entries.source(rule), entries.out_interface(rule)): entries.snat_address(rule) for rule in found[NAT.chain]
    }
    ports_of = {entries.source(rule): chosen for rule in found[NAT.chain] if (chosen := entries.nat_ports(rule))}
    guesses: dict[str, Forwarding] = {}
    for rule in found[FORWARD.chain]:
        link, uplink, network = entries.in_interface(rule), entries.out_interface(rule), entries.source(rule)
        if link == IKEV2_DEVICE:
            continue
        if link in own and uplink and (network, uplink) in sources and link not in guesses:
            internal = entry(jump("ACCEPT"), came_in=link, goes_out=link) in found[FORWARD.chain]
            address = IPv4Interface((own[link], network.prefixlen))
            external = sources[network, uplink]
            reach = _reach(found, link, uplink)
            nat_ports = ports_of.get(network, NAT_PORTS)
            said = Forwarding(link, address, uplink, ports.get(link, 0), internal, external, reach, nat_ports)
            ikev2 = entry(jump("DROP"), source=network, came_in=IKEV2_DEVICE) in found[FORWARD.chain]
            guesses[link] = replace(said, ikev2=ikev2)
    return guesses


def _reach(found: Rules, link: str, uplink: str) -> Reach:
    out = [r for r in found[FORWARD.chain] if (entries.in_interface(r), entries.out_interface(r)) == (link, uplink)]
    targets = [(entries.target_name(rule), entries.destination(rule)) for rule in out]
    networks = tuple(network for target, network in targets if target == "ACCEPT")
    return Reach(any(target == REACH for target, _ in targets), networks)


def sound(found: Rules, stateful: bool, opened: tuple[Opening, ...] = ()) -> dict[str, Forwarding]:
    """The interfaces whose rules are all there, once, in order."""
    right = {}
    for interface, forwarding in guessed(found).items():
        wanted = wanted_rules(forwarding, stateful, opened)
        if all(rules == tuple(rule for rule in found[chain] if rule in rules) for chain, rules in wanted.items()):
            right[interface] = forwarding
    return right


def last_rules(found: Rules) -> dict[str, str]:
    """DROP or RETURN by uplink, as `ip_forward` means them. What is dropped both ways is a link."""
    ends = {}
    for rule in found[FORWARD.chain]:
        device, verdict = entries.in_interface(rule), entries.target_name(rule)
        if rule in (entry(jump("DROP"), came_in=device), entry(jump("RETURN"), came_in=device)):
            ends[device] = verdict
    return {device: verdict for device, verdict in ends.items() if _no_way_to(device) not in found[FORWARD.chain]}


def _no_way_to(link: str) -> bytes:
    return entry(jump("DROP"), goes_out=link)


# -- the door -----------------------------------------------------------------------------------------------------


class Forwardings:
    """`Part[str, Forwarding]`. Any thread, any network namespace; each call opens what it needs.

    `opened`: what of the box accounts may use.
    """

    def __init__(self, opened: tuple[Opening, ...] = ()) -> None:
        self._opened = opened

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        """What is right, and `BROKEN` if something is not. Raises KernelError."""
        images = {table: tables.read(table) for table in TABLES}
        if not any(chain in image.chains for image in images.values() for chain in CHAINS):
            return {}
        rules = _rules(images)
        stateful = _is_stateful()
        right = sound(rules, stateful, self._opened)
        if not all(xtables.is_hooked(images[table], hooks, CHAINS) for table, hooks in TABLES.items()):
            return {BROKEN: _NOTHING}
        uplinks = {one.uplink for one in right.values()}
        endings = ip_forward.endings(uplinks, right, last_rules(rules))
        whole = bool(right) and rules == all_rules(right.values(), stateful, self._opened, endings)
        result = {link: one for link, one in right.items() if not ip_forward.is_off(link)}
        if not whole or any(map(ip_forward.is_off, uplinks)):
            result[BROKEN] = _NOTHING
        return result

    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]:
        """One transaction for each table. Raises KernelError; returns no errors of single interfaces."""
        if not diff:
            return {}
        stateful = _is_stateful()
        rules = _rules({table: tables.read(table) for table in TABLES})
        # What is wanted and not right is in `add`; what is not right and not there belongs to nobody.
        stay = {key: one for key, one in sound(rules, stateful, self._opened).items() if key not in diff.remove}
        final = stay | {**diff.add, **diff.change}
        last = last_rules(rules)
        uplinks = ip_forward.uplinks(final.values(), last)
        wanted = (
            all_rules(final.values(), stateful, self._opened, ip_forward.endings(uplinks, final, last)) if final else {}
        )
        ip_forward.switch_back(last, uplinks)
        for table, hooks in TABLES.items():
            xtables.transact(table, partial(_fill, hooks, wanted))
        ip_forward.switch_on(final, uplinks)
        return {}

    def is_there(self) -> bool:
        """Is any chain of ours there? Raises KernelError; False where there are no legacy tables."""
        return any(_stands(table) for table in TABLES)

    def clear(self) -> None:
        """Removes everything of ours, right or not. Raises KernelError."""
        for table, hooks in TABLES.items():
            if _stands(table):
                xtables.transact(table, partial(_fill, hooks, {}))


def _stands(table: str) -> bool:
    return tables.has_table(table) and not CHAINS.isdisjoint(tables.read(table).chains)


def _chains(hooks: tuple[Hook, ...]) -> tuple[str, ...]:
    """In the order of making: what is gone to comes first."""
    return (*((REACH,) if FORWARD in hooks else ()), *(hook.chain for hook in hooks))


def _fill(hooks: tuple[Hook, ...], wanted: Rules, transaction: Transaction) -> None:
    if not wanted:
        transaction.unhook(CHAINS)
        transaction.drop(_chains(hooks))
        return
    for chain in _chains(hooks):
        transaction.fill(chain, wanted[chain])
    transaction.hook(hooks, CHAINS)


def _rules(images: Mapping[str, Image]) -> Rules:
    return {
        chain: tuple(rule.entry for rule in images[table].rules(chain))
        for table, hooks in TABLES.items()
        for chain in _chains(hooks)
    }


def _is_stateful() -> bool:
    return tables.supports_match("conntrack", 3)
