"""The API, v1: its calls, what they take and how they spell it. A stranger to pages/; both stand on the files beside
them.

calls.py says what a call is; account.py, server.py, system.py, firewall.py, ikev2.py, links.py and port_forwards.py
declare theirs, and both the paths and the OpenAPI document are made from those declarations. Put together by
gateway/http/app.py.
"""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response

from gateway.http.access import OPENAPI_PATH
from gateway.http.path import Answer, Answers
from gateway.http.services import HttpSettings, Services
from gateway.http.v1 import account, firewall, ikev2, links, openapi, port_forwards, server, system
from gateway.http.v1.answering import answer_of
from gateway.http.v1.calls import Call

GROUPS = (account, system, server, firewall, ikev2, links, port_forwards)
CALLS: tuple[Call, ...] = tuple(call for group in GROUPS for call in group.CALLS)


def paths(services: Services, settings: HttpSettings) -> dict[str, Answers]:
    found: dict[str, dict[str, Answer]] = {}
    for call in CALLS:
        found.setdefault(call.path, {})[call.method] = answer_of(call, services, settings)
    return {**found, OPENAPI_PATH: {"GET": _document(settings)}}


def _document(settings: HttpSettings) -> Answer:
    content = json.dumps(openapi.document(CALLS, settings.public_url), indent=1).encode()

    async def answer(_: Request) -> Response:
        return Response(content, media_type="application/json")

    return answer
