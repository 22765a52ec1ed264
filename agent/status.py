"""What the agent says of itself. Values only; reconcile.py keeps the current one, rpc and the command line show it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from agent.objects import HostNetwork, PortKey
from agent.origin import NOBODY, Origin


class Outcome(Enum):
    """How far a change has come. It is durable in every case."""

    APPLIED = "applied"  # the kernel shows it
    PENDING = "pending"  # the kernel follows
    FAILED = "failed"  # the kernel refused some of it


@dataclass(frozen=True, slots=True)
class Failure:
    """Something the kernel refused. It is tried again at every resync."""

    account_id: int  # 0 = a server's or the node's
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer to a patch or snapshot."""

    outcome: Outcome
    epoch: str
    revision: int
    failures: tuple[Failure, ...] = ()
    origin: Origin = NOBODY  # of the revision


@dataclass(frozen=True, slots=True)
class Status:
    epoch: str
    revision: int = 0
    applied_revision: int = 0
    needs_snapshot: bool = True
    failures: tuple[Failure, ...] = ()
    drift_count: int = 0
    drift_last_time: int = 0  # Unix seconds, 0 = never
    last_sample_time: int = 0
    last_resync_time: int = 0
    wireguard: str = ""
    marks: str = ""
    uplink: str = ""
    accounts: int = 0
    servers: int = 0
    problem: str = ""
    warnings: tuple[str, ...] = ()  # what stands beside ours and does harm: a sentence each, with the cure
    time_zone: str = ""
    networks: tuple[HostNetwork, ...] = ()  # the host's own, which no server can have
    listening: frozenset[PortKey] = frozenset()  # the host's own, which lead to no account
    origin: Origin = NOBODY  # of the revision
    tunnel_mtu: int = 0  # bytes, of links whose server names none; 0 = not known yet
    refused_connections: int = 0  # beyond the bound of an account, since the bound was set up
    time: float = 0.0  # by the clock of this host when it was asked, Unix seconds
    counted_download: int = 0  # bytes of all accounts, deleted ones too, since the start
    counted_upload: int = 0
    certificate_expires: int = 0  # of what gateways on other hosts are shown, Unix seconds; 0 = nothing
    responder: tuple[str, int] = ("", 0)  # of IKEv2: what it is ("strongSwan 5.9.8"), and its process
    asks: bool = False  # it serves nobody until a gateway says that what it holds stands


def of_accounts(
    failures: Iterable[Failure], account_ids: frozenset[int], subjects: frozenset[str]
) -> tuple[Failure, ...]:
    """The failures that concern these accounts or servers, or the node as a whole (no subject)."""
    return tuple(
        f for f in failures if (f.account_id in account_ids if f.account_id else not f.subject or f.subject in subjects)
    )
