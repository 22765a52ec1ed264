"""Puts the HTTP door together: every path of the gateway, and the layers in front of them.

Journal (log, last resort) > Access (who may call) > Router > Path (method) > a call, a page, or a plain answer.
Called by gateway/wiring, which runs the result on uvicorn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http import account, envelope, link, openapi, server, system
from gateway.http.access import OPENAPI_PATH, Access
from gateway.http.answering import Answer, answer_of
from gateway.http.calls import Call
from gateway.http.journal import Journal
from gateway.http.services import HttpSettings, Services

__all__ = ["HttpSettings", "Services", "build_app"]

CALLS: tuple[Call, ...] = (*account.CALLS, *server.CALLS, *system.CALLS)


def build_app(services: Services, settings: HttpSettings) -> ASGIApp:
    routes = _routes(services, settings)
    router = Router(routes, redirect_slashes=False, default=Path({}, settings.semantic))

    def template(scope: Scope) -> str:
        """`/api/v1/account/{name}`: a path without what is secret in it; "-" when it is none of ours."""
        route = scope.get("route") or next((r for r in routes if r.matches(scope)[0] is not Match.NONE), None)
        return "-" if route is None else str(route.path)

    return Journal(Access(router, services, settings, template), settings, template)


class Path:
    """ASGI: one path, its answers by method; without any, the path does not exist. HEAD is answered where GET is. Turns
    ApiErrors into envelopes."""

    def __init__(self, answers: Mapping[str, Answer], semantic: bool) -> None:
        self._answers = answers
        self._semantic = semantic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(Request(scope, receive))
        except ApiError as error:
            response = envelope.failure(error, self._semantic)
        if scope["method"] == "HEAD":
            response.body = b""  # the head stays as it is, its length included
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if not self._answers:
            raise envelope.no_such_path()
        answer = self._answers.get("GET" if request.method == "HEAD" else request.method)
        if answer is None:
            allowed = [*self._answers, "HEAD"] if "GET" in self._answers else self._answers
            raise envelope.wrong_method(", ".join(allowed))
        return await answer(request)


def _routes(services: Services, settings: HttpSettings) -> list[Route]:
    paths: dict[str, dict[str, Answer]] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method] = answer_of(call, services, settings)
    pages = link.Pages(services, settings)
    paths["/otl/{key}"] = {"GET": pages.ask, "POST": pages.open}
    paths["/healthz"] = {"GET": _health(services)}
    paths[OPENAPI_PATH] = {"GET": _document(settings)}
    return [Route(path, Path(answers, settings.semantic)) for path, answers in paths.items()]


def _health(services: Services) -> Answer:
    async def answer(request: Request) -> Response:
        return await system.health(services, request)

    return answer


def _document(settings: HttpSettings) -> Answer:
    content = json.dumps(openapi.document(CALLS, settings.public_url), indent=1).encode()

    async def answer(_: Request) -> Response:
        return Response(content, media_type="application/json")

    return answer
