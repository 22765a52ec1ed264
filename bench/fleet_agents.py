"""A program: many agents on unix sockets that hold what they are sent and tell of usage, without a kernel.

Reads one JSON object: folder, nodes (names). Prints a line when all of them listen, and goes with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc.aio

from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server

CHUNK = 500


class Agent(AgentServicer):
    def __init__(self) -> None:
        self.epoch = uuid.uuid4().hex
        self.revision = self.servers = 0
        self.origin: pb.Origin | None = None  # None = it holds nothing
        self.accounts: set[int] = set()

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        return pb.StatusReply(
            epoch=self.epoch,
            revision=self.revision,
            applied_revision=self.revision,
            needs_snapshot=self.origin is None,
            origin=self.origin,
            accounts=len(self.accounts),
            servers=self.servers,
        )

    async def Patch(self, request: pb.PatchRequest, context: Any) -> pb.ApplyReply:
        if self.origin is None or request.epoch != self.epoch or request.base_revision > self.revision:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"stale: this revision is {self.revision}")
        if request.revision > self.revision:
            self.revision, self.origin = request.revision, request.origin
            self.accounts |= {account.id for account in request.put_accounts}
            self.accounts -= set(request.remove_accounts)
        return self._applied()

    async def Snapshot(self, request_iterator: Any, context: Any) -> pb.ApplyReply:
        self.accounts, self.servers = set(), 0
        async for chunk in request_iterator:
            if chunk.HasField("header"):
                self.revision, self.origin = chunk.header.revision, chunk.header.origin
            self.servers += len(chunk.servers)
            self.accounts |= {account.id for account in chunk.accounts}
        return self._applied()

    def _applied(self) -> pb.ApplyReply:
        applied = pb.ApplyReply.APPLIED
        return pb.ApplyReply(outcome=applied, epoch=self.epoch, revision=self.revision, origin=self.origin)

    async def Totals(self, request: pb.TotalsRequest, context: Any) -> AsyncIterator[pb.TotalsChunk]:
        """Everybody used something since it was asked last."""
        cursor = request.after + 1 if request.epoch == self.epoch else 1
        day, ids = int(datetime.now(UTC).strftime("%Y%m%d")), list(self.accounts)
        for start in range(0, max(len(ids), 1), CHUNK):
            yield pb.TotalsChunk(
                epoch=self.epoch,
                cursor=cursor,
                totals=[
                    pb.DayTotal(account_id=one, day=day, download_bytes=cursor * 10**9, upload_bytes=cursor * 10**8)
                    for one in ids[start : start + CHUNK]
                ],
            )

    async def Inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectReply:
        return pb.InspectReply()

    async def Peers(self, request: pb.PeersRequest, context: Any) -> AsyncIterator[pb.PeersChunk]:
        yield pb.PeersChunk()

    async def Sessions(self, request: pb.SessionsRequest, context: Any) -> AsyncIterator[pb.SessionsChunk]:
        yield pb.SessionsChunk()

    async def Disconnect(self, request: pb.DisconnectRequest, context: Any) -> pb.DisconnectReply:
        return pb.DisconnectReply()

    async def Held(self, request: pb.HeldRequest, context: Any) -> AsyncIterator[pb.SnapshotChunk]:
        yield pb.SnapshotChunk()

    async def InspectServer(self, request: pb.InspectServerRequest, context: Any) -> pb.InspectServerReply:
        return pb.InspectServerReply()

    async def Resync(self, request: pb.ResyncRequest, context: Any) -> pb.ResyncReply:
        return pb.ResyncReply()

    async def NewKey(self, request: pb.NewKeyRequest, context: Any) -> pb.NewKeyReply:
        return pb.NewKeyReply()

    async def SetCertificate(self, request: pb.SetCertificateRequest, context: Any) -> pb.SetCertificateReply:
        return pb.SetCertificateReply()


async def main(asked: dict[str, Any]) -> None:
    servers = [(name, grpc.aio.server()) for name in asked["nodes"]]  # one that nobody holds closes its socket
    for name, server in servers:
        add_AgentServicer_to_server(Agent(), server)
        server.add_insecure_port(f"unix:{asked['folder']}/{name}.sock")
        await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.stdin.readline())))
