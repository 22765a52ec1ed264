"""What the gateway asks for, as values: servers and accounts. Frozen, checked on birth, no I/O."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    NetmaskValueError,
    collapse_addresses,
)

from agent.errors import InvalidValue

MAX_RATE = 10_000  # Mbit/s; the v1 API's own bound
MIN_PORT = 1024  # the ports below belong to the services of the box
WIREGUARD_BYTES = 80  # that a tunnel adds to a packet: IPv6 outer header (40), UDP (8), WireGuard's own 32
DEFAULT_MTU = 1420  # WireGuard's own: 1500 - 80
LEAST_MTU = 1280  # what IPv6 asks of every link; below it the outer packet goes in fragments
Address = IPv4Address | IPv6Address  # inside the tunnel; an account has one of each family at most
INTERFACE_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,15}")  # IFNAMSIZ is 16 with the final zero
LINKS = "wg"  # what the names of our links begin with
LINK_PATTERN = re.compile(rf"{LINKS}[0-9]{{1,10}}")  # the rules that mark and count know our links by these two letters
IKEV2_DEVICE = "ipsec0"  # of all sessions of IKEv2; the name that charon gives its TUN and cannot be told another
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

    def __bool__(self) -> bool:
        return bool(self._text)


NO_SECRET = Secret("")


def checked_key(name: str, text: str) -> str:
    """A WireGuard key: base64 of 32 bytes, in the one canonical spelling. Raises InvalidValue."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32 or base64.b64encode(raw).decode() != text:
        raise InvalidValue(name, "must be a WireGuard key: base64 of 32 bytes")
    return text


def checked_preshared(name: str, key: Secret) -> None:
    """Raises InvalidValue, also at zeros: WireGuard takes them for no key, and reads none back."""
    if not any(base64.b64decode(checked_key(name, key.reveal()))):
        raise InvalidValue(name, "must not be all zeros")


def clamped(private_key: Secret) -> Secret:
    """The key as WireGuard keeps it: X25519 ignores five of its bits, and WireGuard stores them cleared or set.

    Source: RFC 7748, section 5. Both spellings have the same public key, but only this one reads back equal.
    """
    raw = bytearray(base64.b64decode(private_key.reveal()))
    raw[0] &= 0xF8
    raw[31] = raw[31] & 0x7F | 0x40
    return Secret(base64.b64encode(raw).decode())


# The marks there are, both ends included, by what becomes of them; the classifier is made from these.
DECIMAL_MARKS = (100, 9_999)
PLAIN_MARKS = (40_960, 65_534)


def minor(mark: int) -> int:
    """Class minor of a mark: the decimal digits read as hex up to 9999, the number itself from 40960 on.

    Source: spec of the v1 API, "class id"; `tc` shows minors in hex, so mark 109 is class 1:109.
    """
    return int(str(mark), 16) if mark <= DECIMAL_MARKS[1] else mark


def mark_of(minor_number: int) -> int:
    """The mark of a class minor; 0 or another number that is no mark where no mark has that minor."""
    digits = f"{minor_number:x}"
    if minor_number >= PLAIN_MARKS[0]:
        return minor_number
    return int(digits) if digits.isdecimal() else 0


def is_mark(mark: int) -> bool:
    return any(first <= mark <= last for first, last in (DECIMAL_MARKS, PLAIN_MARKS))


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

# The internet of IPv6 is 2000::/3 (RFC 4291) without these: Teredo and what else is special, 6to4, which leads to any
# IPv4 address. NAT64's 64:ff9b::/96 is outside of it, for the same reason.
INTERNET_IPV6 = IPv6Network("2000::/3")
CLOSED_IPV6 = (IPv6Network("2001::/23"), IPv6Network("2002::/16"))


