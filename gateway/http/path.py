"""A path of the gateway: its answers by method. Called by app.py; v1/ and pages/ say what is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import ApiError
from gateway.http import envelope
from gateway.http.note import Note

Answer = Callable[[Request], Awaitable[Response]]
Answers = Mapping[str, Answer]


class Path:
    """ASGI: one path, its answers by method; without any, the path does not exist. HEAD is answered where GET is. Turns
    ApiErrors into envelopes."""

    def __init__(self, answers: Answers, semantic: bool) -> None:
        self._answers = answers
        self._semantic = semantic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(Request(scope, receive))
        except ApiError as error:
            response = envelope.failure(error, self._semantic, Note.of(scope))
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
