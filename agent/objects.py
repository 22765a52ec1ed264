"""What Linux can be asked to hold, as values: what is `wanted` and what is `found` are made of the same types.

Frozen, no I/O. "Is it right?" is `==`; fields that Linux cannot hold (whose object it is) take no part in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from typing import Generic, TypeVar

from agent.model import (
    DEFAULT_MTU,
    EVERYWHERE,
    INTERNET,
    LEAST_MTU,
    NO_SECRET,
    SOMEBODY,
    WIREGUARD_BYTES,
    Address,
    FilterRule,
    Ikev2,
    Reach,
    Secret,
)


@dataclass(frozen=True, slots=True)
class Link:
    """A WireGuard interface, up and addressed. Key: interface. `is_read`: False = it is there, and does not answer."""

    interface: str
    private_key: Secret
    listen_port: int
    address: IPv4Interface
    mtu: int
    address_ipv6: IPv6Interface | None = None
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class Qdisc:
    """Our HTB root `1:` with its classifier, on a link or the uplink. Key: device."""

    device: str


ClassKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Class:
    """An HTB class with its leaf. Key: (device, minor)."""

    device: str
    minor: int
    rate: int  # Mbit/s, never 0
    owner: int = field(default=0, compare=False)  # account id; Linux does not know it


@dataclass(frozen=True, slots=True)
class Opening:
    """A port of the box that accounts may use, at their server's own address."""

    protocol: str  # "tcp" or "udp"
    port: int


@dataclass(frozen=True, slots=True)
class ForwardingIPv6:
    """What of a server's traffic is IPv6. `nat`: it leaves with the uplink's own address."""

    address: IPv6Interface  # the server's own, with the network its accounts live in
    nat: bool


# Where on the uplink connections of accounts come from, TCP and UDP: drawn anew for each, of ports that neither a
# service of the box has nor a connection of its own (net.ipv4.ip_local_port_range begins above). Could an account
# choose the port, its connection could stand where a stranger expects a service of the box, or a server's WireGuard.
NAT_PORTS = (10_000, 32_767)


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What lets a server's traffic through: NAT, forward and input rules, MSS clamp. Key: interface."""

    interface: str
    address: IPv4Interface  # the server's own, with the network its accounts live in
    uplink: str  # "" = there is none, and nothing passes but what stays on the link; never read back
    listen_port: int  # 0 = the link does not listen, and no port is opened for it
    internal_traffic: bool
    external_ip: IPv4Address | None
    reach: Reach = INTERNET
    nat_ports: tuple[int, int] = NAT_PORTS  # the first and last that its connections have on the uplink
    ipv6: ForwardingIPv6 | None = None
    ikev2: bool = False  # its accounts come in by IKEV2_DEVICE too

    @property
    def network(self) -> IPv4Network:
        return self.address.network

    @property
    def client(self) -> IPv4Address:
        """An address that an account may have."""
        return next((host for host in self.network.hosts() if host != self.address.ip), self.address.ip)

    @property
    def target(self) -> IPv4Address:
        """An address behind the uplink that accounts may reach."""
        if self.reach.internet or self.reach.networks == (EVERYWHERE,):
            return SOMEBODY
        first = self.reach.networks[0]
        return first[1 if first.prefixlen < 31 else 0]


ANY_STAMP = -1
NO_STAMP = 1 << 63  # above every revision: a table of before is believed


@dataclass(frozen=True, slots=True)
class Counters:
    """What the two mark rules of an address have counted; inner IP bytes.

    `made`: what the table that was read says of itself, see stamp_after(); NO_STAMP = nothing.
    """

    download_packets: int = 0
    download_bytes: int = 0
    upload_packets: int = 0
    upload_bytes: int = 0
    made: int = field(default=NO_STAMP, compare=False)


NO_COUNTERS = Counters()


@dataclass(frozen=True, slots=True)
class Mark:
    """The two MARK rules of an address: towards it and from it. Key: address.

    `counters`: what the rules shall start from when they have to be made; a rule that exists keeps its own.
    `restart`: replace rules that exist too, with `counters` (the address has a new owner).
    `at`, `after`: see stamp_after().
    """

    address: Address
    mark: int
    owner: int = field(default=0, compare=False)
    counters: Counters = field(default=NO_COUNTERS, compare=False)
    restart: bool = field(default=False, compare=False)
    at: int = field(default=0, compare=False)
    after: int = field(default=ANY_STAMP, compare=False)


def stamp_after(diff: Diff[Address, Mark], said: int) -> int | None:
    """What the table of IPv4 shall say of itself afterwards, that says `said` now; None = the same. That of IPv6 says
    nothing, and is believed.

    The revision (`at`) at which rules last went or were begun anew: from then on an address may have another owner. Not
    where only a part of the table is looked at and it does not say what it should (`after`): then it is a save that
    somebody put back. ANY_STAMP: all of it is looked at.
    """
    going = [*diff.remove.values(), *(mark for mark in diff.change.values() if mark.restart)]
    at = {mark.at for mark in going if mark.after in (ANY_STAMP, said) and mark.address.version == 4}
    if said == NO_STAMP:
        at |= {mark.at for mark in (*diff.add.values(), *diff.change.values()) if mark.address.version == 4}
    return max(at, default=0) or None


PeerKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """An account as WireGuard knows it. Key: (interface, public key).

    `endpoint`: where its client was, of one found or coming back; "" = not known, or too long ago to be of use.
    `anew`: it begins with no session, also where it is there already.
    """

    interface: str
    public_key: str
    address: IPv4Address | None  # None = found with other allowed IPs than one address, or one of each family
    owner: int = field(default=0, compare=False)
    preshared_key: Secret = NO_SECRET  # empty = none
    endpoint: str = field(default="", compare=False, repr=False)
    anew: bool = field(default=False, compare=False)
    address_ipv6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[Address | None, ...]:
        return (self.address, self.address_ipv6) if self.address_ipv6 else (self.address,)


