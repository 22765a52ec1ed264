"""Puts the HTTP door together: every path of the gateway, and the layers in front of them.

Journal (log, last resort) > Access (who may call) > Router > Path (method) > a call, a page, or a plain answer.
Called by gateway/wiring, which runs the result on uvicorn.
"""

from __future__ import annotations

from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Scope

from gateway.http import enrol, health, metrics, pages, v1
from gateway.http.access import Access
from gateway.http.journal import Journal
from gateway.http.path import Path
from gateway.http.services import HttpSettings, Services

__all__ = ["HttpSettings", "Services", "build_app"]


def build_app(services: Services, settings: HttpSettings) -> ASGIApp:
    calls = metrics.Calls()
    paths = {
        **v1.paths(services, settings),
        **pages.paths(services, settings),
        **enrol.paths(services, settings),
        **health.paths(services),
        **metrics.paths(services, calls),
    }
    routes = [Route(path, Path(answers, settings.semantic)) for path, answers in paths.items()]
    router = Router(routes, redirect_slashes=False, default=Path({}, settings.semantic))

    def template(scope: Scope) -> str:
        """`/api/v1/account/{name}`: a path without what is secret in it; "-" when it is none of ours."""
        route = scope.get("route") or next((r for r in routes if r.matches(scope)[0] is not Match.NONE), None)
        return "-" if route is None else str(route.path)

    return Journal(Access(router, services, settings, template), settings, template, calls.ended)
