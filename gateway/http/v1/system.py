"""/api/v1/system/status, the "test connection" of billing modules."""

from __future__ import annotations

from typing import Any

from gateway.http.v1.calls import BOOLEAN, INTEGER, ROOT, TEXT, Asked, Call, listing, record


async def _status(asked: Asked) -> dict[str, Any]:
    return await asked.services.system.status()


STATUS = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("count_accounts", "count_accounts_available", "count_wireguard"), INTEGER),
        "license": {"type": "string", "format": "date-time"},
        "license_valid": BOOLEAN,
        "status": TEXT,
        "version": TEXT,
        "nodes": listing(record({"name": TEXT, "status": TEXT, "problem": TEXT, "warnings": listing(TEXT)})),
    },
    "required": [
        *("count_accounts", "count_accounts_available", "count_wireguard", "license", "license_valid"),
        *("status", "version", "nodes"),
    ],
}
CALLS = (Call("GET", f"{ROOT}/system/status", "Counts, licence, state of the nodes", _status, STATUS),)
