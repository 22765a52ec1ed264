"""The outermost layer: one log line for each request, and the last resort when something below broke.

The line has the path's template, never the path itself, and no query, cookie, body or link key: all of them are
secrets somewhere. A bug is logged with its traceback and an id; the caller gets the bare envelope with the same id in
a header, so that both can be brought together.
"""

from __future__ import annotations

import logging
import secrets
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from gateway.http import envelope
from gateway.http.access import client_address
from gateway.http.services import HttpSettings

ERROR_HEADER = "X-Wirelane-Error"
GONE_AWAY = 499  # nginx's number for a client that hung up before the answer

log = logging.getLogger("gateway.http")


class Journal:
    """ASGI middleware. Passes start-up messages through; websockets do not exist here."""

    def __init__(self, app: ASGIApp, settings: HttpSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except ClientDisconnect:
            status = GONE_AWAY
        except Exception:
            error_id = secrets.token_hex(4)
            log.exception("event=internal-error id=%s method=%s path=%s", error_id, scope["method"], _template(scope))
            if status:
                raise  # too late for an answer: the server must break the connection off
            error = envelope.internal_error()
            error.headers = {ERROR_HEADER: error_id}
            await envelope.failure(error, self._settings.semantic)(scope, receive, noted)
        finally:
            self._note(scope, status or GONE_AWAY, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        client = client_address(scope, self._settings.trusted_proxies)
        log.info(
            "event=request method=%s path=%s status=%d ms=%.1f client=%s",
            scope["method"],
            _template(scope),
            status,
            seconds * 1000,
            client or "-",
        )


def _template(scope: Scope) -> str:
    """`/api/v1/account/{name}`; "-" when no path was reached."""
    return str(getattr(scope.get("route"), "path", "-"))
