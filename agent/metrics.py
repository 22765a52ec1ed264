"""Door, HTTP: /metrics for Prometheus, where agent.toml says. Shows what `status` says and what the process uses.

One answer a connection, a few connections at a time, a deadline for each: whoever reaches the address can read, and can
do nothing else. Labels say nothing of customers. h11 reads the protocol. Called by wiring.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

import h11
from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent.errors import ConfigError
from agent.status import Status

CONNECTIONS = 8  # Prometheus needs one
SECONDS = 5.0  # from the connection to the end of the answer
HEAD_BYTES = 8_192
PATH = b"/metrics"


def bound(listen: str) -> socket.socket:
    """A socket that listens there ("127.0.0.1:9586"). Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=CONNECTIONS)
    except OSError as error:
        reason = os.strerror(error.errno or 0)  # Python's own text tells the address once more
        raise ConfigError([f"metrics: {listen}: {reason}"]) from None


class MetricsServer:
    """`status`: what the agent says of itself now."""

    def __init__(self, status: Callable[[], Status], version: str) -> None:
        self._status = status
        self._version = version
        self._process = ProcessCollector(registry=None)
        self._open = 0

    async def serve(self, listening: socket.socket) -> None:
        """Until it is cancelled."""
        server = await asyncio.start_server(self._connected, sock=listening, limit=HEAD_BYTES)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()  # and nobody who is still connected is waited for

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                with suppress(OSError, TimeoutError, h11.RemoteProtocolError):
                    async with asyncio.timeout(SECONDS):
                        await self._answer(reader, writer)
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(HEAD_BYTES))
        if not isinstance(event, h11.Request):
            return
        status, kind, body = 200, CONTENT_TYPE_PLAIN_0_0_4, b""
        if event.target.partition(b"?")[0] != PATH:
            status, kind, body = 404, "text/plain", b"there is only /metrics\n"
        elif event.method != b"GET":
            status, kind, body = 405, "text/plain", b"only GET\n"
        else:
            body = generate_latest(self)
        if event.method == b"HEAD":
            body = b""
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        for part in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(part) or b"")
        writer.close()
        await writer.wait_closed()

    def collect(self) -> Iterator[Metric]:
        """What one answer shows."""
        yield from self._process.collect()
        yield from _families(self._status(), self._version)


def _families(status: Status, version: str) -> Iterator[Metric]:
    labels = {"version": version, "node": status.origin.node, "wireguard": status.wireguard, "marks": status.marks}
    info = GaugeMetricFamily("wirelane_agent_info", "1, with what it is and whose state it holds.", labels=list(labels))
    info.add_metric(list(labels.values()), 1)
    yield info
    counted = CounterMetricFamily(
        "wirelane_agent_counted_bytes", "Inner IP bytes of all accounts, since it started.", labels=("direction",)
    )
    counted.add_metric(["download"], status.counted_download)
    counted.add_metric(["upload"], status.counted_upload)
    yield counted
    failed = len({failure.account_id for failure in status.failures if failure.account_id})
    ages = {"sample": status.last_sample_time, "resync": status.last_resync_time}
    for name, text, value in (
        ("revision", "What it holds.", status.revision),
        ("applied_revision", "What the kernel shows.", status.applied_revision),
        ("needs_snapshot", "1: it holds nothing and leaves the kernel alone.", status.needs_snapshot),
        ("problem", "1: something is wrong with the node as a whole.", bool(status.problem)),
        ("failed_accounts", "Accounts of which the kernel refused something.", failed),
        ("failures", "All that the kernel refused, also of servers and of the node.", len(status.failures)),
        ("warnings", "Things on the host that do harm.", len(status.warnings)),
        ("accounts", "Accounts that it holds.", status.accounts),
        ("servers", "Servers that it holds.", status.servers),
    ):
        yield GaugeMetricFamily(f"wirelane_agent_{name}", text, float(value))
    for name, at in ages.items():
        if at:
            text = f"Since its last {name}."
            yield GaugeMetricFamily(f"wirelane_agent_{name}_age_seconds", text, max(status.time - at, 0.0))
    if status.certificate_expires:
        yield GaugeMetricFamily(
            "wirelane_agent_certificate_expiry_timestamp_seconds",
            "When its certificate ends.",
            status.certificate_expires,
        )
    for name, text, count in (
        ("drift_objects", "Differences that nobody asked for, repaired since it started.", status.drift_count),
        ("refused_connections", "Connections beyond an account's bound.", status.refused_connections),
    ):
        yield CounterMetricFamily(f"wirelane_agent_{name}", text, count)
