"""What a pass of the writer did, and what it saw. Values only; reconcile.py makes the status of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from agent.errors import KernelError
from agent.objects import HostNetwork, PortKey
from agent.status import Failure


@dataclass(frozen=True, slots=True)
class Change:
    """One kernel object that a pass wrote. `owner`: account id, 0 = not an account's or unknown."""

    part: str
    verb: str  # "add", "change", "remove"
    key: Any
    owner: int


@dataclass(slots=True)
class Report:
    """What a pass did."""

    uplink: str = ""
    changes: list[Change] = field(default_factory=list)
    failures: dict[tuple[int, str], Failure] = field(default_factory=dict)
    warnings: tuple[str, ...] | None = None  # of a full pass; None = nobody looked
    networks: tuple[HostNetwork, ...] = ()  # the host's own, as a full pass finds them
    listening: frozenset[PortKey] = frozenset()  # the host's own, likewise
    tunnel_mtu: int = 0  # as a full pass finds it
    responder: tuple[str, int] = ("", 0)  # of IKEv2, as a full pass finds it: what it is, and its process
    refused_connections: int = 0  # as a full pass finds it
    problem: str | None = None  # of the node as a whole, which others have made; "" = none; None = nobody looked

    def refuse(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """What was left out: the account's id (0 = a server), the name, and why."""
        for account_id, subject, reason in rows:
            self.fail(account_id, subject, KernelError(reason))

    def fail(self, account_id: int, subject: str, error: KernelError | None) -> None:
        if error is None:
            return
        if account_id and not subject:
            subject = f"account {account_id}"  # gone from what was asked for, and its name with it
        self.failures.setdefault((account_id, subject), Failure(account_id, subject, str(error)))
