"""The gRPC door to the agents: one method for each call of protos/agent/v1/agent.proto, on the node's line.

Owns the deadline of every call. Translates gRPC's errors, here and nowhere else (see `_translated`).
Never retries and never decides what to send: that is sync.py's. Called by sync, collect, and by accounts and servers
for live reads.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio

from gateway.agents import codec
from gateway.agents.lines import Line, Lines
from gateway.agents.probe import Reasons
from gateway.authority import Credentials
from gateway.errors import AgentUnreachable
from gateway.live import HeldObject, LiveServer, Session
from gateway.model import (
    AgentStatus,
    Applied,
    DayTotal,
    LiveAccount,
    Look,
    Node,
    Patch,
    PeerState,
    Snapshot,
)
from protos.agent.v1 import agent_pb2 as pb

if TYPE_CHECKING:  # a type only; it does not exist at run time
    from protos.agent.v1.agent_pb2_grpc import AgentAsyncStub

# Deadlines in seconds. What waits for the kernel gets its settle time on top.
STATUS_SECONDS = 3.0
PATCH_SECONDS = 10.0
SNAPSHOT_SECONDS = 60.0
LIVE_SECONDS = 5.0
TOTALS_SECONDS = 30.0
SLOW_SECONDS = 7.0  # more for a short call that has to go behind a long one
# Rows in one answer. An agent tells 100,000 totals at most, the oldest first, and is asked again.
MOST_TOTALS, MOST_PEERS, MOST_HELD = 200_000, 40_000, 44_000
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)  # no answer came

T = TypeVar("T")


class StaleAgent(AgentUnreachable):
    """The patch starts where the agent is not: read its status, then decide again."""


class AgentRefused(AgentUnreachable):
    """The agent says that a value cannot be right. Nothing was changed; the same call will be refused again."""


class AgentLacks(AgentUnreachable):
    """The agent does not hold this account or server (yet)."""


@contextmanager
def _translated(node: Node) -> Iterator[None]:
    """The one place where gRPC's errors become ours."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        code, text = error.code(), f"node {node.name}: {error.details() or error.code().name}"
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            raise StaleAgent(text) from None
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            raise AgentRefused(text) from None
        if code is grpc.StatusCode.NOT_FOUND:
            raise AgentLacks(text) from None
        cause = "refused" if code is grpc.StatusCode.UNAUTHENTICATED else "no-answer"
        raise AgentUnreachable(f"{text} ({code.name})", cause) from None
    except ValueError as error:
        raise AgentUnreachable(f"node {node.name}: an answer that makes no sense: {error}") from error


