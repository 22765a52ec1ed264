"""What the agent needs of Linux: a door for each part of the kernel.

Only protocols; the doors in agent/kernel fit them, and so does the fake in tests/fakes. All calls block and are bounded
in time. One comes after the other, with one exception: while `apply` of classes adds, on a thread of its own, there may
be calls of every other door.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Protocol, TypeVar

from agent.errors import KernelError
from agent.model import Address
from agent.objects import (
    Counters,
    Diff,
    Forwarding,
    HostNetwork,
    Mark,
    PeerKey,
    PeerState,
    PortKey,
    Scope,
    SessionState,
    ShownRules,
)
from agent.parts import Part

K = TypeVar("K")
V = TypeVar("V")


class Door(Protocol[K, V]):
    """To the objects of one part."""

    def read(self, scope: Scope) -> dict[K, V]:
        """What is there and ours, whole, normalised so that what `apply` wrote reads back equal. Raises KernelError."""

    def apply(self, diff: Diff[K, V]) -> Mapping[K, KernelError]:
        """Make it so. Idempotent: what exists is changed in place, what is absent is removed already.

        One bad key spoils only itself: its error is returned, the others are done. Raises KernelError only where
        nothing could be done at all.
        """


class MarksDoor(Door[Address, Mark], Protocol):
    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        """What every address has counted, or these; never fewer bytes than really passed before the call."""


class Kernel(Protocol):
    """Linux, as the one writer needs it."""

    def door(self, part: Part[K, V]) -> Door[K, V]: ...

    @property
    def marks(self) -> MarksDoor: ...

    def uplink(self) -> str:
        """The interface to the internet. Raises KernelError when there is none."""

    def tunnel_mtu(self, uplink: str) -> int:
        """What fits into a tunnel whose packets leave by the uplink; bytes. Raises KernelError."""

    def keep_answers(self, serves: bool) -> KernelError | None:
        """Clients who come in by a former uplink are still answered. `serves`: there are servers. None = it is so."""

    def forget_connections(self, addresses: Collection[Address]) -> None:
        """Nothing that was on its way to these addresses finds them any more. Raises KernelError."""

    def endpoints(self, keys: Collection[PeerKey]) -> Mapping[PeerKey, str]:
        """Where the clients of these peers are, of those that may believe in their session. Raises KernelError."""

    def refused_connections(self) -> int:
        """Packets that would have begun a connection beyond the bound of an account. Raises KernelError."""

    def warnings(self, scope: Scope) -> tuple[str, ...]:
        """What is not ours, stands beside ours and does harm: a sentence each, with the cure. Reads only."""

    def problem(self, scope: Scope) -> str:
        """What others do on this host that makes the node as a whole useless, with the cure; "" = nothing."""

    def responder(self) -> tuple[str, int]:
        """Of IKEv2: what it is and its process number; ("", 0) = none runs."""

    def host_networks(self) -> tuple[HostNetwork, ...]:
        """The host's own networks, which no server can have."""

    def listening(self) -> frozenset[PortKey]:
        """What programs of the host listen on, which leads to no account."""


class LiveKernel(Protocol):
    """Linux, as the live reads need it: from another thread, never writing."""

    @property
    def marks(self) -> MarksDoor: ...
    def uplink(self) -> str: ...

    def peer_states(self, interface: str) -> dict[str, PeerState]:
        """The peers of a link by public key. Raises KernelError."""

    def sessions(self) -> list[SessionState]:
        """Who is in by IKEv2. Raises KernelError."""

    def disconnect(self, username: str) -> bool:
        """Ends the sessions of IKEv2 of this login; were there any? Raises KernelError."""

    def class_text(self, device: str, minor: int) -> str | None:
        """What `tc -s class show` prints for a class, first three lines; None = no such class."""

    def root_text(self, device: str) -> str | None:
        """What `tc -s qdisc show` prints for our root of a device; None = there is none. Raises KernelError."""

    def server_rules(self, interface: str, network: IPv4Network, ipv6: IPv6Network | None) -> ShownRules:
        """The rules of NAT and forwarding of one link, as they stand, IPv4 first. `ipv6`: its second network; None = it
        has none. Raises KernelError."""


# -- what a changeover from one backend to the other needs besides ---------------------------------------------------


class MovableMarks(MarksDoor, Protocol):
    """All raise KernelError, and may be repeated."""

    def is_there(self) -> bool:
        """Is anything of it there, led to or not? False where this host cannot have it at all."""

    def unhook(self) -> None:
        """Packets are not led to it any more; what it has counted can still be read."""

    def clear(self) -> None:
        """Removes everything of it."""


class MovableForwarding(Door[str, Forwarding], Protocol):
    """As the marks: all raise KernelError, and may be repeated."""

    def is_there(self) -> bool: ...
    def clear(self) -> None: ...


class Guard(Protocol):
    """How nftables defers. Both raise KernelError, and may be repeated."""

    def defer(self, marks: Mapping[Address, Mark]) -> None:
        """Packets that iptables has given one of these marks are left to it."""

    def undefer(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Doors:
    """What a backend is made of. `guard`: only nftables has one."""

    marks: MovableMarks
    forwarding: MovableForwarding
    guard: Guard | None = None
