"""/enrol: where a host with a join token becomes a node. No cookie: the token's signature is what lets it in.

A stranger costs one look into the database, and what he may send is bounded in size and time; who is refused waits, as
with a wrong access key. Errors are HTTP errors, whatever `http_status` says: no v1 client comes here. Called by app.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from gateway import enrolment
from gateway.errors import EnrolmentRefused, InvalidValue
from gateway.http import envelope
from gateway.http.body import read_body
from gateway.http.caller import caller_of
from gateway.http.envelope import HttpError
from gateway.http.note import SUCCESS, Note
from gateway.http.path import Answers
from gateway.http.refusals import Refusal, Refusals
from gateway.http.services import HttpSettings, Services

PATH = "/enrol"
MAX_BODY_BYTES = 4096
# Of each field, in bytes. A key: an RSA key of 4096 bits is told what is wrong with it.
LENGTHS = {"token": (32, 32), "key": (1, 1024), "nonce": (16, 64), "proof": (64, 64)}


def paths(services: Services, settings: HttpSettings) -> dict[str, Answers]:
    refusals = Refusals()

    async def enrol(request: Request) -> Response:
        note = Note.of(request.scope)
        asked = _parsed(await read_body(request, MAX_BODY_BYTES))
        try:
            reply = await services.enrolment.enrol(asked)
        except (EnrolmentRefused, InvalidValue) as error:
            reason = error.reason if isinstance(error, EnrolmentRefused) else "wrong-key"
            refusal = Refusal(caller_of(request.scope, settings.trusted_proxies), reason)
            note.refusal, note.silent = reason, not refusals.is_first(refusal)
            raise HttpError(403, error.text) from None
        note.is_change, note.subject, note.outcome = True, f"node={reply.node}", SUCCESS
        return envelope.success({"reply": reply.text, "proof": base64.urlsafe_b64encode(reply.proof).decode()})

    return {PATH: {"POST": enrol}}


def _parsed(body: bytes) -> enrolment.Request:
    """Raises HttpError."""
    try:
        fields = json.loads(body)
        if not isinstance(fields, Mapping):
            raise ValueError("not an object")
        return enrolment.Request(**{name: _bytes(fields.get(name), *LENGTHS[name]) for name in LENGTHS})
    except (ValueError, RecursionError):  # UnicodeDecodeError, JSONDecodeError and binascii.Error are ValueErrors
        raise HttpError(400, f"Malformed request (only a JSON object with {', '.join(LENGTHS)})") from None


def _bytes(text: object, least: int, most: int) -> bytes:
    if not isinstance(text, str):
        raise ValueError("not a text")
    raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    if not least <= len(raw) <= most:
        raise ValueError("wrong length")
    return raw
