"""From a request to the answer of its call: the fields are read, the use case is asked, the change is noted.

What was meant is never ignored in silence: a known field in a wrong spelling is an error, and names that the call does
not know are told in a header, unless what they ask for is what stands. Called by the paths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.accepted import Accepted, Placed
from gateway.errors import ApiError
from gateway.fields import is_name, understood
from gateway.http import envelope
from gateway.http.body import skip_body
from gateway.http.note import SUCCESS, Note, escaped
from gateway.http.path import Answer
from gateway.http.services import HttpSettings, Services
from gateway.http.v1.calls import ROOT, Asked, Call
from gateway.http.v1.forms import Pairs, merged, read_form

WITH_FIELDS = ("POST", "PUT")  # v1 clients send bodies with GET and DELETE too, which mean nothing


def answer_of(call: Call, services: Services, settings: HttpSettings) -> Answer:
    # What is refused by name is known too.
    known = [field.name for field in call.fields]

    async def answer(request: Request) -> Response:
        note = Note.of(request.scope)
        pairs: tuple[Pairs, Pairs] = ([], [])
        if call.method in WITH_FIELDS:
            pairs = await read_form(request, settings.max_body_bytes)
        elif call.method != "GET" or call.is_change:
            await skip_body(request)
        is_head = request.method == "HEAD"
        note.is_change = (call.method != "GET" or call.is_change) and not is_head
        note.subject = _subject(call, request.path_params.get("name", ""))
        try:
            form, unknown = understood(merged(*pairs, known), known)
            if "name" in form:
                note.subject = _subject(call, form["name"].strip())
            with _watched(request, call.method == "POST") as is_gone:
                result = await call.answer(Asked(services, settings, request.path_params, form, is_head, is_gone))
        except ApiError as error:
            note.outcome = error.text
            raise
        note.outcome = SUCCESS
        if isinstance(result, Accepted):
            note.pending = result.pending
        value = result.value if isinstance(result, Placed) else result
        if call.method == "POST" and isinstance(value, dict):
            note.subject = _subject(call, str(value.get("name", "")))
        return envelope.success(result, _untold(unknown, [*pairs[1], *pairs[0]], value))

    return answer


@contextmanager
def _watched(request: Request, is_create: bool) -> Iterator[Callable[[], bool]]:
    """Whether the caller has hung up. An edit or a delete is meant, also by who does not wait for its answer."""
    if not is_create:
        yield lambda: False
        return

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(hang_up())
    try:
        yield watching.done
    finally:
        watching.cancel()


def _subject(call: Call, name: str) -> str:
    kind = {"account": "account", "wireguard": "server"}.get(call.path.removeprefix(f"{ROOT}/").split("/")[0])
    if kind is None:
        return ""
    return f"{kind}={name if is_name(name) else escaped(name)}"


def _untold(unknown: Iterable[str], pairs: Pairs, value: object) -> list[str]:
    """Those whose value is not what stands anyway: clients send whole objects back."""
    asked, stands = dict(pairs), value if isinstance(value, Mapping) else {}
    return [name for name in unknown if name not in stands or asked[name].strip() != _spelled(stands[name])]


def _spelled(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
