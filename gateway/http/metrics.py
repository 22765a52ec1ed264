"""/metrics, for Prometheus: what `status` says of the fleet and what this process has counted; nothing else.

Labels are bounded and say nothing of customers: nodes, path templates, statuses, words of ours. Who may read it:
access.py (docs/operations.md, "Monitoring"). Called by app.py; the journal tells each request to `Calls`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import Response

from gateway.condition import STATES, Condition
from gateway.errors import DatabaseUnavailable
from gateway.http.access import METRICS_PATH
from gateway.http.note import Note
from gateway.http.path import Answers
from gateway.http.services import Services
from gateway.model import AgentStatus
from gateway.system import VERSION, Fleet

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})  # any other is "other": a stranger may invent them
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # a call waits settle_seconds at most, 2 s
LONGEST_VALUE = 64  # characters of a label that an agent wrote

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, for a time that nobody asks for


class Calls:
    """The HTTP calls of one gateway, and its process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._count = Counter(
            "wirelane_http_requests",
            "Requests, by path template and by the status that http_status = semantic gives.",
            ("method", "path", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "wirelane_http_request_duration_seconds",
            "From a request's head to the end of its answer, by path template.",
            ("method", "path"),
            buckets=SECONDS,
            registry=self.registry,
        )

    def ended(self, method: str, path: str, status: int, seconds: float) -> None:
        """`path`: a template."""
        known = method if method in METHODS else "other"
        self._count.labels(known, path, str(status)).inc()
        self._seconds.labels(known, path).observe(seconds)


Family = type[GaugeMetricFamily] | type[CounterMetricFamily]
Samples = Iterable[tuple[Sequence[str], float]]
DOWNLOAD, UPLOAD = ("download",), ("upload",)


@dataclass(frozen=True, slots=True)
class _Shown:
    """A family with a sample for each node and each value of its other labels. No sample: nobody knows."""

    family: Family
    name: str
    documentation: str
    samples: Callable[[Condition], Samples]
    labels: tuple[str, ...] = ()

    def of(self, nodes: Iterable[Condition]) -> Metric:
        return _filled(
            self.family(f"wirelane_node_{self.name}", self.documentation, labels=("node", *self.labels)),
            (((one.node.name, *labels), value) for one in nodes for labels, value in self.samples(one)),
        )


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _one(value: Callable[[Condition], float | None]) -> Callable[[Condition], Samples]:
    def samples(one: Condition) -> Samples:
        return () if (found := value(one)) is None else (((), found),)

    return samples


def _said(value: Callable[[AgentStatus], float | None]) -> Callable[[Condition], Samples]:
    """What the agent last said; nothing while it is away."""
    return _one(lambda one: value(one.report.status) if one.report.status is not None else None)


def _about(one: Condition) -> Samples:
    if (status := one.report.status) is not None:
        yield [text[:LONGEST_VALUE] for text in (status.version, status.wireguard, status.marks)], 1


def _counted(one: Condition) -> Samples:
    if (status := one.report.status) is not None:
        yield from ((DOWNLOAD, status.counted_download), (UPLOAD, status.counted_upload))


NODE_FAMILIES = (
    _Shown(GaugeMetricFamily, "info", "1, with what the agent is.", _about, ("version", "wireguard", "marks")),
    _Shown(
        GaugeMetricFamily, "reachable", "1: its agent answers.", _one(lambda one: float(one.report.status is not None))
    ),
    _Shown(
        GaugeMetricFamily,
        "unreachable",
        "1 while its agent does not answer, with the cause.",
        lambda one: (((one.report.cause or "unknown",), 1),) if one.report.status is None else (),
        ("cause",),
    ),
    _Shown(
        GaugeMetricFamily,
        "state",
        "1 for the state that it is in, 0 for the others.",
        lambda one: (((state,), float(state == one.state)) for state in STATES),
        ("state",),
    ),
    _Shown(GaugeMetricFamily, "desired_revision", "What it should hold.", _one(lambda one: one.node.revision)),
    _Shown(
        GaugeMetricFamily,
        "acknowledged_revision",
        "What it said that it holds, as the database knows it.",
        _one(lambda one: one.node.acknowledged),
    ),
    _Shown(GaugeMetricFamily, "applied_revision", "What its kernel shows.", _said(lambda it: it.applied_revision)),
    _Shown(GaugeMetricFamily, "pending_changes", "Revisions that it does not hold yet.", _one(lambda one: one.pending)),
    _Shown(
        GaugeMetricFamily,
        "failed_accounts",
        "Accounts of which its kernel refused something.",
        _one(lambda one: one.failed_accounts if one.report.status else None),
    ),
    _Shown(GaugeMetricFamily, "drained", "1: it takes no new servers.", _one(lambda one: float(one.node.drained))),
    _Shown(GaugeMetricFamily, "warnings", "Things on the host that do harm.", _said(lambda it: len(it.warnings))),
    _Shown(
        CounterMetricFamily,
        "drift_objects",
        "Differences that nobody asked for, repaired since its agent started.",
        _said(lambda it: it.drift_count),
    ),
    _Shown(
        GaugeMetricFamily,
        "clock_offset_seconds",
        "How far its clock is ahead of the gateway's.",
        _said(lambda it: it.clock_offset),
    ),
    _Shown(
        GaugeMetricFamily,
        "sample_age_seconds",
        "Since its agent last read the traffic counters.",
        _one(lambda one: one.sample_age),
    ),
    _Shown(
        GaugeMetricFamily,
        "resync_age_seconds",
        "Since its agent last read everything back.",
        _one(lambda one: one.resync_age),
    ),
    _Shown(
        GaugeMetricFamily,
        "collection_age_seconds",
        "Since this gateway last fetched its traffic totals.",
        _one(lambda one: one.collected),
    ),
    _Shown(
        GaugeMetricFamily,
        "certificate_expiry_timestamp_seconds",
        "When its certificate ends, of a node on another host.",
        _one(lambda one: one.certificate_expires),
    ),
    _Shown(GaugeMetricFamily, "accounts", "Accounts that it holds.", _said(lambda it: it.accounts)),
    _Shown(GaugeMetricFamily, "servers", "Servers that it holds.", _said(lambda it: it.servers)),
    _Shown(
        CounterMetricFamily,
        "counted_bytes",
        "Inner IP bytes of all accounts that its agent counted since it started.",
        _counted,
        ("direction",),
    ),
    _Shown(
        CounterMetricFamily,
        "refused_connections",
        "Connections beyond an account's bound.",
        _said(lambda it: it.refused_connections),
    ),
)
DATABASE_REASONS = {  # by the state of DatabaseUnavailable
    "": "no-answer",
    "is read-only": "read-only",
    "has no room left on its disk": "full",
    "is locked by somebody else": "locked",
}


class Scrape:
    """What one answer shows. `fleet` None: the database does not answer."""

    def __init__(self, calls: Calls, troubles: Mapping[str, int], fleet: Fleet | None) -> None:
        self._calls, self._troubles, self._fleet = calls, troubles, fleet

    def collect(self) -> Iterator[Metric]:
        yield from self._calls.registry.collect()
        about = GaugeMetricFamily("wirelane_gateway_info", "1, with what it is.", labels=("version",))
        yield _filled(about, (((VERSION,), 1),))
        errors = CounterMetricFamily(
            "wirelane_database_errors", "Work that the database did not do, by reason.", labels=("reason",)
        )
        yield _filled(errors, (((word,), self._troubles.get(state, 0)) for state, word in DATABASE_REASONS.items()))
        is_up = self._fleet is not None and not self._fleet.database
        yield GaugeMetricFamily("wirelane_database_available", "1: it takes changes.", float(is_up))
        if self._fleet is not None:
            yield GaugeMetricFamily("wirelane_nodes", "Nodes that there are.", len(self._fleet.nodes))
            yield GaugeMetricFamily("wirelane_accounts", "Accounts in the database.", self._fleet.accounts)
            yield GaugeMetricFamily("wirelane_servers", "Servers in the database.", self._fleet.servers)
            if self._fleet.ikev2_ends:
                yield GaugeMetricFamily(
                    "wirelane_ikev2_certificate_expiry_timestamp_seconds",
                    "When the certificate ends that nodes show by IKEv2.",
                    self._fleet.ikev2_ends,
                )
            yield from (shown.of(self._fleet.nodes) for shown in NODE_FAMILIES)


def paths(services: Services, calls: Calls) -> dict[str, Answers]:
    async def read(request: Request) -> Response:
        """Answers also while the database is away: then it says so, and nothing of the nodes."""
        try:
            fleet = await services.system.fleet()
        except DatabaseUnavailable:
            fleet = None
        Note.of(request.scope).silent = True
        scrape = Scrape(calls, services.system.database_troubles(), fleet)
        shown = await asyncio.to_thread(
            generate_latest, scrape
        )  # 30 ms for a hundred nodes, which nobody shall wait for
        return Response(shown, headers={"Cache-Control": "no-store"}, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return {METRICS_PATH: {"GET": read}}
