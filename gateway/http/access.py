"""Who may call: the access key in the cookie, and the address the call comes from. Stands in front of every path.

Everything under /api needs a key, also what does not exist there, so that a stranger learns nothing. Outside it are the
one-time links, /healthz, and /enrol, whose key is a join token; inside it only the OpenAPI document is open: it holds
no secret and tools fetch it bare.
/metrics is open to who calls himself, by no proxy, from one of `metrics_networks`; anybody else needs a key there, too.
The caller is told no reason; the operator finds it in the journal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AsyncExitStack

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import ApiError, NotAuthorized
from gateway.http import envelope
from gateway.http.admission import PLACE, Place
from gateway.http.caller import caller_of, calls_directly_from
from gateway.http.envelope import HttpError
from gateway.http.note import Note
from gateway.http.refusals import Refusal, Refusals
from gateway.http.services import HttpSettings, Services

OPENAPI_PATH = "/api/v1/openapi.json"
METRICS_PATH = "/metrics"
COOKIE = "access_hash"
ACCESS_HASH = re.compile(r"[0-9a-f]{80}")


class Access:
    """ASGI middleware: answers `Not authorized` itself, lets the rest through. `template`: a path without secrets."""

    def __init__(
        self, app: ASGIApp, services: Services, settings: HttpSettings, template: Callable[[Scope], str]
    ) -> None:
        self._app = app
        self._keys = services.keys
        self._settings = settings
        self._template = template
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if place := _place_of(scope):
            place.begin()
        error = None
        if scope["type"] == "http":
            try:
                if self._is_open(scope):
                    await self._answer_anybody(scope, receive, send)
                    return
                error = await self._error(scope)
            except HttpError as too_many:
                error = too_many
        if error is None:
            await self._app(scope, receive, send)
        else:
            # Prometheus is no v1 client: 200 would be metrics to it.
            is_semantic = self._settings.semantic or scope["path"] == METRICS_PATH
            await envelope.failure(error, is_semantic, Note.of(scope))(scope, receive, send)

    async def _answer_anybody(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = caller_of(scope, self._settings.trusted_proxies)

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                await turn.aclose()  # it may read as slowly as it likes
                if 400 <= message["status"] < 500:
                    await self._refusals.wait(client)
            await send(message)

        with self._refusals.waiting(client) as turns:
            async with AsyncExitStack() as turn:
                await turn.enter_async_context(turns)
                await self._app(scope, receive, answering)

    def _is_open(self, scope: Scope) -> bool:
        if scope["path"] == METRICS_PATH:
            return calls_directly_from(scope, self._settings.metrics_networks)
        return is_open(scope["path"])

    async def _error(self, scope: Scope) -> ApiError | None:
        try:
            refusal = await self._refusal(scope)
        except ApiError as error:  # nobody can be let in while the store is away
            return error
        if refusal is None:
            return None
        note = Note.of(scope)
        note.key = refusal.key
        note.refusal = f"{refusal.reason} detail={refusal.detail!r}" if refusal.detail else refusal.reason
        note.silent = not self._refusals.is_first(refusal)
        with self._refusals.waiting(refusal.client):
            await self._refusals.wait(refusal.client)
        return NotAuthorized()

    async def _refusal(self, scope: Scope) -> Refusal | None:
        """Why this request is not let in; None: it is."""
        client = caller_of(scope, self._settings.trusted_proxies)
        if client.address is None:
            return Refusal(client, "no-address", detail=client.problem)
        # Clients may send several Cookie headers (RFC 9113, 8.2.3).
        access_hash = cookie_parser("; ".join(Headers(scope=scope).getlist("cookie"))).get(COOKIE, "")
        if not access_hash:
            return Refusal(client, "no-cookie")
        if not ACCESS_HASH.fullmatch(access_hash):
            return Refusal(client, "malformed-key")
        verdict = await self._keys.judged(access_hash, client.address)
        Note.of(scope).key = verdict.key
        if verdict.is_allowed:
            if place := _place_of(scope):
                place.is_known = True
            return None
        path = self._template(scope) if verdict.key else ""
        return Refusal(client, verdict.reason, verdict.key, path)


def _place_of(scope: Scope) -> Place | None:
    """None: of a request that came by no socket of ours."""
    place = scope.get("state", {}).get(PLACE)
    return place if isinstance(place, Place) else None


def is_open(path: str) -> bool:
    return path == OPENAPI_PATH or not (path == "/api" or path.startswith("/api/"))
