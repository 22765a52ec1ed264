"""The product's values: nodes, servers, accounts, usage. Frozen, no I/O, no SQL, no HTTP.

Rates are Mbit/s, 0 = unlimited. Text from outside is parsed into these by gateway/fields.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A text that is never shown. `reveal()` is the only way to it, so that every use can be found."""

    _text: str = ""

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(...)" if self._text else "Secret('')"

    __str__ = __repr__


NO_SECRET = Secret()
GENERATE = Secret("1")  # as a preshared key that is asked for: make one


@dataclass(frozen=True, slots=True)
class Node:
    """A host with one agent. `revision`: what it should hold; `acknowledged`: what it said it holds (of `epoch`)."""

    id: int
    name: str
    target: str  # where its agent is called: see gateway/target.py
    revision: int = 0
    epoch: str = ""  # "" = unknown: a snapshot is due
    acknowledged: int = 0
    endpoint: str = ""  # where clients reach it, IP or domain; the default for its servers
    tunnel_mtu: int = 0  # as its agent last said; 0 = never
    replaces: str = ""  # what an operator said that it may take the place of: see gateway/origin.py
    tls_name: str = ""  # of its certificate, of its last enrolment; "" = it was never enrolled
    drained: bool = False  # it takes no new servers
    host: str = ""  # that its socket is on: see gateway/host.py; "" = unknown, or it is called by TCP

    @property
    def is_local(self) -> bool:  # reached through a socket of this host, where no identity is needed
        return self.target.startswith("unix:")


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose state an agent holds. `mark`: random, of the revision that goes with it. Empty = nobody said."""

    identity: str = ""  # of the database
    mark: int = 0
    node: str = ""


NOBODY = Origin()


@dataclass(frozen=True, slots=True)
class Held:
    """What an agent says that it holds. Nothing at all: ("", -1), which is equal to nothing."""

    epoch: str
    revision: int
    origin: Origin = NOBODY
    accounts: int = 0
    servers: int = 0
    asks: bool = False  # it serves nobody until it is told that this stands

    @property
    def is_empty(self) -> bool:
        return not (self.accounts or self.servers)

    @property
    def is_emptied(self) -> bool:
        """It held something, or was told whose it is."""
        return self.is_empty and bool(self.origin.identity)


@dataclass(frozen=True, slots=True)
class Responder:
    """What a node with IKEv2 shows, in PEM. `identity`: what clients call it."""

    certificate: str
    private_key: Secret
    authority: str
    identity: str


@dataclass(frozen=True, slots=True)
class Server:
    """A WireGuard server. v1 calls its name `wg_name`."""

    id: int
    node: str  # name of its node
    name: str
    interface: str
    private_key: Secret
    public_key: str
    listen_port: int
    address: IPv4Interface
    external_ip: IPv4Address | None = None  # SNAT source; None = the uplink's own address
    endpoint: str = ""  # what clients connect to, IP or domain; "" = external_ip, else the node's public address
    dns_1: IPv4Address | None = None
    dns_2: IPv4Address | None = None
    mtu: int = 0
    keep_alive: int = 0  # seconds, for the clients' configuration; 0 = off
    allowed_ips: str = ""  # CIDR list for the clients' configuration; "" = 0.0.0.0/0
    internal_traffic: bool = False
    reach: str = "internet"  # where behind the uplink its accounts may go: that, "all", or a list with networks
    download: int = 0  # defaults for its accounts
    upload: int = 0
    ikev2: bool = False
    unreadable: tuple[str, ...] = ()  # which of its secrets the key file does not open; they are empty here
    address_ipv6: IPv6Interface | None = None  # as `address`; None = its accounts have no IPv6
    dns_1_ipv6: IPv6Address | None = None
    dns_2_ipv6: IPv6Address | None = None
    nat_ipv6: bool = False  # its accounts leave with the uplink's own address; else its network is routed to the node
    responder: Responder | None = None  # as a node is told of it; None = its accounts do not come in by IKEv2
    filter: tuple[tuple[str, bool, str, str, str, int, int], ...] = ()  # likewise; see store/filter_rules.py


@dataclass(frozen=True, slots=True)
class Account:
    """A customer's access. `id` is random, 63 bits, never used again; the agent knows accounts by it."""

    id: int
    name: str
    username: str
    password: Secret
    server: str  # name of its server
    node: str  # name of that server's node
    address: IPv4Address
    private_key: Secret  # empty: the client kept it
    public_key: str
    mark: int
    download: int
    upload: int
    enabled: bool
    preshared_key: Secret = NO_SECRET  # empty: it has none
    unreadable: tuple[str, ...] = ()  # as of a server
    address_ipv6: IPv6Address | None = None  # None = its server has no IPv6
    ports: tuple[tuple[str, int, int], ...] = ()  # as a node is told of it; see store/port_forwards.py


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What a create names. None = generate it (or take the server's default)."""

    server: str
    address: IPv4Address | None = None
    download: int | None = None
    upload: int | None = None
    name: str | None = None
    username: str | None = None
    password: Secret | None = None
    private_key: Secret | None = None
    public_key: str | None = None
    enabled: bool | None = None  # None = it is
    preshared_key: Secret | None = None  # None or empty: it has none; GENERATE
    address_ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class AccountEdit:
    """What an edit names. None = unchanged. An account stays on its server: naming another one is an error."""

    server: str | None = None
    address: IPv4Address | None = None
    download: int | None = None
    upload: int | None = None
    password: Secret | None = None
    enabled: bool | None = None
    preshared_key: Secret | None = None  # empty takes it away; GENERATE
    address_ipv6: IPv6Address | None = None


@dataclass(frozen=True, slots=True)
class ServerValues:
    """What a server create or edit names. None = generate it, or unchanged. `dns_*`, `external_ip`, `endpoint`,
    `allowed_ips`: an explicit empty text clears (Cleared.YES is spelled as the field's own empty value "")."""

    node: str | None = None  # create only
    name: str | None = None  # create only
    interface: str | None = None  # create only
    private_key: Secret | None = None
    public_key: str | None = None
    listen_port: int | None = None
    address: IPv4Interface | None = None
    external_ip: IPv4Address | str | None = None
    endpoint: str | None = None
    dns_1: IPv4Address | str | None = None
    dns_2: IPv4Address | str | None = None
    mtu: int | None = None
    keep_alive: int | None = None
    allowed_ips: str | None = None
    internal_traffic: bool | None = None
    reach: str | None = None
    download: int | None = None
    upload: int | None = None
    ikev2: bool | None = None
    ipv6: bool | None = None
    address_ipv6: IPv6Interface | None = None
    dns_1_ipv6: IPv6Address | str | None = None
    dns_2_ipv6: IPv6Address | str | None = None
    nat_ipv6: bool | None = None


@dataclass(frozen=True, slots=True)
class DayUsage:
    """Inner IP bytes of one account on one day of the configured time zone."""

    day: date
    download: int = 0
    upload: int = 0


@dataclass(frozen=True, slots=True)
class AccountUsage:
    """Inner IP bytes of one account in a month. `deleted`: Unix seconds; None = it is there."""

    name: str
    server: str
    download: int
    upload: int
    deleted: int | None = None


@dataclass(frozen=True, slots=True)
class DayTotal:
    """What an agent says of one account and one day: a total that only grows within `epoch`."""

    account_id: int
    day: date
    download: int
    upload: int


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as WireGuard has it now."""

    account_id: int  # 0 = not an account of ours
    public_key: str
    address: str
    endpoint: str = ""  # "" = none yet
    keepalive: int = 0
    latest_handshake: int = 0  # Unix seconds, 0 = never
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MarkCounters:
    mark: int
    download_packets: int
    download_bytes: int
    upload_packets: int
    upload_bytes: int


class Look(Enum):
    """What of an account its agent is asked for."""

    PEER = "peer"
    MARKS = "marks"
    CLASSES = "classes"


@dataclass(frozen=True, slots=True)
class LiveAccount:
    """One account as the kernel of its node has it now. None = it is not there, or was not asked for."""

    peer: PeerState | None
    marks: MarkCounters | None
    uplink: str
    interface: str
    upload_class: str | None  # three lines of `tc -s class show`; None = unlimited
    download_class: str | None
    marks_ipv6: MarkCounters | None = None  # of its second address


@dataclass(frozen=True, slots=True)
class Failure:
    """Something the kernel of a node refused."""

    account_id: int
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Pins of authorities: who signed a node's certificate ("" = none that it trusts), and whose gateways it trusts."""

    authority: str
    authorities: frozenset[str]


@dataclass(frozen=True, slots=True)
class AgentStatus:
    epoch: str
    revision: int
    applied_revision: int
    needs_snapshot: bool
    failures: tuple[Failure, ...] = ()
    drift_count: int = 0
    last_sample_time: int = 0
    last_resync_time: int = 0
    version: str = ""
    wireguard: str = ""
    uplink: str = ""
    problem: str = ""
    warnings: tuple[str, ...] = ()  # what stands beside ours on the node and does harm
    networks: tuple[tuple[IPv4Network, str], ...] = ()  # the node's own, with their interfaces: no server can have them
    listening: frozenset[tuple[str, int]] = frozenset()  # protocol and port, the node's own: none leads to an account
    marks: str = ""
    time_zone: str = ""
    tunnel_mtu: int = 0  # bytes, of links whose server names none; 0 = not known
    refused_connections: int = 0  # beyond the bound of an account
    origin: Origin = NOBODY  # of the revision
    accounts: int = 0
    servers: int = 0
    clock_offset: float | None = None  # seconds that its clock is ahead of ours; None = it did not say
    counted_download: int = 0  # bytes of all accounts, deleted ones too, since it started
    counted_upload: int = 0
    certificate_expires: int = 0  # Unix seconds; 0 = it has none
    standing: Standing | None = None  # None = it listens to no other host
    asks: bool = False  # it was cut off, and serves nobody until it is told that what it holds stands
    ikev2: tuple[str, int] = ("", 0)  # what answers there ("strongSwan 5.9.8"), and its process

    @property
    def held(self) -> Held:
        if self.needs_snapshot:
            return Held("", -1)
        return Held(self.epoch, self.revision, self.origin, self.accounts, self.servers, self.asks)


@dataclass(frozen=True, slots=True)
class Applied:
    """An agent's answer to a patch or snapshot."""

    outcome: str  # "applied" | "pending" | "failed"
    epoch: str
    revision: int
    failures: tuple[Failure, ...] = ()
    origin: Origin = NOBODY  # of the revision


@dataclass(frozen=True, slots=True)
class Patch:
    """Everything that changed on a node after `base`, up to and including `revision`."""

    epoch: str
    base: int
    revision: int
    put_servers: tuple[Server, ...] = ()
    remove_servers: tuple[str, ...] = ()
    put_accounts: tuple[Account, ...] = ()
    remove_accounts: tuple[int, ...] = ()
    time_zone: str = ""
    origin: Origin = NOBODY  # of `revision`
    base_mark: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything a node should hold."""

    revision: int
    servers: tuple[Server, ...] = ()
    accounts: tuple[Account, ...] = ()
    time_zone: str = ""
    origin: Origin = NOBODY
    replaces: Held | None = None  # what it takes the place of, by an operator's word


@dataclass(frozen=True, slots=True)
class Compared:
    """A node's row beside what its agent holds. `patch`: what it lacks; None = it needs a snapshot.

    `contested`: why nothing may be sent, "" = it may. `is_said`: in place of just what it holds now,
    whatever that is: an operator's word, or it holds nothing.
    """

    node: Node
    patch: Patch | None
    contested: str = ""
    is_said: bool = False
