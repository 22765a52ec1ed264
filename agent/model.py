"""The agent's values: what the gateway asks for, and what Linux can be asked to hold.

Frozen, checked on birth, no I/O. `wanted` and `found` are made of the same types, so "is it right?" is `==`;
fields that Linux cannot hold (whose object it is) take no part in the comparison.

Product values (desired): Server, Account.
Kernel values (wanted and found): Link, Qdisc, Class, Forwarding, Mark, Peer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError, collapse_addresses
from typing import Generic, TypeVar

from agent.errors import InvalidValue

MAX_RATE = 10_000  # Mbit/s; the v1 API's own bound
MIN_PORT = 1024  # the ports below belong to the services of the box
WIREGUARD_BYTES = 80  # that a tunnel adds to a packet: IPv6 outer header (40), UDP (8), WireGuard's own 32
DEFAULT_MTU = 1420  # WireGuard's own: 1500 - 80
LEAST_MTU = 1280  # what IPv6 asks of every link; below it the outer packet goes in fragments
INTERFACE_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ is 16 with the final zero
LINKS = "wg"  # what the names of our links begin with
LINK_PATTERN = re.compile(rf"{LINKS}[0-9]{{1,10}}")  # the rules that mark and count know our links by these two letters
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that is never shown. `reveal()` is the only way to it, so that every use can be found."""

    _text: str

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)" if self._text else "Secret('')"

    __str__ = __repr__


