"""A real gRPC server on a unix socket with a FakeAgent behind it: the whole wire, without Linux.

Also a program, for trying a gateway by hand: `python -m tests.fakes.agent_server unix:/tmp/agent.sock`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, TypeVar

import grpc
import grpc.aio

from gateway.agents import AgentLacks, AgentRefused, StaleAgent
from gateway.agents.codec import LOOKS, snapshot_chunks
from gateway.errors import AgentUnreachable
from gateway.live import LiveRule
from gateway.model import (
    Account,
    AgentStatus,
    Applied,
    Failure,
    Held,
    Origin,
    Patch,
    PeerState,
    Responder,
    Secret,
    Server,
    Snapshot,
)
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server
from tests.fakes.agents import FakeAgent

CHUNK = 500
OUTCOMES = {"applied": pb.ApplyReply.APPLIED, "pending": pb.ApplyReply.PENDING, "failed": pb.ApplyReply.FAILED}
CODES: tuple[tuple[type[AgentUnreachable], grpc.StatusCode, str], ...] = (
    (StaleAgent, grpc.StatusCode.FAILED_PRECONDITION, "stale: "),
    (AgentRefused, grpc.StatusCode.INVALID_ARGUMENT, ""),
    (AgentLacks, grpc.StatusCode.NOT_FOUND, ""),
    (AgentUnreachable, grpc.StatusCode.UNAVAILABLE, ""),
)
T = TypeVar("T")


class _Refusal(Exception):
    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except AgentUnreachable as error:
        code, prefix = next((code, prefix) for kind, code, prefix in CODES if isinstance(error, kind))
        raise _Refusal(code, prefix + str(error)) from None


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]


def _server(m: pb.Server) -> Server:
    dns, dns_ipv6 = list(map(IPv4Address, m.ikev2.dns)), list(map(IPv6Address, m.ikev2.dns_ipv6))
    return Server(
        id=0,
        node="",
        name=m.name,
        interface=m.interface,
        private_key=Secret(m.private_key),
        public_key="",
        listen_port=m.listen_port,
        address=IPv4Interface(m.address),
        external_ip=IPv4Address(m.external_ip) if m.external_ip else None,
        mtu=m.mtu,
        internal_traffic=m.internal_traffic,
        reach=m.reach,
        address_ipv6=IPv6Interface(m.address_ipv6) if m.address_ipv6 else None,
        nat_ipv6=m.nat_ipv6,
        dns_1=dns[0] if dns else None,
        dns_2=dns[1] if dns[1:] else None,
        dns_1_ipv6=dns_ipv6[0] if dns_ipv6 else None,
        dns_2_ipv6=dns_ipv6[1] if dns_ipv6[1:] else None,
        responder=_responder(m.ikev2) if m.HasField("ikev2") else None,
    )


def _responder(m: pb.Ikev2) -> Responder:
    return Responder(m.certificate, Secret(m.private_key), m.authority, m.identity)


def _account(m: pb.Account) -> Account:
    return Account(
        id=m.id,
        name=m.name,
        username=m.username,
        password=Secret(m.password),
        server=m.server,
        node="",
        address=IPv4Address(m.address),
        private_key=Secret(),
        public_key=m.public_key,
        mark=m.mark,
        download=m.download,
        upload=m.upload,
        enabled=m.enabled,
        preshared_key=Secret(m.preshared_key),
        address_ipv6=IPv6Address(m.address_ipv6) if m.address_ipv6 else None,
        ports=tuple((one.protocol, one.port, one.to_port) for one in m.ports),
    )


def _origin(m: pb.Origin) -> Origin:
    return Origin(m.identity, m.mark, m.node)


def _origin_out(origin: Origin) -> pb.Origin:
    return pb.Origin(identity=origin.identity, mark=origin.mark, node=origin.node)


def _failures(failures: Sequence[Failure]) -> list[pb.Failure]:
    return [pb.Failure(account_id=f.account_id, subject=f.subject, reason=f.reason) for f in failures]


def _status(status: AgentStatus) -> pb.StatusReply:
    return pb.StatusReply(
        epoch=status.epoch,
        revision=status.revision,
        applied_revision=status.applied_revision,
        needs_snapshot=status.needs_snapshot,
        failures=_failures(status.failures),
        version=status.version,
        wireguard=status.wireguard,
        uplink=status.uplink,
        marks=status.marks,
        time_zone=status.time_zone,
        origin=_origin_out(status.origin),
        accounts=status.accounts,
        servers=status.servers,
        tunnel_mtu=status.tunnel_mtu,
        ikev2=status.ikev2[0],
        ikev2_pid=status.ikev2[1],
        asks=status.asks,
    )


def _applied(applied: Applied) -> pb.ApplyReply:
    return pb.ApplyReply(
        outcome=OUTCOMES[applied.outcome],
        epoch=applied.epoch,
        revision=applied.revision,
        failures=_failures(applied.failures),
        origin=_origin_out(applied.origin),
    )


def _peer(peer: PeerState) -> pb.Peer:
    return pb.Peer(
        public_key=peer.public_key,
        endpoint=peer.endpoint,
        keepalive=peer.keepalive,
        latest_handshake=peer.latest_handshake,
        rx_bytes=peer.rx_bytes,
        tx_bytes=peer.tx_bytes,
        address=peer.address,
        account_id=peer.account_id,
    )


def _rule(rule: LiveRule) -> pb.Rule:
    numbers = {"packets": rule.packets, "bytes": rule.octets} if rule.packets is not None else {}
    return pb.Rule(source=rule.source, destination=rule.destination, target=rule.target, **numbers)


class _Servicer(AgentServicer):
    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        with _translated():
            return _status(await self._agent.status())

    async def Patch(self, request: pb.PatchRequest, context: Any) -> pb.ApplyReply:
        patch = Patch(
            epoch=request.epoch,
            base=request.base_revision,
            revision=request.revision,
            put_servers=tuple(_server(m) for m in request.put_servers),
            remove_servers=tuple(request.remove_servers),
            put_accounts=tuple(_account(m) for m in request.put_accounts),
            remove_accounts=tuple(request.remove_accounts),
            time_zone=request.time_zone,
            origin=_origin(request.origin),
            base_mark=request.base_mark,
        )
        with _translated():
            return _applied(await self._agent.patch(patch, request.settle_ms))

    async def Snapshot(self, request_iterator: Any, context: Any) -> pb.ApplyReply:
        chunks = [chunk async for chunk in request_iterator]
        header = chunks[0].header
        snapshot = Snapshot(
            header.revision,
            tuple(_server(m) for chunk in chunks for m in chunk.servers),
            tuple(_account(m) for chunk in chunks for m in chunk.accounts),
            header.time_zone,
            _origin(header.origin),
            Held("", header.replaces_revision, _origin(header.replaces)) if header.replaces.identity else None,
        )
        if (len(snapshot.servers), len(snapshot.accounts)) != (header.server_count, header.account_count):
            raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, "snapshot: not as many as its header says")
        with _translated():
            return _applied(await self._agent.snapshot(snapshot, header.settle_ms))

    async def Totals(self, request: pb.TotalsRequest, context: Any) -> AsyncIterator[pb.TotalsChunk]:
        with _translated():
            epoch, cursor, totals = await self._agent.totals(
                request.epoch, request.after, request.account_ids, fresh=request.fresh
            )
        for chunk in _chunks(totals):
            days = [
                pb.DayTotal(
                    account_id=t.account_id,
                    day=t.day.year * 10000 + t.day.month * 100 + t.day.day,
                    download_bytes=t.download,
                    upload_bytes=t.upload,
                )
                for t in chunk
            ]
            yield pb.TotalsChunk(epoch=epoch, totals=days)
        yield pb.TotalsChunk(epoch=epoch, cursor=cursor)

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectReply:
        with _translated():
            looks = {number: look for look, number in LOOKS.items()}
            live = await self._agent.inspect(request.account_id, looks[request.look])
        reply = pb.InspectReply(uplink=live.uplink, interface=live.interface)
        if live.peer:
            reply.peer.CopyFrom(_peer(live.peer))
        if live.marks:
            reply.marks.CopyFrom(
                pb.MarkCounters(
                    mark=live.marks.mark,
                    download_packets=live.marks.download_packets,
                    download_bytes=live.marks.download_bytes,
                    upload_packets=live.marks.upload_packets,
                    upload_bytes=live.marks.upload_bytes,
                )
            )
        if live.upload_class is not None:
            reply.upload_class.CopyFrom(pb.TrafficClass(device=live.uplink, text=live.upload_class))
        if live.download_class is not None:
            reply.download_class.CopyFrom(pb.TrafficClass(device=live.interface, text=live.download_class))
        return reply

    async def InspectServer(self, request: pb.InspectServerRequest, context: Any) -> pb.InspectServerReply:
        with _translated():
            live = await self._agent.inspect_server(request.server)
        uplink, link = (pb.TrafficClass(device=device, text=text) for device, text in live.roots)
        return pb.InspectServerReply(
            nat=map(_rule, live.nat), forward=map(_rule, live.forward), uplink_root=uplink, link_root=link
        )

    async def Resync(self, request: pb.ResyncRequest, context: Any) -> pb.ResyncReply:
        with _translated():
            await self._agent.resync()
        return pb.ResyncReply()

    async def Peers(self, request: pb.PeersRequest, context: Any) -> AsyncIterator[pb.PeersChunk]:
        with _translated():
            peers = await self._agent.peers(request.server)
        for chunk in _chunks(peers):
            yield pb.PeersChunk(peers=[_peer(peer) for peer in chunk])

    async def Sessions(self, request: pb.SessionsRequest, context: Any) -> AsyncIterator[pb.SessionsChunk]:
        with _translated():
            sessions = await self._agent.who_is_in()
        for chunk in _chunks(sessions):
            named = ((one.account_id, one.endpoint, one.established) for one in chunk)
            yield pb.SessionsChunk(
                sessions=[pb.Session(account_id=i, endpoint=where, established=at) for i, where, at in named]
            )

    async def Disconnect(self, request: pb.DisconnectRequest, context: Any) -> pb.DisconnectReply:
        with _translated():
            return pb.DisconnectReply(was_connected=await self._agent.disconnect(request.account_id))

    async def Held(self, request: pb.HeldRequest, context: Any) -> AsyncIterator[pb.SnapshotChunk]:
        with _translated():
            await self._agent.held()
        held = Snapshot(self._agent.revision, tuple(self._agent.servers.values()), tuple(self._agent.accounts.values()))
        for chunk in snapshot_chunks(held, 0):
            for server in chunk.servers:
                server.private_key = ""
            yield chunk

    async def NewKey(self, request: pb.NewKeyRequest, context: Any) -> pb.NewKeyReply:
        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, "this node is not enrolled")

    async def SetCertificate(self, request: pb.SetCertificateRequest, context: Any) -> pb.SetCertificateReply:
        raise _Refusal(grpc.StatusCode.INVALID_ARGUMENT, "this node is not enrolled")


class _Refusals(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Turns a _Refusal into the status that the wire promises."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        found = await continuation(details)
        if found is None:
            return None
        if found.unary_stream:

            async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
                try:
                    async for reply in found.unary_stream(request, context):
                        yield reply
                except _Refusal as refusal:
                    await context.abort(refusal.code, str(refusal))

            return found._replace(unary_stream=streamed)

        call = found.unary_unary or found.stream_unary

        async def answered(request: Any, context: Any) -> Any:
            try:
                return await call(request, context)
            except _Refusal as refusal:
                await context.abort(refusal.code, str(refusal))

        return found._replace(**{"unary_unary" if found.unary_unary else "stream_unary": answered})


@asynccontextmanager
async def serving(agent: FakeAgent, target: str) -> AsyncIterator[None]:
    """Serves a fake on a unix target for as long as the block lasts."""
    server = grpc.aio.server(interceptors=[_Refusals()])
    add_AgentServicer_to_server(_Servicer(agent), server)
    server.add_insecure_port(target)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


async def _main(target: str) -> None:
    async with serving(FakeAgent(), target):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
