"""Network interfaces, their IPv4 addresses and the default route, over route netlink.

Owns the reading and the single changes of interfaces, and the mark of ownership that they carry: the alias. Knows
nothing of WireGuard and decides nothing: the room of WireGuard does. Everything happens in the network
namespace of the calling thread; every call opens its own socket (about a millisecond) and closes it again. The library
cannot be used on a thread that runs an event loop: call from a worker thread.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import Path
from socket import AF_INET, AF_INET6, if_indextoname, if_nameindex
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.errors import KernelError
from agent.kernel.host.routes import MAIN_TABLE, read_defaults, read_networks_of_main
from agent.kernel.netlink import HEADER_BYTES, Netlink, Refusal, attribute, attributes, message
from agent.objects import HostNetwork

OUR_ALIAS = "wirelane:"  # what the alias of every interface of ours begins with
WIREGUARD_KINDS = ("wireguard", "tun")  # IFLA_INFO_KIND: in the kernel; of a userspace implementation
IFF_UP = 0x1  # linux/if.h

# linux/rtnetlink.h, linux/if_link.h
RTM_GETLINK, RTM_GETADDR = 18, 22
IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x2  # linux/if_addr.h: usable at once, for no neighbour could have it too
RT_SCOPE_UNIVERSE = 0
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS = 3, 4, 18, 20
IFLA_INFO_KIND = 1
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg: family, prefix length, flags, scope, index
_LINK = struct.Struct("=HHiI4x")  # ifinfomsg: family and pad, type, index, flags, change


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address as an interface has it. `peer` differs from `local` on a point-to-point address only."""

    local: IPv4Address
    peer: IPv4Address
    prefix: int  # length

    def is_just(self, wanted: IPv4Interface) -> bool:
        return self.local == self.peer == wanted.ip and self.prefix == wanted.network.prefixlen


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    index: int
    kind: str  # IFLA_INFO_KIND, "" for hardware
    alias: str
    mtu: int  # bytes
    up: bool  # by the administrator, IFF_UP
    addresses: tuple[Address, ...]

    @property
    def ours(self) -> bool:
        return self.alias.startswith(OUR_ALIAS) and self.kind in WIREGUARD_KINDS


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what the netlink library raises into a KernelError that begins with `what`."""
    try:
        yield
    except NetlinkError as error:
        raise KernelError(f"{what}: {error.args[1] if len(error.args) > 1 else error} ({_errno(error)})") from error
    except OSError as error:
        raise KernelError(f"{what}: {error.strerror or error}") from error


def read_interfaces() -> dict[str, Interface]:
    """All interfaces of this namespace by name. 7 ms for 500 of them; the library takes 220."""
    with Netlink() as netlink:
        links = netlink.dump(message(RTM_GETLINK, 0, bytes(_LINK.size)))
        addresses = _read_addresses(netlink)
    read = (_link(data) for data in links)
    return {link.name: replace(link, addresses=tuple(addresses[link.index])) for link in read}


def _read_addresses(netlink: Netlink) -> Mapping[int, list[Address]]:
    """Of all interfaces, by index."""
    addresses = defaultdict[int, list[Address]](list)
    for data in netlink.dump(message(RTM_GETADDR, 0, _ADDRESS.pack(AF_INET, 0, 0, 0, 0))):
        _, prefix, _, _, index = _ADDRESS.unpack_from(data, HEADER_BYTES)
        values = attributes(data, HEADER_BYTES + _ADDRESS.size)
        local = IPv4Address(values.get(IFA_LOCAL) or values[IFA_ADDRESS])
        addresses[index].append(Address(local, IPv4Address(values.get(IFA_ADDRESS, local.packed)), prefix))
    return addresses


def read_interface(name: str) -> Interface | None:
    """One interface, or None where there is none of that name."""
    link = read_link(name)
    if link is None:
        return None
    with Netlink() as netlink:
        return replace(link, addresses=tuple(_read_addresses(netlink)[link.index]))


def read_link(name: str) -> Interface | None:
    """As `read_interface`, without addresses: for where it is asked at every change. 0.1 ms; the library takes 1.7."""
    with Netlink() as netlink:
        answer = netlink.ask(message(RTM_GETLINK, 0, bytes(_LINK.size) + attribute(IFLA_IFNAME, name.encode() + b"\0")))
    if isinstance(answer, Refusal):
        if answer.errno == errno.ENODEV:
            return None
        raise KernelError(f"cannot read interface {name}: {answer.text}")
    if answer is None:
        return None
    return _link(answer)


def _link(data: bytes) -> Interface:
    """From the kernel's message, without addresses."""
    _, _, index, flags = _LINK.unpack_from(data, HEADER_BYTES)
    values = attributes(data, HEADER_BYTES + _LINK.size)
    kind = attributes(values.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")
    return Interface(
        name=_text(values[IFLA_IFNAME]),
        index=index,
        kind=_text(kind),
        alias=_text(values.get(IFLA_IFALIAS, b"")),
        mtu=int.from_bytes(values[IFLA_MTU], sys.byteorder),
        up=bool(flags & IFF_UP),
        addresses=(),
    )


def add_wireguard(name: str) -> None:
    """Makes a link of the kernel's own WireGuard."""
    with explained(f"cannot create WireGuard link {name}"), IPRoute() as route:
        route.link("add", ifname=name, kind="wireguard")


def add_xfrm(name: str, number: int) -> None:
    """Makes a link for what IPsec in the kernel carries with this number. Linux 4.19 and newer."""
    with explained(f"cannot create XFRM link {name}"), IPRoute() as route:
        route.link("add", ifname=name, kind="xfrm", xfrm_if_id=number)


def remove_interface(name: str) -> None:
    """Removes the link, if it is there."""
    interface = read_interface(name)
    if interface is None:
        return
    with explained(f"cannot remove link {name}"), IPRoute() as route:
        try:
            route.link("del", index=interface.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise


def set_interface(interface: Interface, **attributes: Any) -> None:
    """Changes `mtu` (bytes), `state` ("up", "down") or `ifalias` in place."""
    named = ", ".join(f"{name} {value}" for name, value in attributes.items())
    with explained(f"cannot set {named} on link {interface.name}"), IPRoute() as route:
        route.link("set", index=interface.index, **attributes)


def set_threaded(interface: Interface) -> None:
    """Lets the kernel spread the link's packets over its cores; one core ends at about 180,000 a second.

    It refuses (EOPNOTSUPP) while the link has no peer; later peers follow the setting. Best effort: older kernels have
    no such file. The folder may also show another network namespace than ours, hence the look at the index.
    """
    folder = Path("/sys/class/net", interface.name)
    with suppress(OSError, ValueError):
        if int((folder / "ifindex").read_text()) == interface.index and (folder / "threaded").read_text() == "0\n":
            (folder / "threaded").write_text("1")


def add_address(interface: Interface, address: IPv4Interface) -> None:
    with explained(f"cannot add address {address} to link {interface.name}"), IPRoute() as route:
        try:
            route.addr("add", index=interface.index, address=str(address.ip), prefixlen=address.network.prefixlen)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise


def read_addresses_ipv6() -> dict[int, list[IPv6Interface]]:
    """By index of the interface, but for those that mean something on one link alone."""
    addresses = defaultdict[int, list[IPv6Interface]](list)
    with Netlink() as netlink:
        for data in netlink.dump(message(RTM_GETADDR, 0, _ADDRESS.pack(AF_INET6, 0, 0, 0, 0))):
            family, prefix, _, scope, index = _ADDRESS.unpack_from(data, HEADER_BYTES)
            values = attributes(data, HEADER_BYTES + _ADDRESS.size)
            if family == AF_INET6 and scope == RT_SCOPE_UNIVERSE:  # a kernel without IPv6 answers with IPv4
                raw = values.get(IFA_LOCAL) or values[IFA_ADDRESS]
                addresses[index].append(IPv6Interface((IPv6Address(raw), prefix)))
    return addresses


def change_address_ipv6(verb: str, interface: Interface, address: IPv6Interface) -> None:
    """`verb`: "add", with the route to its network, or "del"."""
    with explained(f"cannot {verb} address {address} of link {interface.name}"), IPRoute() as route:
        try:
            named = {"index": interface.index, "address": str(address.ip), "prefixlen": address.network.prefixlen}
            route.addr(verb, family=AF_INET6, **named, **({"flags": IFA_F_NODAD} if verb == "add" else {}))
        except NetlinkError as error:
            if error.code not in (errno.EEXIST, errno.EADDRNOTAVAIL):
                raise


def remove_address(interface: Interface, address: Address) -> None:
    with explained(f"cannot remove address {address.local} from link {interface.name}"), IPRoute() as route:
        try:
            route.addr(
                "del",
                index=interface.index,
                local=str(address.local),
                address=str(address.peer),
                prefixlen=address.prefix,
            )
        except NetlinkError as error:
            # Together with a primary address the kernel removes the secondary ones of its network.
            if error.code != errno.EADDRNOTAVAIL:
                raise


def uplink(configured: str) -> str:
    """The interface to the internet. "auto" = the one of the IPv4 default route with the lowest metric.

    Raises KernelError: no such interface, no default route. A route may well come later (DHCP), so a retry helps.
    """
    if configured != "auto":
        interface = read_interface(configured)
        if interface is None:
            now = _default_device()
            raise KernelError(
                f"uplink {configured} does not exist: set `uplink` in agent.toml to an interface that does"
                + (f" (the default route goes by {now})" if now else "")
            )
        if interface.ours or interface.name == "lo":
            raise KernelError(
                f"uplink {configured} is {'lo' if interface.name == 'lo' else 'a link of ours'}: it leads nowhere"
            )
        return interface.name  # of several names the one that the rules see
    name = _default_device()
    if name is None:
        raise KernelError("no IPv4 default route, so no uplink: add one, or name the interface as `uplink`")
    return name


def _default_device() -> str | None:
    """The interface of the IPv4 default route with the lowest metric; None = there is none."""
    defaults = [(one.priority, one.hops[0].interface) for one in read_defaults(MAIN_TABLE) if one.hops[0].interface]
    with suppress(OSError):  # gone meanwhile
        return if_indextoname(min(defaults)[1]) if defaults else None
    return None


def read_uplink_mtu(device: str) -> int:
    """Bytes that leave the interface whole: its own MTU, or that of its default route where one is set."""
    link = read_link(device)
    if link is None:
        raise KernelError(f"cannot read the MTU of {device}: no such interface")
    defaults = read_defaults(MAIN_TABLE)
    return min([link.mtu, *(one.mtu or link.mtu for one in defaults if one.hops[0].interface == link.index)])


def address_of(device: str) -> IPv4Address | None:
    """The first IPv4 address of an interface; None = it has none or does not exist."""
    interface = read_interface(device)
    return interface.addresses[0].local if interface and interface.addresses else None


def read_device_routes() -> frozenset[tuple[IPv4Network, str]]:
    """The networks of the main table that lead straight out of an interface, with its name."""
    names = defaultdict(str, if_nameindex())
    routes = ((one.network, one.hops[0]) for one in read_networks_of_main())
    return frozenset((network, names[hop.interface]) for network, hop in routes if not hop.gateway and hop.is_told)


def add_device_route(interface: Interface, address: IPv4Interface) -> None:
    """The route to the network of an address, as Linux makes it when the interface comes up."""
    with explained(f"cannot add the route to {address.network} by {interface.name}"), IPRoute() as route:
        try:
            route.route(
                "add",
                dst=str(address.network),
                oif=interface.index,
                prefsrc=str(address.ip),
                scope=253,  # RT_SCOPE_LINK
                proto=2,  # RTPROT_KERNEL
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            raise KernelError(
                f"the route to {address.network} leads somewhere else than to {interface.name}: remove that one "
                f"(`ip route show {address.network}`)"
            ) from error


def read_addresses() -> frozenset[IPv4Address]:
    """All addresses of this host."""
    return frozenset(address.local for one in read_interfaces().values() for address in one.addresses)


def read_networks() -> list[HostNetwork]:
    """The networks of all addresses and routes of this host, but for the default route."""
    interfaces, names = read_interfaces(), defaultdict(lambda: "a route", if_nameindex())
    found = {
        HostNetwork(IPv4Network((address.local, address.prefix), strict=False), one.name): None
        for one in interfaces.values()
        for address in one.addresses
    }
    found |= {HostNetwork(one.network, names[one.hops[0].interface]): None for one in read_networks_of_main()}
    return list(found)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode(errors="surrogateescape")


def _errno(error: NetlinkError) -> str:
    return errno.errorcode.get(error.code, str(error.code))
