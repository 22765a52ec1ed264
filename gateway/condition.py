"""PURE: how a node does, as one value: its row in the database beside what its agent says.

Never asks anybody. Made by system.py (of what sync knows) and node_commands.py (of what the agent just said); the
status of the API, /metrics and `node list` show it, so that all of them say the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.model import AgentStatus, Failure, Node

OK, PENDING, FAILED, CONTESTED, AWAY = STATES = ("OK", "pending", "failed", "contested", "away")
MOST_TOLD = 10  # failures; the others are counted


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of an agent. `status`: what it last said; None = it does not answer: `away` says why, and `cause`
    in a word (see AgentUnreachable). `contested`: why nothing is sent to it."""

    status: AgentStatus | None = None
    away: str = ""
    cause: str = ""
    contested: str = ""


@dataclass(frozen=True, slots=True)
class Condition:
    """`now`: Unix seconds by our clock. `collected`: seconds since its usage was last fetched; None = it was not."""

    node: Node
    report: Report
    now: float
    collected: float | None = None

    @property
    def state(self) -> str:
        """One of STATES."""
        status = self.report.status
        if status is None:
            return AWAY
        if self.report.contested:
            return CONTESTED
        if status.failures or status.problem:
            return FAILED
        if not self.node.epoch or self.pending or status.applied_revision < status.revision:
            return PENDING
        return OK

    @property
    def pending(self) -> int:
        """Revisions that the agent does not hold yet. Where it is contested its own number counts another history."""
        held, status = self.node.acknowledged, self.report.status
        if status is not None and status.epoch == self.node.epoch and not self.report.contested:
            held = max(held, status.revision)  # its own word comes a moment before its acknowledgement is written
        return max(self.node.revision - held, 0)

    @property
    def problem(self) -> str:
        """What is wrong, for people; "" = nothing."""
        report = self.report
        if report.status is None:
            why = f": {report.away}" if report.away else ""
            waiting = f"; {self.pending} changes wait for it" if self.pending else ""
            return f"the agent does not answer{why}{waiting}"
        if self.state == PENDING:
            return "not everything is applied yet"
        whole = dict.fromkeys((report.contested, report.status.problem))  # sync gives the one for the other, too
        return "; ".join(filter(None, (*whole, *self._refusals())))

    def _refusals(self) -> Iterable[str]:
        assert self.report.status is not None
        failures = self.report.status.failures
        yield from (f"{failure.subject or 'node'}: {failure.reason}" for failure in failures[:MOST_TOLD])
        if len(failures) > MOST_TOLD:
            yield f"and {len(failures) - MOST_TOLD} more"

    @property
    def failures(self) -> tuple[Failure, ...]:
        return self.report.status.failures if self.report.status is not None else ()

    @property
    def failed_accounts(self) -> int:
        return len({failure.account_id for failure in self.failures if failure.account_id})

    @property
    def sample_age(self) -> float | None:
        """Seconds since the agent last read the counters, by its own clock; None = nobody knows."""
        return self._age(self.report.status.last_sample_time if self.report.status else 0)

    @property
    def resync_age(self) -> float | None:
        """Seconds since the agent last read everything back."""
        return self._age(self.report.status.last_resync_time if self.report.status else 0)

    @property
    def certificate_expires(self) -> int | None:
        """Unix seconds; None = it has none, or nobody knows."""
        return (self.report.status.certificate_expires or None) if self.report.status else None

    def _age(self, at: int) -> float | None:
        status = self.report.status
        if not at or status is None or status.clock_offset is None:
            return None
        return max(self.now + status.clock_offset - at, 0.0)
