"""The gRPC door to the agents: one method for each call of protos/agent/v1/agent.proto, one channel for each target.

Owns the channels and the deadline of every call. Translates gRPC's errors, here and nowhere else (see `_translated`).
Never retries and never decides what to send: that is sync.py's. Called by sync, collect, and by accounts and servers
for live reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from gateway.agents import codec
from gateway.endpoint import is_right
from gateway.errors import AgentUnreachable, ConfigError
from gateway.model import (
    AgentStatus,
    Applied,
    DayTotal,
    HeldObject,
    LiveAccount,
    Look,
    Node,
    Patch,
    PeerState,
    Snapshot,
)
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentStub

if TYPE_CHECKING:  # a type only; it does not exist at run time
    from protos.agent.v1.agent_pb2_grpc import AgentAsyncStub

# Deadlines in seconds. What waits for the kernel gets its settle time on top.
STATUS_SECONDS = 3.0
PATCH_SECONDS = 10.0
SNAPSHOT_SECONDS = 60.0
LIVE_SECONDS = 5.0
TOTALS_SECONDS = 30.0
# How long a call waits for a lost connection to come back: gRPC looks again every half second (see below), and a call
# in between would fail although the agent was only restarted.
RECONNECT_SECONDS = 1.0

MAX_SOCKET_PATH = 107  # bytes: sun_path of unix(7) is 108 with the final zero

CHANNEL_OPTIONS = (
    # An agent that comes back is found again in half a second (the default backs off to two minutes).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # this one is the time a connection attempt gets
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),  # agents are never behind the proxy of the environment
)


class StaleAgent(AgentUnreachable):
    """The patch starts where the agent is not: read its status, then decide again."""


class AgentRefused(AgentUnreachable):
    """The agent says that a value cannot be right. Nothing was changed; the same call will be refused again."""


class AgentLacks(AgentUnreachable):
    """The agent does not hold this account or server (yet)."""


def checked_target(target: str) -> str:
    """A gRPC target that this version can reach. Raises ConfigError, which names the cure."""
    path = target.removeprefix("unix:")
    if path == target:
        return _checked_address(target)
    if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
        raise ConfigError([f"target {target!r} must name an absolute path: unix:/run/wirelane-agent/agent.sock"])
    if len(path.encode()) > MAX_SOCKET_PATH or "\0" in path:
        raise ConfigError([f"target {target!r} is too long: Linux allows {MAX_SOCKET_PATH} bytes in a socket's path"])
    return target


def _checked_address(target: str) -> str:
    host, _, port = target.rpartition(":")
    if not is_right(host) or not (port.isascii() and port.isdecimal()) or not 1 <= int(port) <= 65535:
        raise ConfigError(
            [
                f"target {target!r} must be unix:/path/of/the/agent.sock, or host:port of an agent on another host, "
                "such as 198.51.100.11:7443"
            ]
        )
    return target


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
        raise AgentUnreachable(f"{text} ({code.name})") from None
    except ValueError as error:
        raise AgentUnreachable(f"node {node.name}: an answer that makes no sense: {error}") from error


@dataclass(frozen=True, slots=True)
class _Line:
    channel: grpc.aio.Channel
    stub: AgentAsyncStub


class Agents:
    """Every agent, by node. Channels are made at the first call and live until `close`."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    async def status(self, node: Node) -> AgentStatus:
        """What the agent is and how it does; cheap. Raises AgentUnreachable."""
        with _translated(node):
            stub = await self._stub(node)
            asked = time.time()
            reply = await stub.Status(pb.StatusRequest(), timeout=STATUS_SECONDS)
            return codec.agent_status(reply, (asked + time.time()) / 2)

    async def patch(self, node: Node, patch: Patch, settle_ms: int) -> Applied:
        """Sends changes; waits up to settle_ms for the kernel. Raises StaleAgent, AgentRefused, AgentUnreachable."""
        request = codec.patch_request(patch, settle_ms)
        with _translated(node):
            stub = await self._stub(node)
            return codec.applied(await stub.Patch(request, timeout=PATCH_SECONDS + settle_ms / 1000))

    async def snapshot(self, node: Node, snapshot: Snapshot, settle_ms: int) -> Applied:
        """Sends everything, in chunks. Raises AgentRefused, AgentUnreachable."""
        with _translated(node):
            chunks = codec.snapshot_chunks(snapshot, settle_ms)
            stub = await self._stub(node)
            return codec.applied(await stub.Snapshot(chunks, timeout=SNAPSHOT_SECONDS + settle_ms / 1000))

    async def totals(
        self, node: Node, epoch: str, after: int, account_ids: Iterable[int] = (), *, fresh: bool = False
    ) -> tuple[str, int, list[DayTotal]]:
        """Usage that changed after a cursor of an epoch: (epoch, cursor, totals).

        `fresh`: the agent reads the kernel's counters first. Another epoch than the agent's is answered from 0.
        """
        request = pb.TotalsRequest(after=after, epoch=epoch, account_ids=account_ids, fresh=fresh)
        found_epoch, cursor, totals = "", 0, list[DayTotal]()
        with _translated(node):
            stub = await self._stub(node)
            async for chunk in stub.Totals(request, timeout=TOTALS_SECONDS):
                if found_epoch not in ("", chunk.epoch):
                    raise ValueError("two epochs in one answer")
                found_epoch, cursor = chunk.epoch, chunk.cursor
                totals.extend(codec.day_total(total) for total in chunk.totals)
            if not found_epoch:
                raise ValueError("totals without an epoch")
        return found_epoch, cursor, totals

    async def inspect(self, node: Node, account_id: int, look: Look | None = None) -> LiveAccount:
        """One account as the kernel has it now; `look`: only that of it. Raises AgentLacks, AgentUnreachable."""
        with _translated(node):
            request = pb.InspectRequest(account_id=account_id, look=codec.LOOKS[look])
            stub = await self._stub(node)
            return codec.live_account(await stub.Inspect(request, timeout=LIVE_SECONDS))

    async def peers(self, node: Node, server: str) -> list[PeerState]:
        """The peers of one server as WireGuard has them now. Raises AgentLacks, AgentUnreachable."""
        with _translated(node):
            stub = await self._stub(node)
            call = stub.Peers(pb.PeersRequest(server=server), timeout=LIVE_SECONDS)
            return [codec.peer_state(peer) async for chunk in call for peer in chunk.peers]

    async def held(self, node: Node) -> list[HeldObject]:
        """Every server and account that the agent holds. Raises AgentUnreachable."""
        with _translated(node):
            stub = await self._stub(node)
            call = stub.Held(pb.HeldRequest(), timeout=SNAPSHOT_SECONDS)
            return [one async for chunk in call for one in codec.held_objects(chunk)]

    async def close(self) -> None:
        lines, self._lines = self._lines, {}
        for line in lines.values():
            await line.channel.close(None)

    async def _stub(self, node: Node) -> AgentAsyncStub:
        line = self._lines.get(node.target)
        if line is None:
            if not node.is_local:
                raise AgentUnreachable(f"node {node.name}: agents on other hosts are not called yet")
            channel = grpc.aio.insecure_channel(checked_target(node.target), options=CHANNEL_OPTIONS)
            line = self._lines[node.target] = _Line(channel, AgentStub(channel))
        if line.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            with suppress(TimeoutError):
                await asyncio.wait_for(line.channel.channel_ready(), RECONNECT_SECONDS)
        return line.stub
