"""/healthz, for load balancers. Called by app.py."""

from __future__ import annotations

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gateway.errors import DatabaseUnavailable
from gateway.http.note import Note
from gateway.http.path import Answers
from gateway.http.repeats import Repeats
from gateway.http.services import Services

PING_SECONDS = 2.0

log = logging.getLogger("gateway.http")


def paths(services: Services) -> dict[str, Answers]:
    repeats = Repeats("unhealthy-again", logging.WARNING)

    def unhealthy(reason: str) -> None:
        if repeats.is_first(f"reason={reason}"):
            log.warning("event=unhealthy reason=%s", reason)

    async def health(request: Request) -> Response:
        """200 "ok" when the store takes changes, else 503. Says nothing of nodes: a gateway without them is healthy."""
        try:
            async with asyncio.timeout(PING_SECONDS):
                await services.ping()
        except DatabaseUnavailable as error:
            unhealthy(repr(error.reason))
            return PlainTextResponse(f"the database {error.state or 'is not available'}", 503)
        except Exception as error:
            unhealthy(type(error).__name__)
            return PlainTextResponse("the database is not available", 503)
        Note.of(request.scope).silent = True
        return PlainTextResponse("ok")

    return {"/healthz": {"GET": health}}
