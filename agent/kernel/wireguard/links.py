"""WireGuard links: the part of the kernel that a server is.

Owns the links that are ours: their key, port, address, the route to their network, MTU and state. Changes what differs
in place and never bounces a link that works. Never touches an interface that is not ours, whatever its name.

A link is ours by its alias, `wirelane:` and its name, or as `ownership` knows it under another one: what somebody wrote
there stays, and costs no control. Another link without the alias is adopted only where nobody can miss it: a
WireGuard link without key, peer and IPv4 address, as an agent leaves it that is killed between making and naming it.
A link of ours that the other implementation made (the mode was changed since) is kept and used as it is, because to
make it anew would drop every session on it; remove it by hand to have it made in the new mode.

The address of IPv6 comes last, for a link that goes down loses it. What address the kernel itself gives to the link, of
the link alone, is left there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.host import ipv6_forward
from agent.kernel.host.interfaces import (
    OUR_ALIAS,
    Interface,
    add_address,
    add_device_route,
    change_address_ipv6,
    read_addresses_ipv6,
    read_device_routes,
    read_interface,
    read_interfaces,
    read_networks,
    remove_address,
    set_interface,
)
from agent.kernel.host.networks import refusal
from agent.kernel.host.ports import udp_ports
from agent.kernel.wireguard.door import Absent, Device, Mode, PortBusy, WireGuard
from agent.kernel.wireguard.genetlink import KernelWireGuard
from agent.kernel.wireguard.ownership import Ownership
from agent.kernel.wireguard.uapi import UserspaceWireGuard
from agent.model import IKEV2_DEVICE, NO_SECRET, Secret
from agent.objects import Diff, HostNetwork, Link, Scope

NO_ADDRESS = IPv4Interface("0.0.0.0/0")  # found: none, or others than one
NO_ADDRESS_IPV6 = IPv6Interface("::/0")
NO_DEVICE = Device(Secret(""), 0, has_peers=False)  # found: no WireGuard answers
KINDS: dict[Mode, str] = {"kernel": "wireguard", "userspace": "tun"}
Routes = frozenset[tuple[IPv4Network, str]]
LISTEN_SECONDS = 5.0  # userspace hears of "up" a moment later
POLL_SECONDS = 0.01


def choose_mode(configured: str) -> Mode:
    """What `wireguard` of agent.toml ("auto", "kernel", "userspace") comes to on this host.

    Raises KernelError where that cannot work here, with the cure.
    """
    kernel, userspace = KernelWireGuard().available(), UserspaceWireGuard().available()
    if configured != "userspace" and not kernel:
        return "kernel"
    if configured != "kernel" and not userspace:
        return "userspace"
    reasons = {"kernel": [kernel], "userspace": [userspace]}.get(configured, [kernel, userspace])
    raise KernelError("no WireGuard: " + "; ".join(reasons), retry=False)


class Links:
    """`mode`: how links that do not exist are made. `allow_public`: may a server have a network of the internet's."""

    def __init__(self, mode: Mode, owned: Ownership | None = None, allow_public: bool = False) -> None:
        self._kind = KINDS[mode]
        self._owned = owned or Ownership()
        self._allow_public = allow_public
        self._doors: dict[str, WireGuard] = {"wireguard": KernelWireGuard(), "tun": UserspaceWireGuard()}

    def read(self, scope: Scope) -> dict[str, Link]:
        """All links of ours, wanted or not, in whatever state: what is wrong, or does not answer, reads as something
        nobody wants."""
        ports, routes = udp_ports(), read_device_routes()
        ours = (link for link in read_interfaces().values() if self._is_ours(link, scope))
        found = {link: self._found(link, ports, routes) for link in ours}
        ipv6 = read_addresses_ipv6() if found else {}
        return {
            link.name: replace(one, address_ipv6=_address_ipv6(ipv6.get(link.index))) for link, one in found.items()
        }

    def _is_ours(self, interface: Interface, scope: Scope) -> bool:
        """Also one that carries our server's key under another sign, as after a restart of the agent."""
        if self._owned.owns(interface):
            return True
        key, door = scope.keys.get(interface.name), self._doors.get(interface.kind)
        if key is None or door is None:
            return False
        with suppress(KernelError):
            if door.read_device(interface.name).private_key == key:
                self._owned.learn(interface)
                return True
        return False

    def apply(self, diff: Diff[str, Link]) -> Mapping[str, KernelError]:
        errors: dict[str, KernelError] = {}
        for name in diff.remove:
            try:
                self._remove(name)
            except KernelError as error:
                errors[name] = error
        self._yield_ports(diff.change)
        for name, link in {**diff.change, **diff.add}.items():
            try:
                self._make(link)
            except KernelError as error:
                errors[name] = error
        return errors

    def _found(self, interface: Interface, ports: frozenset[int], routes: Routes) -> Link:
        try:
            device = self._doors[interface.kind].read_device(interface.name)
        except Absent:
            device = NO_DEVICE
        except KernelError:  # one whose process hangs spoils no other; to put it right will tell why
            return Link(interface.name, NO_SECRET, 0, NO_ADDRESS, interface.mtu, is_read=False)
        listens = interface.up and device.listen_port in ports
        address = _address(interface)
        # An address without the route to its network is worth nothing: everything for its customers goes elsewhere.
        routed = not interface.up or (address.network, interface.name) in routes
        return Link(
            interface.name,
            device.private_key,
            device.listen_port if listens else 0,
            address if routed else NO_ADDRESS,
            interface.mtu,
        )

    def _remove(self, name: str) -> None:
        interface = read_interface(name)
        if interface is not None and self._owned.owns(interface):
            self._doors[interface.kind].remove(name)
            self._owned.forget(name)

    def _make(self, link: Link) -> None:
        """From whatever there is to the link, by the steps that are needed."""
        self._check_network(link)
        interface = self._take(link.interface)
        door = self._doors[interface.kind]
        device = door.read_device(link.interface)
        if device.private_key != link.private_key:
            door.configure(link.interface, private_key=link.private_key)
        if interface.mtu != link.mtu:
            set_interface(interface, mtu=link.mtu)
        _set_address(interface, link.address)
        self._listen(interface, device, link.listen_port)
        if (link.address.network, link.interface) not in read_device_routes():
            add_device_route(interface, link.address)
        _set_address_ipv6(interface, link.address_ipv6)

    def host_networks(self) -> tuple[HostNetwork, ...]:
        """The host's networks that are not of our links."""
        ours = {one.name for one in read_interfaces().values() if self._owned.owns(one)} | {IKEV2_DEVICE}
        return tuple(one for one in read_networks() if one.interface not in ours)

    def _check_network(self, link: Link) -> None:
        """A link that has its address keeps it, whatever network came to the host since: its customers are there."""
        standing = read_interface(link.interface)
        if standing is not None and self._owned.owns(standing) and _address(standing) == link.address:
            return
        if reason := refusal(link.address.network, self.host_networks(), self._allow_public):
            raise KernelError(reason)

    def _take(self, name: str) -> Interface:
        """The interface of this name, ours and with a WireGuard that answers; made where there is none."""
        interface = read_interface(name)
        if interface is not None and self._owned.owns(interface):
            try:
                self._doors[interface.kind].read_device(name)
                return interface
            except Absent:
                # Nobody can speak to it any more, so it carries no session either.
                self._doors[interface.kind].remove(name)
                interface = None
        if interface is None:
            self._doors[self._kind].create(name)
            interface = read_interface(name)
            if interface is None:
                raise KernelError(f"link {name} vanished as soon as it was made")
        elif not self._is_blank(interface):
            raise KernelError(
                f"interface {name} exists and is not ours: it is left alone. Remove or rename it, or give the server "
                "another interface name",
                retry=False,
            )
        set_interface(interface, ifalias=f"{OUR_ALIAS}{name}")
        self._owned.learn(interface)
        return replace(interface, alias=f"{OUR_ALIAS}{name}")

    def _is_blank(self, interface: Interface) -> bool:
        """A WireGuard link that nobody has configured."""
        door = self._doors.get(interface.kind)
        if door is None or interface.addresses or interface.alias:
            return False
        with suppress(KernelError):
            device = door.read_device(interface.name)
            return not device.private_key.reveal() and not device.has_peers
        return False

    def _listen(self, interface: Interface, device: Device, port: int) -> None:
        """Up, and on this port. A link that listens already keeps its socket.

        The port is looked up first, because a userspace WireGuard that goes up on a busy port says nothing. It may also
        hold its port while its link is down, or not: it lets go of it, so that what is left is another program's.
        """
        door = self._doors[interface.kind]
        listens = interface.up and device.listen_port in udp_ports()
        if listens and device.listen_port == port:
            return
        if device.listen_port == port:
            door.configure(interface.name, listen_port=0)
        if port in udp_ports():
            raise PortBusy(interface.name, port)
        door.configure(interface.name, listen_port=port)
        if not listens:
            # Where it is up already its WireGuard has not followed, and there is no session that "down" could end.
            if interface.up:
                set_interface(interface, state="down")
            set_interface(interface, state="up")
        give_up = time.monotonic() + LISTEN_SECONDS
        while port not in udp_ports():
            if time.monotonic() > give_up:
                raise KernelError(f"{interface.name} is up but does not listen on UDP port {port}")
            time.sleep(POLL_SECONDS)

    def _yield_ports(self, change: Mapping[str, Link]) -> None:
        """Links that exchange their ports would wait for one another for ever: those that stand in the way move off."""
        if len(change) < 2:
            return
        wanted = {link.listen_port: name for name, link in change.items()}
        for name, link in change.items():
            with suppress(KernelError):  # the link's own turn comes, and with it the error
                interface = read_interface(name)
                if interface is None or not self._owned.owns(interface):
                    continue
                door = self._doors[interface.kind]
                held = door.read_device(name).listen_port
                if held != link.listen_port and wanted.get(held, name) != name:
                    door.configure(name, listen_port=0)


