"""Puts the HTTP door together: every path of the gateway, and the layers in front of them.

Journal (log, last resort) > Access (who may call) > Router > Path (method) > a call, a page, or a plain answer.
Called by gateway/wiring, which runs the result on uvicorn.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http import account, envelope, link, openapi, server, system
from gateway.http.access import OPENAPI_PATH, Access
from gateway.http.calls import Asked, Call
from gateway.http.forms import read_form
from gateway.http.journal import Journal
from gateway.http.services import HttpSettings, Services

__all__ = ["HttpSettings", "Services", "build_app"]

CALLS: tuple[Call, ...] = (*account.CALLS, *server.CALLS, *system.CALLS)

Answer = Callable[[Request], Awaitable[Response]]


def build_app(services: Services, settings: HttpSettings) -> ASGIApp:
    router = Router(_routes(services, settings), redirect_slashes=False, default=Path({}, settings.semantic))
    return Journal(Access(router, services, settings), settings)


class Path:
    """ASGI: one path, its answers by method; without any, the path does not exist. Turns ApiErrors into envelopes."""

    def __init__(self, answers: Mapping[str, Answer], semantic: bool) -> None:
        self._answers = answers
        self._semantic = semantic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(Request(scope, receive))
        except ApiError as error:
            response = envelope.failure(error, self._semantic)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if not self._answers:
            raise envelope.no_such_path()
        answer = self._answers.get(request.method)
        if answer is None:
            raise envelope.wrong_method(", ".join(self._answers))
        return await answer(request)


def _routes(services: Services, settings: HttpSettings) -> list[Route]:
    paths: dict[str, dict[str, Answer]] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method] = _answer_of(call, services, settings)
    pages = link.Pages(services, settings)
    paths["/otl/{key}"] = {"GET": pages.ask, "HEAD": pages.ask, "POST": pages.open}
    health = _health(services)
    paths["/healthz"] = {"GET": health, "HEAD": health}
    paths[OPENAPI_PATH] = {"GET": _document(settings)}
    return [Route(path, Path(answers, settings.semantic)) for path, answers in paths.items()]


def _answer_of(call: Call, services: Services, settings: HttpSettings) -> Answer:
    async def answer(request: Request) -> Response:
        form = await read_form(request, settings.max_body_bytes) if call.fields else {}
        return envelope.success(await call.answer(Asked(services, settings, request.path_params, form)))

    return answer


def _health(services: Services) -> Answer:
    async def answer(request: Request) -> Response:
        return await system.health(services, request)

    return answer


def _document(settings: HttpSettings) -> Answer:
    content = json.dumps(openapi.document(CALLS, settings.public_url), indent=1).encode()

    async def answer(_: Request) -> Response:
        return Response(content, media_type="application/json")

    return answer
