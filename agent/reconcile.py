"""(work in progress: the protocols that the doors in agent/kernel fit)"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Protocol, TypeVar

from agent.errors import KernelError
from agent.model import (
    Class,
    ClassKey,
    Counters,
    Diff,
    Forwarding,
    Link,
    Mark,
    Peer,
    PeerKey,
    PeerState,
    Qdisc,
    Scope,
)

K = TypeVar("K")
V = TypeVar("V")


class Part(Protocol[K, V]):
    """One kind of kernel object.

    All calls block and come from one thread at a time. Each is bounded in time.
    """

    def read(self, scope: Scope) -> dict[K, V]:
        """What is there and ours, whole, normalised so that what `apply` wrote reads back equal. Raises KernelError."""

    def apply(self, diff: Diff[K, V]) -> Mapping[K, KernelError]:
        """Make it so. Idempotent: what exists is changed in place, what is absent is removed already.

        One bad key spoils only itself: its error is returned, the others are done. Raises KernelError only where
        nothing could be done at all.
        """


class Marks(Part[IPv4Address, Mark], Protocol):
    def counters(self) -> dict[IPv4Address, Counters]: ...


class Kernel(Protocol):
    """Linux, as the one writer needs it."""

    links: Part[str, Link]
    qdiscs: Part[str, Qdisc]
    classes: Part[ClassKey, Class]
    forwarding: Part[str, Forwarding]
    marks: Marks
    peers: Part[PeerKey, Peer]

    def uplink(self) -> str:
        """The interface to the internet. Raises KernelError when there is none."""

    def peer_states(self, interface: str) -> dict[str, PeerState]: ...

    def class_text(self, device: str, minor: int) -> str | None: ...