def checked_key(name: str, text: str) -> str:
    """A WireGuard key: base64 of 32 bytes, in the one canonical spelling. Raises InvalidValue."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or base64.b64encode(raw).decode() != text:
        raise InvalidValue(name, "must be a WireGuard key: base64 of 32 bytes")
    return text


def clamped(private_key: Secret) -> Secret:
    """The key as WireGuard keeps it: X25519 ignores five of its bits, and WireGuard stores them cleared or set.

    Source: RFC 7748, section 5. Both spellings have the same public key, but only this one reads back equal.
    """
    raw = bytearray(base64.b64decode(private_key.reveal()))
    raw[0] &= 0xF8
    raw[31] = raw[31] & 0x7F | 0x40
    return Secret(base64.b64encode(raw).decode())


def minor(mark: int) -> int:
    """Class minor of a mark: the decimal digits read as hex up to 9999, the number itself from 40960 on.

    Source: spec of the v1 API, "class id"; `tc` shows minors in hex, so mark 109 is class 1:109.
    """
    return int(str(mark), 16) if mark <= 9999 else mark


def mark_of(minor_number: int) -> int:
    """The mark of a class minor; 0 or another number that is no mark where no mark has that minor."""
    digits = f"{minor_number:x}"
    if minor_number >= 0xA000:
        return minor_number
    return int(digits) if digits.isdecimal() else 0


def is_mark(mark: int) -> bool:
    return 100 <= mark <= 9999 or 40960 <= mark <= 65534


# -- what the gateway asks for ------------------------------------------------------------------------------------

EVERYWHERE = IPv4Network("0.0.0.0/0")
SOMEBODY = IPv4Address("1.1.1.1")  # on the internet; firewalls and routers know networks for documentation by name
MAX_NETWORKS = 32  # of a reach: each is a rule that packets are compared with
# What no reach opens, for nothing is there to be reached: "this" network, loopback, multicast and reserved.
NOWHERE = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")))

# What is not the internet: IANA's special-purpose addresses (RFC 6890). Networks for documentation are not among them:
# nobody routes them, and they are what examples and test beds call the internet.
CLOSED = tuple(
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
    )
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Where behind the uplink the accounts of a server may go: the internet, networks by name, or both.

    The internet is everything but CLOSED. `all` is the one network 0.0.0.0/0.
    """

    internet: bool = True
    networks: tuple[IPv4Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Reach:
        """`internet` (which "" means too), `all`, or a list: `internet,10.20.0.0/16`. Raises InvalidValue."""
        words = [word.strip() for word in (text or "internet").split(",")]
        named = [word for word in words if word != "internet"]
        if named == ["all"]:
            return cls(False, (EVERYWHERE,))
        try:
            networks = tuple(collapse_addresses(map(IPv4Network, named)))
        except (AddressValueError, NetmaskValueError, ValueError):
            problem = f"{text!r} must be internet, all, or a list of networks such as internet,10.20.0.0/16"
            raise InvalidValue("server.reach", problem) from None
        if len(named) > MAX_NETWORKS:
            raise InvalidValue("server.reach", f"{len(named)} networks are too many: at most {MAX_NETWORKS}")
        for network in networks:
            if any(network.subnet_of(nowhere) for nowhere in NOWHERE):
                raise InvalidValue("server.reach", f"nobody can be reached in {network}")
        return cls("internet" in words and EVERYWHERE not in networks, networks)

    def __str__(self) -> str:
        if self.networks == (EVERYWHERE,):
            return "all"
        return ",".join([*(["internet"] if self.internet else []), *map(str, self.networks)])


INTERNET = Reach()


@dataclass(frozen=True, slots=True)
class Server:
    """A WireGuard server as the product knows it; the kernel knows it as a Link."""

    name: str
    interface: str
    private_key: Secret
    listen_port: int
    address: IPv4Interface  # its own address, with the network its accounts live in
    mtu: int = 0  # bytes; 0 = as the uplink allows, see tunnel_mtu()
    internal_traffic: bool = False  # may its accounts reach one another
    external_ip: IPv4Address | None = None  # source address on the uplink; None = the uplink's own
    reach: Reach = INTERNET

    @property
    def devices(self) -> tuple[str, ...]:
        """By which its accounts come in, one for each kind of tunnel: so far WireGuard's alone."""
        return (self.interface,)

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise InvalidValue("server.name", f"{self.name!r} must be 1-64 letters, digits, '_' or '-'")
        if not LINK_PATTERN.fullmatch(self.interface):
            raise InvalidValue("server.interface", f"{self.interface!r} must be wg and 1-10 digits")
        checked_key("server.private_key", self.private_key.reveal())
        if not MIN_PORT <= self.listen_port <= 65535:
            raise InvalidValue("server.listen_port", f"{self.listen_port} must be within {MIN_PORT}-65535")
        if self.mtu and not 576 <= self.mtu <= 9100:
            raise InvalidValue("server.mtu", f"{self.mtu} must be 0 (default) or within 576-9100")


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's access. `id` is never used again for another account."""

    id: int
    name: str
    server: str
    address: IPv4Address
    public_key: str
    mark: int
    download: int = 0  # Mbit/s seen from the client; 0 = unlimited
    upload: int = 0
    enabled: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.id < 1 << 63:
            raise InvalidValue("account.id", f"{self.id} must be within 1-2^63-1")
        if not NAME_PATTERN.fullmatch(self.name):
            raise InvalidValue("account.name", f"{self.name!r} must be 1-64 letters, digits, '_' or '-'")
        checked_key(f"account {self.name}: public_key", self.public_key)
        if not is_mark(self.mark):
            raise InvalidValue(f"account {self.name}: mark", f"{self.mark} must be within 100-9999 or 40960-65534")
        for name, rate in (("download", self.download), ("upload", self.upload)):
            if not 0 <= rate <= MAX_RATE:
                raise InvalidValue(f"account {self.name}: {name}", f"{rate} must be within 0-{MAX_RATE} Mbit/s")


# -- what Linux holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """A WireGuard interface, up and addressed. Key: interface."""

    interface: str
    private_key: Secret
    listen_port: int
    address: IPv4Interface
    mtu: int


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
class Forwarding:
    """What lets a server's traffic through: NAT, forward and input rules, MSS clamp. Key: interface."""

    interface: str
    address: IPv4Interface  # the server's own, with the network its accounts live in
    uplink: str  # "" = there is none, and nothing passes but what stays on the link; never read back
    listen_port: int  # 0 = the link does not listen, and no port is opened for it
    internal_traffic: bool
    external_ip: IPv4Address | None
    reach: Reach = INTERNET

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

    address: IPv4Address
    mark: int
    owner: int = field(default=0, compare=False)
    counters: Counters = field(default=NO_COUNTERS, compare=False)
    restart: bool = field(default=False, compare=False)
    at: int = field(default=0, compare=False)
    after: int = field(default=ANY_STAMP, compare=False)


def stamp_after(diff: Diff[IPv4Address, Mark], said: int) -> int | None:
    """What a table shall say of itself afterwards, that says `said` now; None = the same.

    The revision (`at`) at which rules last went or were begun anew: from then on an address may have another owner. Not
    where only a part of the table is looked at and it does not say what it should (`after`): then it is a save that
    somebody put back. ANY_STAMP: all of it is looked at.
    """
    going = [*diff.remove.values(), *(mark for mark in diff.change.values() if mark.restart)]
    at = {mark.at for mark in going if mark.after in (ANY_STAMP, said)}
    if said == NO_STAMP:
        at |= {mark.at for mark in (*diff.add.values(), *diff.change.values())}
    return max(at, default=0) or None


PeerKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """An account as WireGuard knows it. Key: (interface, public key)."""

    interface: str
    public_key: str
    address: IPv4Address | None  # None = found with other allowed IPs than exactly one /32
    owner: int = field(default=0, compare=False)


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
