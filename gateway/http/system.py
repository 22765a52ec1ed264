"""/api/v1/system/status, the "test connection" of billing modules, and /healthz for load balancers."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.errors import DatabaseUnavailable
from gateway.http.calls import BOOLEAN, INTEGER, ROOT, TEXT, Asked, Call, listing, record
from gateway.http.services import Services

PING_SECONDS = 2.0

log = logging.getLogger("gateway.http")


async def _status(asked: Asked) -> dict[str, Any]:
    return await asked.services.system.status()


async def health(services: Services, _: Request) -> Response:
    """200 "ok" when the store takes changes, else 503. Says nothing of nodes: a gateway without them is healthy."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            await services.ping()
    except DatabaseUnavailable as error:
        log.warning("event=unhealthy reason=%r", error.reason)
        return PlainTextResponse(f"the database {error.state or 'is not available'}", 503)
    except Exception as error:
        log.warning("event=unhealthy reason=%s", type(error).__name__)
        return PlainTextResponse("the database is not available", 503)
    return PlainTextResponse("ok")


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
