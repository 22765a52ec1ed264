"""Linux, as the writer and the live reads need it: the rooms of this house, wired into one Kernel.

The only file that knows all the rooms, and what everybody outside of this house uses. Decides nothing. Everything
happens in the network namespace of the calling thread; the doors of one LinuxKernel are for one thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, TypeVar

from agent.doors import Door, Doors, MarksDoor
from agent.errors import KernelError
from agent.kernel import ikev2, iptables, nftables
from agent.kernel.families import MarksOfBoth
from agent.kernel.host import conntrack, ip_forward, routed
from agent.kernel.host.answers import Answers
from agent.kernel.host.interfaces import read_addresses, read_uplink_mtu, uplink
from agent.kernel.host.networks import told
from agent.kernel.host.ports import listening
from agent.kernel.host.watch import ANY, watch
from agent.kernel.ikev2 import Esp, choose_esp, keep_routes, lost_processes
from agent.kernel.ikev2 import describe as describe_ikev2
from agent.kernel.iptables import Forwardings, IptablesMarks
from agent.kernel.nftables import BothFamilies, Bounded, Filters, NftablesMarks, NftForwardings, Ports, bounded, foreign
from agent.kernel.tc import Classes, Qdiscs, class_text, root_text
from agent.kernel.wireguard import Links, Mode, Ownership, Peers, choose_mode
from agent.model import Address
from agent.objects import (
    Forwarding,
    HostNetwork,
    Opening,
    PeerKey,
    PeerState,
    PortKey,
    Scope,
    SessionState,
    ShownRules,
    tunnel_mtu,
)
from agent.parts import CLASSES, FILTER, FORWARDING, GATE, LINKS, LOGINS, MARKS, PEERS, PORTS, QDISCS, RESPONDER, Part

K = TypeVar("K")
V = TypeVar("V")

__all__ = [
    "ANY",
    "LinuxKernel",
    "Mode",
    "Ownership",
    "backend_doors",
    "choose_esp",
    "choose_mode",
    "describe_ikev2",
    "keep_routes",
    "lost_processes",
    "uplink",
    "watch",
    "watch_rules",
]

# Each looks for one thing beside ours that does harm: a sentence each, with the cure. Called after every full pass.
WARNINGS: tuple[Callable[[Scope], Iterable[str]], ...] = (conntrack.warnings, bounded.warnings)

RUNTIME = Path("/run/wirelane-agent/ikev2")
NO_RULES = ShownRules((), ())
SHOWN = {"iptables": iptables.shown, "nftables": nftables.shown}


class LinuxKernel:
    """The doors of one thread. `uplink`, `opened`, `allow_public`: settings of the agent. `connections`: that an
    account may have; 0 = no bound. `owned`: shared by the doors of all threads, so that each knows whose a link is.
    `runtime`: a folder of IKEv2's; `esp`: who encrypts for it."""

    def __init__(
        self,
        mode: Mode,
        uplink: str,
        backend: str,
        connections: int = 0,
        opened: tuple[Opening, ...] = (),
        owned: Ownership | None = None,
        allow_public: bool = False,
        runtime: Path = RUNTIME,
        esp: Esp = "userspace",
    ) -> None:
        doors, owned = backend_doors(opened)[backend], owned or Ownership()
        self._is_userspace, self._uplink = mode == "userspace", uplink
        self._shown, self._runtime = SHOWN[backend], runtime
        self._links, self._peers = Links(mode, owned, allow_public), Peers(owned)
        self._answers = Answers()
        self.marks: MarksDoor = MarksOfBoth(doors.marks, NftablesMarks(ipv6=True))
        self._doors: dict[Part[Any, Any], Door[Any, Any]] = {
            LINKS: self._links,
            QDISCS: Qdiscs(),
            CLASSES: Classes(),
            FILTER: Filters(),
            FORWARDING: Bounded(BothFamilies(doors.forwarding, opened), connections),
            MARKS: self.marks,
            PEERS: self._peers,
            PORTS: Ports(),
            RESPONDER: ikev2.Responders(runtime, esp),
            LOGINS: ikev2.Logins(runtime),
            GATE: ikev2.Gates(runtime, esp),
        }

    def door(self, part: Part[K, V]) -> Door[K, V]:
        return self._doors[part]

    def uplink(self) -> str:
        return uplink(self._uplink)

    def tunnel_mtu(self, uplink: str) -> int:
        return tunnel_mtu(read_uplink_mtu(uplink))

    def keep_answers(self, serves: bool) -> KernelError | None:
        try:
            self._answers.keep(serves and self._is_userspace)  # the kernel's answers as the routes say
        except KernelError as error:
            return error
        return None

    def forget_connections(self, addresses: Collection[Address]) -> None:
        try:
            conntrack.forget(addresses)
        except KernelError as error:
            if error.retry:  # else a warning says what this kernel lacks
                raise

    def endpoints(self, keys: Collection[PeerKey]) -> Mapping[PeerKey, str]:
        return self._peers.endpoints(keys)

    def refused_connections(self) -> int:
        return bounded.refused()

    def warnings(self, scope: Scope) -> tuple[str, ...]:
        found, servers = (warning for look in WARNINGS for warning in look(scope)), self._servers(scope)
        beside = routed.warnings(servers, self.host_networks(), read_addresses())
        narrow = routed.narrow(scope.uplink, read_uplink_mtu(scope.uplink))
        alone = routed.without_ipv6(servers, scope.uplink)
        return (*found, *foreign.warnings(foreign.read(), servers), *beside, *narrow, *alone)

    def problem(self, scope: Scope) -> str:
        return foreign.problem(foreign.read(), scope.devices)

    def surroundings(self) -> tuple[list[str], str]:
        """What passes packets on here and what firewalls of this host do to them, a line each; and `problem`."""
        device = self.uplink()
        first = Forwarding("wg1", IPv4Interface("10.0.0.1/24"), device, 51820, False, None)  # what will come
        servers = self._servers(Scope(frozenset(), device)) or (first,)
        ruleset = foreign.read()
        drops = [f"firewall: {line}" for line in foreign.warnings(ruleset, servers)]
        return [ip_forward.describe(device), *drops], foreign.problem(
            ruleset, {device, *(s.interface for s in servers)}
        )

    def _servers(self, scope: Scope) -> tuple[Forwarding, ...]:
        return tuple(one for name, one in self.door(FORWARDING).read(scope).items() if name)

    def host_networks(self) -> tuple[HostNetwork, ...]:
        return told(self._links.host_networks())

    def listening(self) -> frozenset[PortKey]:
        return listening()

    def responder(self) -> tuple[str, int]:
        return ikev2.version(self._runtime)

    def sessions(self) -> list[SessionState]:
        return ikev2.sessions(self._runtime)

    def disconnect(self, username: str) -> bool:
        return ikev2.disconnect(self._runtime, username)

    def peer_states(self, interface: str) -> dict[str, PeerState]:
        return self._peers.peer_states(interface)

    def class_text(self, device: str, minor: int) -> str | None:
        return class_text(device, minor)

    def root_text(self, device: str) -> str | None:
        return root_text(device)

    def server_rules(self, interface: str, network: IPv4Network, ipv6: IPv6Network | None) -> ShownRules:
        first, second = self._shown(interface, network), nftables.shown(interface, ipv6) if ipv6 else NO_RULES
        return ShownRules((*first.nat, *second.nat), (*first.forward, *second.forward))


async def watch_rules(backend: str, told: Callable[[], None]) -> None:
    """Calls `told` when somebody else has changed tables that rules of ours stand in; runs until it is cancelled.
    The tables of nftables stand beside either backend."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(nftables.watch(told))
        if backend == "iptables":
            tasks.create_task(iptables.watch(told))


def backend_doors(opened: tuple[Opening, ...] = ()) -> dict[str, Doors]:
    """By the name of the backend. `opened`: what of the box accounts may use."""
    nftables = NftablesMarks()
    return {
        "iptables": Doors(IptablesMarks(), Forwardings(opened)),
        "nftables": Doors(nftables, NftForwardings(opened), guard=nftables),
    }
