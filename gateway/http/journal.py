"""The outermost layer: one log line for each request, and the last resort when something below broke.

The line has the path's template, never the path itself, and no query, cookie, body or link key: all of them are
secrets somewhere. It is one of three: `event=request`; `event=change`, the audit line, with the key's name, what was
changed and what came of it; `event=refused`, with the reason. What comes without a key and changes nothing is counted
when it repeats. A bug is logged with its traceback and an id; the caller gets the bare envelope with the same id in a
header, so that both can be brought together.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from gateway.http import envelope
from gateway.http.caller import caller_of
from gateway.http.note import SUCCESS, Note, escaped
from gateway.http.repeats import Repeats
from gateway.http.services import HttpSettings

ERROR_HEADER = "X-Wirelane-Error"
GONE_AWAY = 499  # nginx's number for a client that hung up before the answer

log = logging.getLogger("gateway.http")


class Journal:
    """ASGI middleware. Passes start-up messages through; websockets do not exist here.

    `ended`: is told the method, template, status (an error's own, also where it is answered with 200) and seconds of
    each request.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        template: Callable[[Scope], str],
        ended: Callable[[str, str, int, float], None],
    ) -> None:
        self._app = app
        self._ended = ended
        self._settings = settings
        self._template = template
        self._strangers = Repeats("request-again", logging.INFO)
        self._troubles = Repeats("database-unavailable-again", logging.ERROR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        else:
            note = Note()
            await self._http({**scope, "path": tidied(scope["path"]), "wirelane.note": note}, note, receive, send)

    async def _http(self, scope: Scope, note: Note, receive: Receive, send: Send) -> None:
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
            method, path = escaped(scope["method"]), self._template(scope)
            log.exception("event=internal-error id=%s method=%s path=%s", error_id, method, path)
            note.outcome = f"internal error {error_id}"
            if status:
                raise  # too late for an answer: the server must break the connection off
            error = envelope.internal_error()
            error.headers = {ERROR_HEADER: error_id}
            await envelope.failure(error, self._settings.semantic, note)(scope, receive, noted)
        finally:
            status, seconds = status or GONE_AWAY, time.perf_counter() - started
            self._ended(scope["method"], self._template(scope), note.status or status, seconds)
            self._write(scope, note, status, seconds)

    def _write(self, scope: Scope, note: Note, status: int, seconds: float) -> None:
        if note.trouble and self._troubles.is_first(f"reason={note.trouble}"):
            log.error("event=database-unavailable reason=%s", note.trouble)
        if note.silent:
            return
        caller = caller_of(scope, self._settings.trusted_proxies)
        asked = f"path={self._template(scope)} status={status}"
        is_open = not (note.key or note.refusal or note.outcome == SUCCESS)  # whoever likes can do that without end
        if is_open and not self._strangers.is_first(f"{asked} client={caller.network}"):
            return
        event = "refused" if note.refusal else "change" if note.is_change else "request"
        log.log(
            logging.WARNING if note.refusal else logging.INFO,
            "event=%s method=%s %s ms=%.1f client=%s%s",
            event,
            escaped(scope["method"]),
            asked,
            seconds * 1000,
            caller,
            _of_event(note),
        )


def _of_event(note: Note) -> str:
    if note.refusal:
        return f" key={note.key or '-'} reason={note.refusal}"
    if note.is_change:
        outcome = repr(note.outcome or "unknown: it was broken off")
        return f" key={note.key or '-'} {note.subject or 'subject=-'} outcome={outcome} pending={note.pending or '-'}"
    return ""


def tidied(path: str) -> str:
    """Slashes too many, or one at the end, are no other path."""
    return re.sub("/{2,}", "/", path).rstrip("/") or "/"