def _address(interface: Interface) -> IPv4Interface:
    if len(interface.addresses) != 1:
        return NO_ADDRESS
    (one,) = interface.addresses
    address = IPv4Interface((one.local, one.prefix))
    return address if one.is_just(address) else NO_ADDRESS


def _address_ipv6(held: list[IPv6Interface] | None) -> IPv6Interface | None:
    """The only one; what nobody wants where there are several, or its route is gone."""
    if not held:
        return None
    return held[0] if len(held) == 1 and _is_routed(held[0].network) else NO_ADDRESS_IPV6


def _is_routed(network: IPv6Network) -> bool:
    """By whatever interface: a stranger's route in its place is refused when ours is made."""
    start = f"{network.network_address.packed.hex()} {network.prefixlen:02x} "
    routes = Path("/proc/thread-self/net/ipv6_route").read_text().splitlines()
    return network.prefixlen == 128 or any(line.startswith(start) for line in routes)


def _set_address_ipv6(interface: Interface, wanted: IPv6Interface | None) -> None:
    """Exactly this one; the route to its network comes with it."""
    every = read_addresses_ipv6()
    held = every.pop(interface.index, [])
    if _address_ipv6(held) == wanted:
        return
    for other in (one for several in every.values() for one in several if wanted):
        if wanted and other.network.overlaps(wanted.network):
            raise KernelError(
                f"network {wanted.network} overlaps {other.network}, which the host has: give the server another "
                "IPv6 address"
            )
    for address in held:
        change_address_ipv6("del", interface, address)
    if wanted:
        ipv6_forward.enable(interface.name)
        change_address_ipv6("add", interface, wanted)


def _set_address(interface: Interface, wanted: IPv4Interface) -> None:
    """Exactly this one; the route to its network comes with it."""
    extra = [address for address in interface.addresses if not address.is_just(wanted)]
    for address in extra:
        remove_address(interface, address)
    # With a primary address the kernel takes away the secondary ones of its network: look again.
    current = read_interface(interface.name) if extra else interface
    if current is not None and not current.addresses:
        add_address(interface, wanted)
