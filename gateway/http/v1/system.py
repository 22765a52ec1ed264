"""/api/v1/system/status, the "test connection" of billing modules."""

from __future__ import annotations

from typing import Any

from gateway.http.v1.calls import BOOLEAN, INTEGER, ROOT, TEXT, Asked, Call, Schema, listing, record, texts


async def _status(asked: Asked) -> dict[str, Any]:
    return await asked.services.system.status()


def _maybe(schema: Schema) -> Schema:
    """Null while nobody knows."""
    return {"anyOf": [schema, {"type": "null"}]}


NODE = record(
    {
        **dict.fromkeys(("name", "status", "problem", "unreachable_cause"), TEXT),
        "warnings": listing(TEXT),
        **dict.fromkeys(("drained", "reachable"), BOOLEAN),
        **dict.fromkeys(("revision", "acknowledged_revision", "pending_changes", "failed_accounts"), INTEGER),
        "failures": listing(texts("subject", "reason")),
        **dict.fromkeys(("applied_revision", "drift", "accounts", "servers"), _maybe(INTEGER)),
        **dict.fromkeys(("clock_offset", "sample_age", "resync_age", "collection_age"), _maybe({"type": "number"})),
        **dict.fromkeys(("version", "wireguard", "marks"), _maybe(TEXT)),
        "certificate_expires": _maybe({"type": "string", "format": "date-time"}),
    }
)
STATUS = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("count_accounts", "count_accounts_available", "count_wireguard"), INTEGER),
        "license": {"type": "string", "format": "date-time"},
        "license_valid": BOOLEAN,
        "status": TEXT,
        "version": TEXT,
        "nodes": listing(NODE),
    },
    "required": [
        *("count_accounts", "count_accounts_available", "count_wireguard", "license", "license_valid"),
        *("status", "version", "nodes"),
    ],
}
CALLS = (Call("GET", f"{ROOT}/system/status", "Counts, licence, state of the nodes", _status, STATUS),)
