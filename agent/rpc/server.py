"""Door, gRPC: each handler decodes, makes one call into the core, and encodes. The edge where errors become statuses.

Called by the gateway (gateway/agents). Writes go to reconcile.py; live reads run on the reader thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from agent.desired import Desired, Snapshot
from agent.errors import AgentError, IdentityError, InvalidValue, KernelError, NotFound, StaleRevision, StoreError
from agent.live import LiveAccount, LiveReads, LiveServer
from agent.model import Account, Server
from agent.reconcile import Reconciler
from agent.renewal import Renewal
from agent.rpc import bounds, codec
from agent.usage import DayTotal
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1 import agent_pb2_grpc

T = TypeVar("T")
log = logging.getLogger("agent.rpc")

SERVICE = "wirelane.agent.v1.Agent"
CHUNK = 2_000  # rows in one streamed message: well under the default limit of 4 MB
MAX_SETTLE_SECONDS = 300.0
READ_SECONDS = 10.0
SAMPLE_SECONDS = 10.0

# Most specific first.
STATUS_CODES: tuple[tuple[type[AgentError], grpc.StatusCode, str], ...] = (
    (StaleRevision, grpc.StatusCode.FAILED_PRECONDITION, "stale: "),
    (InvalidValue, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (IdentityError, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (NotFound, grpc.StatusCode.NOT_FOUND, ""),
    (KernelError, grpc.StatusCode.UNAVAILABLE, ""),
    (StoreError, grpc.StatusCode.UNAVAILABLE, ""),
)


class TotalsStore(Protocol):
    epoch: str

    def totals(self, after: int, account_ids: tuple[int, ...] = ()) -> tuple[int, list[DayTotal]]: ...


class AgentServicer(agent_pb2_grpc.AgentServicer):
    def __init__(
        self,
        reconciler: Reconciler,
        store: TotalsStore,
        live: LiveReads,
        reader_thread: Executor,
        renewal: Renewal,
        version: str,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        """`heard`: is told of each look of a gateway."""
        self._reconciler = reconciler
        self._store = store
        self._snapshots = asyncio.Lock()
        self._live = live
        self._thread = reader_thread
        self._renewal = renewal
        self._version = version
        self._heard = heard

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        if not request.onlooker:
            self._heard()
        return codec.status_out(self._reconciler.status(), self._renewal.standing, self._version)

    async def Patch(self, request: pb.PatchRequest, context: Any) -> pb.ApplyReply:
        async def call() -> pb.ApplyReply:
            large = len(request.put_accounts) > CHUNK  # takes its time, which others shall not wait for
            patch = await asyncio.to_thread(codec.patch_in, request) if large else codec.patch_in(request)
            return codec.settled_out(await self._reconciler.accept_patch(patch, _seconds(request.settle_ms)))

        return await _translated(context, call)

    async def Snapshot(self, requests: AsyncIterator[pb.SnapshotChunk], context: Any) -> pb.ApplyReply:
        async def call() -> pb.ApplyReply:
            try:
                await asyncio.wait_for(self._snapshots.acquire(), bounds.TURN_SECONDS)
            except TimeoutError:
                raise KernelError("another snapshot is still on its way to this agent; try again") from None
            try:
                snapshot, settle_ms = await _collected(requests)
                return codec.settled_out(await self._reconciler.accept_snapshot(snapshot, _seconds(settle_ms)))
            finally:
                self._snapshots.release()

        return await _translated(context, call)

    async def Totals(self, request: pb.TotalsRequest, context: Any) -> AsyncIterator[pb.TotalsChunk]:
        async def call() -> tuple[int, list[DayTotal]]:
            if request.fresh:
                async with asyncio.timeout(SAMPLE_SECONDS):
                    await self._reconciler.sample()
            bounds.number("after", request.after)
            bounds.count("account_ids", request.account_ids, bounds.MOST_ASKED_FOR)
            for account_id in request.account_ids:
                bounds.number("account_ids", account_id)
            after = request.after if request.epoch == self._store.epoch else 0
            return await asyncio.to_thread(self._store.totals, after, tuple(request.account_ids))

        cursor, totals = await _translated(context, call)
        for chunk in codec.totals_out(self._store.epoch, cursor, totals, CHUNK):
            yield chunk

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectReply:
        desired = self._reconciler.desired

        def read() -> LiveAccount:
            return self._live.read_account(desired, request.account_id, codec.look_in(request.look))

        return _inspect_out(await _translated(context, lambda: self._read(read)))

    async def InspectServer(self, request: pb.InspectServerRequest, context: Any) -> pb.InspectServerReply:
        desired = self._reconciler.desired

        def read() -> LiveServer:
            return self._live.read_server(desired, request.server)

        return codec.live_server_out(await _translated(context, lambda: self._read(read)))

    async def Resync(self, request: pb.ResyncRequest, context: Any) -> pb.ResyncReply:
        self._reconciler.request_resync()
        return pb.ResyncReply()

    async def Peers(self, request: pb.PeersRequest, context: Any) -> AsyncIterator[pb.PeersChunk]:
        desired = self._reconciler.desired
        peers = await _translated(context, lambda: self._read(lambda: self._live.read_peers(desired, request.server)))
        for start in range(0, len(peers), CHUNK):
            yield pb.PeersChunk(peers=(codec.peer_out(*peer) for peer in peers[start : start + CHUNK]))

    async def Sessions(self, request: pb.SessionsRequest, context: Any) -> AsyncIterator[pb.SessionsChunk]:
        desired = self._reconciler.desired
        read = partial(self._live.read_sessions, desired, request.server)
        found = await _translated(context, lambda: self._read(read))
        for start in range(0, len(found), CHUNK):
            yield pb.SessionsChunk(sessions=(codec.session_out(*one) for one in found[start : start + CHUNK]))

    async def Disconnect(self, request: pb.DisconnectRequest, context: Any) -> pb.DisconnectReply:
        read = partial(self._live.disconnect, self._reconciler.desired, request.account_id)
        return pb.DisconnectReply(was_connected=await _translated(context, lambda: self._read(read)))

    async def Held(self, request: pb.HeldRequest, context: Any) -> AsyncIterator[pb.SnapshotChunk]:
        desired = self._reconciler.desired or Desired("")
        for chunk in codec.held_out(desired, CHUNK):
            yield chunk
            await asyncio.sleep(0)  # as in Snapshot

    async def NewKey(self, request: pb.NewKeyRequest, context: Any) -> pb.NewKeyReply:
        async def call() -> pb.NewKeyReply:
            return pb.NewKeyReply(public_key=self._renewal.new_key())

        return await _translated(context, call)

    async def SetCertificate(self, request: pb.SetCertificateRequest, context: Any) -> pb.SetCertificateReply:
        async def call() -> pb.SetCertificateReply:
            for field in ("certificate", "authorities"):
                bounds.count(field, getattr(request, field), bounds.LONGEST_CERTIFICATES)
            now = datetime.now(UTC)
            await asyncio.to_thread(self._renewal.take, request.certificate, request.authorities, now)
            return pb.SetCertificateReply()

        return await _translated(context, call)

    async def _read(self, call: Callable[[], T]) -> T:
        async with asyncio.timeout(READ_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)


async def _collected(requests: AsyncIterator[pb.SnapshotChunk]) -> tuple[Snapshot, int]:
    """A snapshot and its settle_ms. Raises InvalidValue."""
    header: pb.SnapshotHeader | None = None
    servers: list[Server] = []
    accounts: list[Account] = []
    async for chunk in _in_time(requests):
        if header is None:
            if not chunk.HasField("header"):
                raise InvalidValue("header", "the first chunk of a snapshot must have it")
            header = codec.header_in(chunk.header)
        bounds.count("servers", len(servers) + len(chunk.servers), header.server_count)
        bounds.count("accounts", len(accounts) + len(chunk.accounts), header.account_count)
        servers.extend(map(codec.server_in, chunk.servers))
        accounts.extend(map(codec.account_in, chunk.accounts))
        await asyncio.sleep(0)  # decoding a chunk takes milliseconds; others have their turn in between
    if header is None:
        raise InvalidValue("header", "the first chunk of a snapshot must have it")
    return codec.snapshot_in(header, servers, accounts), header.settle_ms


async def _in_time(requests: AsyncIterator[pb.SnapshotChunk]) -> AsyncIterator[pb.SnapshotChunk]:
    """Whoever begins a snapshot and sends no more must not be waited for. Raises InvalidValue."""
    ends = asyncio.get_running_loop().time() + bounds.SNAPSHOT_SECONDS
    while True:
        left = ends - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(bounds.CHUNK_SECONDS, left)):
                chunk = await anext(requests)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise InvalidValue("snapshot", "its next part did not come in time") from None
        yield chunk


def _seconds(milliseconds: int) -> float:
    return min(milliseconds / 1000, MAX_SETTLE_SECONDS)


def _inspect_out(live: LiveAccount) -> pb.InspectReply:
    def traffic_class(device: str, text: str | None) -> pb.TrafficClass | None:
        return None if text is None else pb.TrafficClass(device=device, text=text)

    return pb.InspectReply(
        peer=codec.peer_out(live.peer, live.account.id) if live.peer else None,
        marks=codec.counters_out(live.account.mark, live.counters) if live.counters else None,
        upload_class=traffic_class(live.uplink, live.upload_class),
        download_class=traffic_class(live.interface, live.download_class),
        uplink=live.uplink,
        interface=live.interface,
        marks_ipv6=codec.counters_out(live.account.mark, live.counters_ipv6) if live.counters_ipv6 else None,
    )


async def _translated(context: Any, call: Callable[[], Awaitable[T]]) -> T:
    """Runs a call; what it raises on purpose becomes a gRPC status. A bug is logged, and is INTERNAL without a text."""
    try:
        return await call()
    except TimeoutError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the kernel did not answer in time; try again")
    except AgentError as error:
        code, prefix = next((c, p) for kind, c, p in STATUS_CODES if isinstance(error, kind))
        await context.abort(code, f"{prefix}{error}")
    except asyncio.CancelledError:
        raise
    except Exception:
        log.exception("bug in an RPC")
        await context.abort(grpc.StatusCode.INTERNAL, "internal error; see the agent's log")
    raise AssertionError("abort raises")


class RpcServer:
    """The gRPC server with the agent's service and the standard health service. Others say where it listens."""

    def __init__(self, servicer: AgentServicer) -> None:
        self._servicer = servicer
        self._health = HealthServicer()
        self.grpc = self.sibling()

    def sibling(
        self, options: Sequence[tuple[str, int]] = (), interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()
    ) -> grpc.aio.Server:
        """Another server of the same services, with bounds of its own."""
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", bounds.MESSAGE_BYTES), *options],
            interceptors=interceptors,
            maximum_concurrent_rpcs=bounds.CALLS_AT_ONCE,
        )
        agent_pb2_grpc.add_AgentServicer_to_server(self._servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        return server

    async def start(self) -> None:
        """Answers from now on; health says NOT_SERVING until `ready`."""
        await self.grpc.start()
        await self._tell(health_pb2.HealthCheckResponse.NOT_SERVING)

    async def ready(self) -> None:
        await self._tell(health_pb2.HealthCheckResponse.SERVING)

    async def _tell(self, serving: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, serving)

    async def stop(self, grace_seconds: float) -> None:
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_seconds)
