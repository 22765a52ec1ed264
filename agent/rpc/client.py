"""Door, gRPC: asks the running agent for its status. For the command line on the same host."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import grpc

from agent.errors import AgentError
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1 import agent_pb2_grpc

DEADLINE_SECONDS = 5.0


def read_status(target: str) -> dict[str, Any]:
    """The agent's status as plain values; times as text, "" = never. Raises AgentError if it does not answer."""
    with grpc.insecure_channel(target) as channel:
        try:
            reply = agent_pb2_grpc.AgentStub(channel).Status(pb.StatusRequest(onlooker=True), timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            raise AgentError(
                f"no agent answers at {target} ({error.code().name}); is it running, and may you use its socket?"
            ) from error
    return {
        "version": reply.version,
        "wireguard": reply.wireguard,
        "marks": reply.marks,
        "uplink": reply.uplink,
        "tunnel_mtu": reply.tunnel_mtu,
        "servers": reply.servers,
        "accounts": reply.accounts,
        "database": reply.origin.identity,
        "node": reply.origin.node,
        "epoch": reply.epoch,
        "revision": reply.revision,
        "applied_revision": reply.applied_revision,
        "needs_snapshot": reply.needs_snapshot,
        "drift_count": reply.drift_count,
        "drift_last": _time(reply.drift_last_time),
        "last_sample": _time(reply.last_sample_time),
        "last_resync": _time(reply.last_resync_time),
        "time_zone": reply.time_zone,
        "refused_connections": reply.refused_connections,
        "certificate_expires": _time(reply.certificate_expires),
        "problem": reply.problem,
        "failures": [
            {"account_id": f.account_id, "subject": f.subject or "node", "reason": f.reason} for f in reply.failures
        ],
        "warnings": list(reply.warnings),
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else ""
