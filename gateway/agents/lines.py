"""The channels to the agents: one line for each node, for as long as the node is reached in the same way.

A line over TCP has two channels. *fast* notices a cut within seconds; that is why a slow link, on which packets wait
behind a snapshot, looks like a cut to it. *bulk* carries what is long, and is patient. On this host one is both.

A channel keeps the credentials that it was made with: when this gateway's certificate is renewed, when the node is
edited or gets another certificate, the next call makes a new line, and the old one is closed once its calls are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from gateway.authority import Credentials
from gateway.errors import AgentUnreachable
from gateway.model import Node
from protos.agent.v1.agent_pb2_grpc import AgentStub

if TYPE_CHECKING:  # a type only; it does not exist at run time
    from protos.agent.v1.agent_pb2_grpc import AgentAsyncStub

T = TypeVar("T")
Options = tuple[tuple[str, int | str], ...]

# How long a call waits for a lost connection to come back: gRPC looks again every half second (see below), and a call
# in between would fail although the agent was only restarted.
RECONNECT_SECONDS = 1.0
CLOSE_SECONDS = 90.0  # what calls of an old line get to come to their end; longer than any of them
MOST_IN_A_PART = 10_000  # rows; agents send 2,000
MOVED_SECONDS = 5.0  # a long call of which a part came or left within this time moves

LOCAL: Options = (
    # An agent that comes back is found again in half a second (the default backs off to two minutes).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # this one is the time a connection attempt gets
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),  # agents are never behind the proxy of the environment
)
REMOTE: Options = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),  # Linux asks again after 1 s: in a cut the line is tried every second
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # No more than 64 kB are on their way to us, so that a short answer does not wait behind a long one.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
)
# Milliseconds between pings, and for their answers; the second is TCP_USER_TIMEOUT, too. Agents permit two a second.
FAST: Options = (("grpc.keepalive_time_ms", 1000), ("grpc.keepalive_timeout_ms", 1500))
BULK: Options = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 20_000))


@dataclass(frozen=True, slots=True)
class Way:
    """How a node is reached. `credentials`: None on this host."""

    target: str
    tls_name: str
    credentials: Credentials | None


class _Channel:
    def __init__(self, way: Way, patience: Options) -> None:
        if (own := way.credentials) is None:
            self.grpc = grpc.aio.insecure_channel(way.target, options=LOCAL)
        else:
            credentials = grpc.ssl_channel_credentials(own.authorities, own.key.reveal().encode(), own.certificate)
            name = (("grpc.ssl_target_name_override", way.tls_name),)
            self.grpc = grpc.aio.secure_channel(f"dns:///{way.target}", credentials, options=REMOTE + patience + name)
        self._stub: AgentAsyncStub = AgentStub(self.grpc)

    async def ready(self) -> AgentAsyncStub:
        """For a call: once the connection is there, or was waited for."""
        if self.grpc.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.grpc.channel_ready(), RECONNECT_SECONDS)
        return self._stub


class Line:
    """How long its calls may take is the caller's matter."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._fast = _Channel(way, FAST)
        self._bulk = _Channel(way, BULK) if way.credentials else self._fast
        self._watching: asyncio.Task[None] | None = None
        self._long = 0  # calls in flight
        self._moved = float("-inf")  # when a part of one of them came or left

    async def fast(self) -> AgentAsyncStub:
        return await self._fast.ready()

    async def bulk(self) -> AgentAsyncStub:
        return await self._bulk.ready()

    @property
    def moves(self) -> bool:
        """A long call is in flight and gets on, on a channel of its own."""
        return self._bulk is not self._fast and self._long > 0 and _now() - self._moved < MOVED_SECONDS

    @contextmanager
    def long_call(self) -> Iterator[None]:
        self._long += 1
        try:
            yield
        finally:
            self._long -= 1

    def sent(self, parts: Iterable[T]) -> Iterator[T]:
        """The parts of a long call, watched: gRPC takes the next one when there is room for it."""
        for part in parts:
            yield part
            self._moved = _now()

    async def received(
        self, call: grpc.aio.UnaryStreamCall[Any, T], rows: Callable[[T], Sequence[object]], most: int
    ) -> AsyncIterator[T]:
        """The parts of a long answer, watched. Raises ValueError for more `rows` than any honest agent has: a node that
        was taken over shall not fill this process, nor hold it up."""
        count = 0
        try:
            async for part in call:
                self._moved = _now()
                found = len(rows(part))
                count += found
                if found > MOST_IN_A_PART or count > most:
                    raise ValueError(f"more than {most} rows, or {MOST_IN_A_PART} in one part")
                yield part
        finally:
            call.cancel()  # what is left of it, nobody wants

    def when_back(self, tell: Callable[[], None]) -> None:
        """Tells once, as soon as there is a connection again: whoever rests after a failure need not rest longer."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch(tell), name=f"the line to {self.way.target}")

    async def _watch(self, tell: Callable[[], None]) -> None:
        await self._fast.grpc.channel_ready()
        tell()

    async def close(self, grace: float | None = None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(channel.grpc.close(grace) for channel in {self._fast, self._bulk}))


class Lines:
    """Every line, by the id of its node. `credentials`: those in force; None = this gateway has none. `this_host`: on
    which it runs; "" = every socket is of this host."""

    def __init__(self, credentials: Callable[[], Credentials | None], this_host: str) -> None:
        self._credentials = credentials
        self._this_host = this_host
        self._lines: dict[int, Line] = {}
        self._closing: dict[asyncio.Task[None], Line] = {}

    def to(self, node: Node) -> Line:
        """Raises AgentUnreachable where there is no way at all."""
        way = self._way(node)
        line = self._lines.get(node.id)
        if line is not None and line.way == way:
            return line
        self._let_go(node.id)
        line = self._lines[node.id] = Line(way)
        return line

    def keep(self, nodes: Collection[Node]) -> None:
        """Lets go of all others, and of those that are reached in another way by now."""
        ways = {node.id: (node.target, node.tls_name) for node in nodes}
        for node_id, line in list(self._lines.items()):
            if ways.get(node_id) != (line.way.target, line.way.tls_name):
                self._let_go(node_id)

    async def close(self) -> None:
        lines = [*self._lines.values(), *self._closing.values()]
        for task in self._closing:
            task.cancel()
        self._lines.clear()
        await asyncio.gather(*(line.close() for line in lines))

    def _way(self, node: Node) -> Way:
        if node.is_local:
            if self._this_host and node.host and node.host != self._this_host:
                raise AgentUnreachable(
                    f"node {node.name}: {node.target} is on another host, and only a gateway there calls it (if its "
                    f"agent is on this one now: `wirelane-gateway node edit {node.name} --target {node.target}` here)",
                    "other-host",
                )
            return Way(node.target, "", None)
        if not node.tls_name:
            raise AgentUnreachable(
                f"node {node.name}: it is not enrolled yet: `wirelane-agent enrol` there", "not-enrolled"
            )
        credentials = self._credentials()
        if credentials is None:
            raise AgentUnreachable(f"node {node.name}: this gateway has no certificate to show it", "own-certificate")
        return Way(node.target, node.tls_name, credentials)

    def _let_go(self, node_id: int) -> None:
        if line := self._lines.pop(node_id, None):
            task = asyncio.create_task(line.close(CLOSE_SECONDS), name=f"closing the line to {line.way.target}")
            self._closing[task] = line
            task.add_done_callback(self._closing.pop)


def _now() -> float:
    return asyncio.get_running_loop().time()