@dataclass(frozen=True, slots=True)
class Reach:
    """Where behind the uplink the accounts of a server may go: the internet, networks by name, or both.

    The internet is everything but CLOSED. `all` is the one network 0.0.0.0/0. Of IPv6 there is the internet alone, with
    either of them.
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
MOST_DNS = 2  # of each family
LONGEST_PASSWORD = 256  # characters; of MSCHAPv2
USERNAME_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")  # no @, %, #, =: they mean something to strongSwan


@dataclass(frozen=True, slots=True)
class Ikev2:
    """How a node's responder shows itself, and what a server's accounts are told. Texts are PEM."""

    certificate: str
    private_key: Secret
    authority: str
    identity: str  # what clients call the responder
    dns: tuple[Address, ...] = ()  # first those of IPv4

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", self.identity):
            raise InvalidValue("server.ikev2.identity", f"{self.identity!r} must be a domain or an address")
        most = max(sum(one.version == version for one in self.dns) for version in (4, 6))
        if most > MOST_DNS:
            raise InvalidValue("server.ikev2.dns", f"{most} of a family are too many: at most {MOST_DNS}")

    @property
    def digest(self) -> str:
        """Of what the responder shows, not of what it tells the accounts."""
        text = "\0".join((self.certificate, self.private_key.reveal(), self.authority, self.identity))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Login:
    """Of IKEv2."""

    username: str
    password: Secret

    def __post_init__(self) -> None:
        if not USERNAME_PATTERN.fullmatch(self.username):
            raise InvalidValue("account.username", f"{self.username!r} must be 1-64 letters, digits, '.', '_' or '-'")
        if not 0 < len(self.password.reveal()) <= LONGEST_PASSWORD:
            raise InvalidValue(f"account {self.username}: password", f"must have 1-{LONGEST_PASSWORD} characters")


@dataclass(frozen=True, slots=True)
class PortForward:
    """What comes to a port of the node goes to one of an account."""

    protocol: str  # "tcp" or "udp"
    port: int
    to_port: int

    @property
    def key(self) -> tuple[str, int]:
        return self.protocol, self.port

    def __post_init__(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise InvalidValue("ports.protocol", f"{self.protocol!r} must be tcp or udp")
        for name, port in (("port", self.port), ("to_port", self.to_port)):
            if not 1 <= port <= 65535:
                raise InvalidValue(f"ports.{name}", f"{port} must be within 1-65535")


FILTERED = ("any", "tcp", "udp", "icmp")  # what a rule of a filter asks for


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One rule for what accounts send and get, whatever their server. Its ends are as the tunnel sees them, of one
    family. Ports: 0 = any; with `protocol` "any" they are those of TCP and UDP."""

    accepts: bool
    source: IPv4Network | IPv6Network
    destination: IPv4Network | IPv6Network
    protocol: str = "any"
    source_port: int = 0
    destination_port: int = 0

    def __post_init__(self) -> None:
        if self.source.version != self.destination.version:
            raise InvalidValue("filter", f"{self.source} and {self.destination} must be of one family")
        if self.protocol not in FILTERED:
            raise InvalidValue("filter.protocol", f"{self.protocol!r} must be any, tcp, udp or icmp")
        for name, port in (("source_port", self.source_port), ("destination_port", self.destination_port)):
            if not 0 <= port <= 65535:
                raise InvalidValue(f"filter.{name}", f"{port} must be within 0-65535")
            if port and self.protocol == "icmp":
                raise InvalidValue(f"filter.{name}", "icmp has no ports")


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
    address_ipv6: IPv6Interface | None = None  # as `address`; None = its accounts have no IPv6
    nat_ipv6: bool = False  # they leave with the uplink's own address; else their network is routed to this node
    ikev2: Ikev2 | None = None  # None = its accounts come in by WireGuard alone
    filter: tuple[FilterRule, ...] = ()  # the first that fits decides; the node's, so all servers have the same

    @property
    def devices(self) -> tuple[str, ...]:
        """By which its accounts come in, one for each kind of tunnel; that of IKEv2 is the node's."""
        return (self.interface, IKEV2_DEVICE) if self.ikev2 else (self.interface,)

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
        if self.address_ipv6 and 0 < self.mtu < LEAST_MTU:
            raise InvalidValue("server.mtu", f"{self.mtu} is too small for IPv6, which needs {LEAST_MTU}")


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
    preshared_key: Secret = NO_SECRET  # empty = none
    address_ipv6: IPv6Address | None = None
    login: Login | None = None
    ports: tuple[PortForward, ...] = ()

    @property
    def addresses(self) -> tuple[Address, ...]:
        return (self.address, self.address_ipv6) if self.address_ipv6 else (self.address,)

    def __post_init__(self) -> None:
        if not 0 < self.id < 1 << 63:
            raise InvalidValue("account.id", f"{self.id} must be within 1-2^63-1")
        if not NAME_PATTERN.fullmatch(self.name):
            raise InvalidValue("account.name", f"{self.name!r} must be 1-64 letters, digits, '_' or '-'")
        checked_key(f"account {self.name}: public_key", self.public_key)
        if self.preshared_key:
            checked_preshared(f"account {self.name}: preshared_key", self.preshared_key)
        if not is_mark(self.mark):
            raise InvalidValue(f"account {self.name}: mark", f"{self.mark} must be within 100-9999 or 40960-65534")
        for name, rate in (("download", self.download), ("upload", self.upload)):
            if not 0 <= rate <= MAX_RATE:
                raise InvalidValue(f"account {self.name}: {name}", f"{rate} must be within 0-{MAX_RATE} Mbit/s")
