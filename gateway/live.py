"""What live reads show of servers and nodes, and who is in by IKEv2. Values only; those of an account: model.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LiveRule:
    """For people. None = the node's backend does not count there."""

    source: str
    destination: str
    target: str
    packets: int | None = None
    octets: int | None = None


@dataclass(frozen=True, slots=True)
class LiveServer:
    """As the kernel of its node has it now. `roots`: device, and what `tc -s qdisc show` prints of our root there."""

    nat: tuple[LiveRule, ...]
    forward: tuple[LiveRule, ...]
    roots: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Session:
    """Of an account that is in by IKEv2."""

    account_id: int
    endpoint: str  # the client's address
    established: int  # Unix seconds


@dataclass(frozen=True, slots=True)
class HeldObject:
    """A server or an account as a node holds it, or should: every field as text, but no private or preshared key."""

    kind: str  # "server" | "account"
    key: str  # a server's name, an account's id
    name: str
    fields: Mapping[str, str]