IKEV2_PORTS = frozenset({500, 4500})  # UDP; RFC 7296, section 2.23


@dataclass(frozen=True, slots=True)
class Responder:
    """What answers IKEv2 on this node, and the device of its sessions. Key: device."""

    device: str
    is_sound: bool = True  # found: everything of it lives
    is_set: bool = True  # found: its device has the settings that it was given
    ipv6: bool = False  # its device has IPv6, for the accounts of some server have


@dataclass(frozen=True, slots=True)
class Gate:
    """By which everybody logs in. Key: device. `digest`: of the credentials, which Linux does not tell."""

    device: str
    digest: str
    credentials: Ikev2 | None = field(default=None, compare=False, repr=False)
    ipv6: bool = False  # clients are offered ::/0 too, for the accounts of some server have IPv6


FILTER_KEY = "filter"  # one for the node


@dataclass(frozen=True, slots=True)
class Filter:
    """The operator's rules for what accounts send and get, as the kernel has them: ports are those of one protocol.
    `devices`: by which accounts come in."""

    rules: tuple[FilterRule, ...]
    devices: frozenset[str]


DAMAGED = Filter((), frozenset())  # something stands there, and it is nothing that was written


@dataclass(frozen=True, slots=True)
class LoginRow:
    """An account as FreeRADIUS knows it. Key: username."""

    username: str
    password: Secret
    address: IPv4Address
    dns: tuple[Address, ...] = ()  # first those of IPv4
    owner: int = field(default=0, compare=False)
    address_ipv6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (self.address, self.address_ipv6) if self.address_ipv6 else (self.address,)


PortKey = tuple[str, int]  # "tcp" or "udp", and its number


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the node whose packets go to an account. Key: (protocol, port)."""

    protocol: str  # "tcp" or "udp"
    port: int
    address: IPv4Address  # of the account
    to_port: int
    external_ip: IPv4Address | None  # at which address; None = any of the node's own
    uplink: str
    owner: int = field(default=0, compare=False)

    @property
    def key(self) -> PortKey:
        return self.protocol, self.port


@dataclass(frozen=True, slots=True)
class SessionState:
    """Who is in by IKEv2."""

    username: str
    endpoint: str  # "192.0.2.1"
    address: IPv4Address | None  # in the tunnel
    established: int  # Unix seconds
    rx_bytes: int
    tx_bytes: int


@dataclass(frozen=True, slots=True)
class PeerState:
    """What WireGuard tells about a peer."""

    public_key: str
    address: IPv4Address | None
    endpoint: str  # "192.0.2.1:51820", "" = none yet
    keepalive: int  # seconds, 0 = off
    latest_handshake: int  # Unix seconds, 0 = never
    rx_bytes: int
    tx_bytes: int
    address_ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A network that the host itself has: an address of its own, or a route."""

    network: IPv4Network
    interface: str


def tunnel_mtu(uplink_mtu: int) -> int:
    """What a packet in a tunnel may have, so that it leaves the uplink whole; bytes, both."""
    return max(min(uplink_mtu - WIREGUARD_BYTES, DEFAULT_MTU), LEAST_MTU)


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look: the links that are wanted or ours, and the uplink. `keys`: of the wanted ones, by interface."""

    interfaces: frozenset[str]
    uplink: str
    keys: Mapping[str, Secret] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        return (*sorted(self.interfaces), self.uplink)


K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Diff(Generic[K, V]):
    """How to get from found to wanted. `remove` holds what was found."""

    add: Mapping[K, V] = field(default_factory=dict)
    change: Mapping[K, V] = field(default_factory=dict)
    remove: Mapping[K, V] = field(default_factory=dict)

    def by_verb(self) -> tuple[tuple[str, Mapping[K, V]], ...]:
        return ("add", self.add), ("change", self.change), ("remove", self.remove)

    def __bool__(self) -> bool:
        return bool(self.add or self.change or self.remove)

    def __len__(self) -> int:
        return len(self.add) + len(self.change) + len(self.remove)


# -- what a live read shows of a server ---------------------------------------------------------------------------

ANYWHERE, ANYWHERE_IPV6, THE_INTERNET = "0.0.0.0/0", "::/0", "internet"


@dataclass(frozen=True, slots=True)
class ShownRule:
    """A rule of NAT or forwarding, for people. `packets`, `octets`: None = this backend does not count there."""

    source: str  # "10.0.0.0/24"
    destination: str  # the same, or THE_INTERNET: what is no private or other closed network
    target: str  # "MASQUERADE", "SNAT to:198.51.100.7", "ACCEPT", "DROP"
    packets: int | None = None
    octets: int | None = None


@dataclass(frozen=True, slots=True)
class ShownRules:
    nat: tuple[ShownRule, ...]
    forward: tuple[ShownRule, ...]


def summed(rules: Iterable[ShownRule]) -> tuple[ShownRule, ...]:
    """What differs only in protocol, port or state is one line, in the place of its last rule."""
    lines: dict[tuple[str, str, str], ShownRule] = {}
    for rule in rules:
        key = rule.source, rule.destination, rule.target
        before = lines.pop(key, None)
        if before and rule.packets is not None and rule.octets is not None:
            packets, octets = (before.packets or 0) + rule.packets, (before.octets or 0) + rule.octets
            rule = replace(rule, packets=packets, octets=octets)
        lines[key] = rule
    return tuple(lines.values())
