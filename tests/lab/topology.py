"""Who is in a lab, under which address, and the `ip` commands that wire it up. Pure: runs nothing.

Called by hosts.py and lab.py. The addresses live inside the lab's own network namespaces, so two labs may use the
same ones; none lies in 10.0.0.0/8, which the product hands out to accounts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

INTERNET = "internet"
UPLINK = "eth0"
INTERNET_ADDRESS = IPv4Address("203.0.113.1")  # RFC 5737
NODE_NETWORK = IPv4Network("198.51.100.0/24")  # RFC 5737; a /30 for each node
OFFICE_NETWORK = IPv4Network("192.0.2.0/24")  # RFC 5737; a /30 for each gateway, the last one for the database
CLIENT_NETWORK = IPv4Network("100.64.0.0/10")  # RFC 6598; a /24 for each client, of which a /30 is used
IPV6_NETWORK = IPv6Network("2001:db8::/32")  # RFC 3849; a /64 for each node, client, gateway, and the database
INTERNET_IPV6 = IPV6_NETWORK[1]
MAX_NODES = 63
MAX_CLIENTS = 500
MAX_GATEWAYS = 16
DATABASE = "db"
NAME_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,30}")  # also a folder and the start of namespace names
HOST_PATTERN = rf"(?:{INTERNET}|{DATABASE}|[ncg][0-9]+)"  # what may follow "<lab>-" in a namespace of ours


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a lab: a network namespace, and a mount namespace with a /run of its own."""

    lab: str
    name: str  # "internet", "n1", "c1", "g1", "db"
    address: IPv4Interface  # of its UPLINK; of `lo` for the internet host
    router: IPv4Address | None = None  # its default gateway; None = it is the internet itself
    ipv6: IPv6Interface | None = None  # None = the lab has none

    @property
    def router_ipv6(self) -> IPv6Address | None:
        return self.ipv6.network[1] if self.ipv6 else None

    @property
    def namespace(self) -> str:
        return f"{self.lab}-{self.name}"

    @property
    def port(self) -> str:
        """The other end of its UPLINK, in the internet host."""
        return f"to-{self.name}"

    @property
    def sysctls(self) -> tuple[tuple[str, str], ...]:
        """Paths below /proc/sys and their values. A node forwards nothing until its agent says so."""
        forward = "1" if self.name == INTERNET else "0"
        # A peer that vanished under a transfer must not keep a server process busy for the default quarter of an hour.
        common = (("net/ipv4/ip_forward", forward), ("net/ipv4/tcp_retries2", "7"))
        if self.ipv6 is None:
            return (*common, *((f"net/ipv6/conf/{which}/disable_ipv6", "1") for which in ("all", "default")))
        return (*common, ("net/ipv6/conf/all/forwarding", forward), ("net/ipv6/conf/default/accept_dad", "0"))


@dataclass(frozen=True, slots=True)
class Topology:
    internet: Host
    nodes: tuple[Host, ...]
    clients: tuple[Host, ...]
    gateways: tuple[Host, ...] = ()  # empty: the one gateway lives on the machine's loopback
    database: Host | None = None  # None: SQLite

    @property
    def stubs(self) -> tuple[Host, ...]:
        database = () if self.database is None else (self.database,)
        return (*self.nodes, *self.clients, *self.gateways, *database)

    @property
    def hosts(self) -> tuple[Host, ...]:
        return (self.internet, *self.stubs)

    def host(self, name: str) -> Host | None:
        return next((host for host in self.hosts if name in (host.name, host.namespace)), None)


def topology(
    lab: str, nodes: int, clients: int, gateways: int = 1, postgresql: bool = False, ipv6: bool = False
) -> Topology:
    """The lab of that name and size. Raises ValueError for a name or size that cannot be.

    One node, one gateway and SQLite are one box: they share a unix socket. Anything more is a fleet, whose gateways
    are hosts of their own.
    """
    if not NAME_PATTERN.fullmatch(lab):
        raise ValueError(f"lab name {lab!r}: a lower-case letter, then at most 30 of a-z, 0-9 and '-'")
    if not 1 <= nodes <= MAX_NODES:
        raise ValueError(f"{nodes} nodes: a lab has 1-{MAX_NODES}")
    if not 0 <= clients <= MAX_CLIENTS:
        raise ValueError(f"{clients} clients: a lab has 0-{MAX_CLIENTS}")
    if not 1 <= gateways <= MAX_GATEWAYS:
        raise ValueError(f"{gateways} gateways: a lab has 1-{MAX_GATEWAYS}")
    if gateways > 1 and not postgresql:
        raise ValueError("several gateways share a database: add --database postgresql")
    fleet = nodes > 1 or gateways > 1 or postgresql
    plan = Topology(
        internet=Host(lab, INTERNET, IPv4Interface(f"{INTERNET_ADDRESS}/32")),
        nodes=tuple(_stub(lab, f"n{i + 1}", NODE_NETWORK.network_address + 4 * i) for i in range(nodes)),
        clients=tuple(_stub(lab, f"c{i + 1}", CLIENT_NETWORK.network_address + 256 * i) for i in range(clients)),
        gateways=tuple(
            _stub(lab, f"g{i + 1}", OFFICE_NETWORK.network_address + 4 * i) for i in range(gateways if fleet else 0)
        ),
        database=_stub(lab, DATABASE, OFFICE_NETWORK.broadcast_address - 3) if postgresql else None,
    )
    return _with_ipv6(plan) if ipv6 else plan


def _with_ipv6(plan: Topology) -> Topology:
    """A network of the same number as in IPv4 for each host: 2001:db8:1:n::/64 for nodes, 2:n for clients, ..."""

    def host(one: Host, kind: int, number: int) -> Host:
        return replace(one, ipv6=IPv6Interface((IPV6_NETWORK[(kind << 80) + (number << 64) + 2], 64)))

    def each(hosts: tuple[Host, ...], kind: int) -> tuple[Host, ...]:
        return tuple(host(one, kind, number) for number, one in enumerate(hosts, 1))

    return replace(
        plan,
        internet=replace(plan.internet, ipv6=IPv6Interface((INTERNET_IPV6, 128))),
        nodes=each(plan.nodes, 1),
        clients=each(plan.clients, 2),
        gateways=each(plan.gateways, 3),
        database=plan.database and host(plan.database, 4, 1),
    )


def _stub(lab: str, name: str, network: IPv4Address) -> Host:
    return Host(lab, name, IPv4Interface(f"{network + 2}/30"), router=network + 1)


def internet_commands(plan: Topology) -> Iterator[str]:
    """For `ip -batch` in the internet's namespace; the other ends of the veth pairs appear in the stubs' ones."""
    yield "link set lo up"
    yield f"address add {plan.internet.address} dev lo"
    for host in plan.stubs:
        yield f"link add {host.port} type veth peer name {UPLINK} netns {host.namespace}"
        yield f"address add {host.router}/30 dev {host.port}"
        yield f"link set {host.port} up"
    if plan.internet.ipv6:
        yield f"address add {plan.internet.ipv6} dev lo"
        for host in plan.stubs:
            yield f"address add {host.router_ipv6}/64 dev {host.port}"


def stub_commands(host: Host) -> Iterator[str]:
    """For `ip -batch` in the namespace of any other host."""
    yield "link set lo up"
    yield f"address add {host.address} dev {UPLINK}"
    yield f"link set {UPLINK} up"
    yield f"route add default via {host.router}"
    if host.ipv6:
        yield f"address add {host.ipv6} dev {UPLINK}"
        yield f"route add default via {host.router_ipv6}"