class Agents:
    """Every agent, by node. `credentials`: what this gateway shows those on other hosts; None = it has nothing.
    `this_host`: the one that it runs on, where others share the database; see gateway/host.py."""

    def __init__(self, credentials: Callable[[], Credentials | None] = lambda: None, this_host: str = "") -> None:
        self._lines = Lines(credentials, this_host)
        self._reasons = Reasons()
        self._told_back: Callable[[str], None] = lambda node: None

    def when_back(self, tell: Callable[[str], None]) -> None:
        """`tell` gets the name of each node whose status could not be read, as soon as there is a connection again."""
        self._told_back = tell

    async def status(self, node: Node) -> AgentStatus:
        """What the agent is and how it does; cheap. Raises AgentUnreachable, which says why in words for people."""
        line = self._lines.to(node)
        with _translated(node):
            try:
                return await _asked(line, STATUS_SECONDS, _status)
            except grpc.aio.AioRpcError as error:
                if error.code() not in LOST:
                    raise
                line.when_back(lambda: self._told_back(node.name))
                if line.way.credentials is None:
                    raise
                why = await self._reasons.why(line.way, error.details() or error.code().name)
                raise AgentUnreachable(f"node {node.name}: {why.text}", why.cause) from None

    async def patch(self, node: Node, patch: Patch, settle_ms: int) -> Applied:
        """Sends changes; waits up to settle_ms for the kernel. Raises StaleAgent, AgentRefused, AgentUnreachable."""
        request, seconds = codec.patch_request(patch, settle_ms), PATCH_SECONDS + settle_ms / 1000
        line = self._lines.to(node)
        with _translated(node):
            return codec.applied(await _asked(line, seconds, lambda on, seconds: on.Patch(request, timeout=seconds)))

    async def snapshot(self, node: Node, snapshot: Snapshot, settle_ms: int) -> Applied:
        """Sends everything, in chunks. Raises AgentRefused, AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node), line.long_call():
            chunks = line.sent(codec.snapshot_chunks(snapshot, settle_ms))
            stub = await line.bulk()
            return codec.applied(await stub.Snapshot(chunks, timeout=SNAPSHOT_SECONDS + settle_ms / 1000))

    async def totals(
        self, node: Node, epoch: str, after: int, account_ids: Iterable[int] = (), *, fresh: bool = False
    ) -> tuple[str, int, list[DayTotal]]:
        """Usage that changed after a cursor of an epoch: (epoch, cursor, totals).

        `fresh`: the agent reads the kernel's counters first. Another epoch than the agent's is answered from 0.
        """
        ids = tuple(account_ids)
        request = pb.TotalsRequest(after=after, epoch=epoch, account_ids=ids, fresh=fresh)
        found_epoch, cursor, totals = "", 0, list[DayTotal]()
        line = self._lines.to(node)
        with _translated(node), line.long_call():
            stub = await (line.fast() if ids else line.bulk())
            call = stub.Totals(request, timeout=TOTALS_SECONDS)
            async for chunk in line.received(call, lambda part: part.totals, MOST_TOTALS):
                if found_epoch not in ("", codec.epoch_in(chunk.epoch)):
                    raise ValueError("two epochs in one answer")
                found_epoch, cursor = chunk.epoch, chunk.cursor
                totals.extend(codec.day_total(total) for total in chunk.totals)
            if not found_epoch:
                raise ValueError("totals without an epoch")
        return found_epoch, cursor, totals

    async def inspect(self, node: Node, account_id: int, look: Look | None = None) -> LiveAccount:
        """One account as the kernel has it now; `look`: only that of it. Raises AgentLacks, AgentUnreachable."""
        request = pb.InspectRequest(account_id=account_id, look=codec.LOOKS[look])
        line = self._lines.to(node)
        with _translated(node):
            return codec.live_account(
                await _asked(line, LIVE_SECONDS, lambda on, seconds: on.Inspect(request, timeout=seconds))
            )

    async def inspect_server(self, node: Node, server: str) -> LiveServer:
        """One server as the kernel has it now. Raises AgentLacks, AgentUnreachable."""
        request = pb.InspectServerRequest(server=server)
        line = self._lines.to(node)
        with _translated(node):
            return codec.live_server(
                await _asked(line, LIVE_SECONDS, lambda on, seconds: on.InspectServer(request, timeout=seconds))
            )

    async def resync(self, node: Node) -> None:
        """Let it compare its whole kernel with what is desired, from now on. Raises AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node):
            await _asked(line, STATUS_SECONDS, lambda on, seconds: on.Resync(pb.ResyncRequest(), timeout=seconds))

    async def peers(self, node: Node, server: str) -> list[PeerState]:
        """The peers of one server as WireGuard has them now. Raises AgentLacks, AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node), line.long_call():
            call = (await line.bulk()).Peers(pb.PeersRequest(server=server), timeout=LIVE_SECONDS)
            chunks = line.received(call, lambda part: part.peers, MOST_PEERS)
            return [codec.peer_state(peer) async for chunk in chunks for peer in chunk.peers]

    async def sessions(self, node: Node) -> list[Session]:
        """Who is in by IKEv2. Raises AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node), line.long_call():
            call = (await line.bulk()).Sessions(pb.SessionsRequest(), timeout=LIVE_SECONDS)
            chunks = line.received(call, lambda part: part.sessions, MOST_PEERS)
            return [codec.session(session) async for chunk in chunks for session in chunk.sessions]

    async def disconnect(self, node: Node, account_id: int) -> None:
        """Ends its session of IKEv2. Raises AgentLacks, AgentUnreachable."""
        request, line = pb.DisconnectRequest(account_id=account_id), self._lines.to(node)
        with _translated(node):
            await _asked(line, LIVE_SECONDS, lambda on, seconds: on.Disconnect(request, timeout=seconds))

    async def held(self, node: Node) -> list[HeldObject]:
        """Every server and account that the agent holds. Raises AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node), line.long_call():
            call = (await line.bulk()).Held(pb.HeldRequest(), timeout=SNAPSHOT_SECONDS)
            chunks = line.received(call, lambda part: (*part.servers, *part.accounts), MOST_HELD)
            return [one async for chunk in chunks for one in codec.held_objects(chunk)]

    async def new_key(self, node: Node) -> bytes:
        """The public half (SubjectPublicKeyInfo, DER) of a key that it made. Raises AgentRefused, AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node):
            reply = await (await line.fast()).NewKey(pb.NewKeyRequest(), timeout=LIVE_SECONDS)
            return reply.public_key

    async def set_certificate(self, node: Node, certificate: bytes, authorities: bytes) -> None:
        """Both PEM. Raises AgentRefused, AgentUnreachable."""
        line = self._lines.to(node)
        with _translated(node):
            request = pb.SetCertificateRequest(certificate=certificate, authorities=authorities)
            await (await line.fast()).SetCertificate(request, timeout=LIVE_SECONDS)

    def keep(self, nodes: Collection[Node]) -> None:
        """These are all nodes that there are: lets go of the lines to others, and to where one was before."""
        self._lines.keep(nodes)

    async def close(self) -> None:
        await self._lines.close()
        self._reasons.close()


async def _asked(line: Line, seconds: float, ask: Callable[[AgentAsyncStub, float], Awaitable[T]]) -> T:
    """A short call: a channel that gives way while a long call moves on the other one is no cut but a slow link."""
    try:
        return await ask(await line.fast(), seconds)
    except grpc.aio.AioRpcError as error:
        if error.code() not in LOST or not line.moves:
            raise
    return await ask(await line.bulk(), seconds + SLOW_SECONDS)


async def _status(on: AgentAsyncStub, seconds: float) -> AgentStatus:
    asked = time.time()
    reply = await on.Status(pb.StatusRequest(), timeout=seconds)
    return codec.agent_status(reply, (asked + time.time()) / 2)
