"""Linux, as the writer and the live reads need it: the rooms of this house, wired into one Kernel.

The only file that knows all the rooms, and what everybody outside of this house uses. Decides nothing. Everything
happens in the network namespace of the calling thread; the doors of one LinuxKernel are for one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from typing import TypeVar

from agent.doors import Door, Doors, MarksDoor
from agent.errors import KernelError
from agent.kernel.host import conntrack, ip_forward, routed
from agent.kernel.host.answers import Answers
from agent.kernel.host.interfaces import read_addresses, read_uplink_mtu, uplink
from agent.kernel.host.networks import told
from agent.kernel.host.watch import ANY, watch
from agent.kernel.iptables import Forwardings, IptablesMarks
from agent.kernel.nftables import Bounded, NftablesMarks, NftForwardings, bounded, foreign
from agent.kernel.tc import Classes, Qdiscs, class_text
from agent.kernel.wireguard import Links, Mode, Ownership, Peers, choose_mode
from agent.objects import Forwarding, HostNetwork, Opening, PeerState, Scope, tunnel_mtu
from agent.parts import Part

K = TypeVar("K")
V = TypeVar("V")

__all__ = ["ANY", "LinuxKernel", "Mode", "Ownership", "backend_doors", "choose_mode", "uplink", "watch"]

# Each looks for one thing beside ours that does harm: a sentence each, with the cure. Called after every full pass.
WARNINGS: tuple[Callable[[Scope], Iterable[str]], ...] = (conntrack.warnings, bounded.warnings)


@dataclass(frozen=True, slots=True)
class LinuxKernel:
    """The doors of one thread."""

    mode: Mode
    uplink_setting: str
    backend: str
    connections: int = 0  # that an account may have; 0 = no bound
    opened: tuple[Opening, ...] = ()
    owned: Ownership = field(default_factory=Ownership)
    allow_public: bool = False
    links: Links = field(init=False)
    qdiscs: Qdiscs = field(default_factory=Qdiscs)
    classes: Classes = field(default_factory=Classes)
    forwarding: Door[str, Forwarding] = field(init=False)
    marks: MarksDoor = field(init=False)
    peers: Peers = field(init=False)
    answers: Answers = field(default_factory=Answers)

    def __post_init__(self) -> None:
        doors = backend_doors(self.opened)[self.backend]
        object.__setattr__(self, "links", Links(self.mode, self.owned, self.allow_public))
        object.__setattr__(self, "peers", Peers(self.owned))
        object.__setattr__(self, "forwarding", Bounded(doors.forwarding, self.connections))
        object.__setattr__(self, "marks", doors.marks)

    def door(self, part: Part[K, V]) -> Door[K, V]:
        door: Door[K, V] = getattr(self, part.name)
        return door

    def uplink(self) -> str:
        return uplink(self.uplink_setting)

    def tunnel_mtu(self, uplink: str) -> int:
        return tunnel_mtu(read_uplink_mtu(uplink))

    def keep_answers(self, serves: bool) -> KernelError | None:
        try:
            self.answers.keep(serves and self.mode == "userspace")  # the kernel's answers as the routes say
        except KernelError as error:
            return error
        return None

    def forget_connections(self, addresses: Collection[IPv4Address]) -> None:
        try:
            conntrack.forget(addresses)
        except KernelError as error:
            if error.retry:  # else a warning says what this kernel lacks
                raise

    def refused_connections(self) -> int:
        return bounded.refused()

    def warnings(self, scope: Scope) -> tuple[str, ...]:
        found, servers = (warning for look in WARNINGS for warning in look(scope)), self._servers(scope)
        beside = routed.warnings(servers, self.host_networks(), read_addresses())
        narrow = routed.narrow(scope.uplink, read_uplink_mtu(scope.uplink))
        return (*found, *foreign.warnings(foreign.read(), servers), *beside, *narrow)

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
        return tuple(one for name, one in self.forwarding.read(scope).items() if name)

    def host_networks(self) -> tuple[HostNetwork, ...]:
        return told(self.links.host_networks())

    def peer_states(self, interface: str) -> dict[str, PeerState]:
        return self.peers.peer_states(interface)

    def class_text(self, device: str, minor: int) -> str | None:
        return class_text(device, minor)


def backend_doors(opened: tuple[Opening, ...] = ()) -> dict[str, Doors]:
    """By the name of the backend. `opened`: what of the box accounts may use."""
    nftables = NftablesMarks()
    return {
        "iptables": Doors(IptablesMarks(), Forwardings(opened)),
        "nftables": Doors(nftables, NftForwardings(opened), guard=nftables),
    }
