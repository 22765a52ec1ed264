"""The envelope: the three keys around every answer, and the HTTP status of every error. The third place where errors
are translated (after the loop and the gRPC edge). Called by the other files of this door.

Two kinds of errors:
- v1 errors (`ApiError`): what a call says about its input or its object. 200 by default, because v1 clients read the
  JSON and ignore the code; 401, 404, 409, 422, 503 with `http_status = "semantic"`.
- errors of HTTP itself (`HttpError`): no such path, wrong method, unreadable body, our own bug. They are no v1 errors
  and have their own status in both modes: 404, 405, 400, 408, 413, 500.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from gateway.accepted import Accepted, Placed
from gateway.errors import (
    ApiError,
    Conflict,
    DatabaseUnavailable,
    InvalidValue,
    NodeUnavailable,
    NotAuthorized,
    NotFound,
)
from gateway.http.note import Note, escaped

PENDING_HEADER = "X-Wirelane-Pending"
NODE_HEADER = "X-Wirelane-Node"
IGNORED_HEADER = "X-Wirelane-Ignored"
MOST_IGNORED = 20  # names that are told
# Answers hold private keys: no cache may keep them, no browser may take them for a page.
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
SEMANTIC_STATUS: tuple[tuple[type[ApiError], int], ...] = (
    (NotAuthorized, 401),
    (NotFound, 404),
    (Conflict, 409),
    (InvalidValue, 422),
    (NodeUnavailable, 503),
    (DatabaseUnavailable, 503),
)


class HttpError(ApiError):
    """Wrong before any call was reached. `status` is the HTTP code in both modes."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A `msg` that is JSON already."""

    json: bytes


def no_such_path() -> HttpError:
    return HttpError(404, "Not found")


def wrong_method(allowed: str) -> HttpError:
    return HttpError(405, "Method not allowed", {"Allow": allowed})


def internal_error() -> HttpError:
    return HttpError(500, "Internal error")


def success(result: Any, ignored: Sequence[str] = ()) -> Response:
    """`result`: what goes into `msg`, or a Placed around it, whose node is named in a header; of an Accepted, the node
    that is behind too. `ignored`: names of fields that nobody knows, as they came."""
    headers = dict(HEADERS)
    if isinstance(result, Accepted) and result.pending:
        headers[PENDING_HEADER] = result.pending
    if isinstance(result, Placed):
        headers[NODE_HEADER] = result.node
        result = result.value
    if ignored:
        more = [f"and {len(ignored) - MOST_IGNORED} more"] if len(ignored) > MOST_IGNORED else []
        headers[IGNORED_HEADER] = ", ".join([*map(escaped, ignored[:MOST_IGNORED]), *more])
    msg = result.json if isinstance(result, Encoded) else encoded(result)
    return _answer(b'{"error":"","msg":%b,"status":"success"}' % msg, 200, headers)


def failure(error: ApiError, semantic: bool, note: Note) -> Response:
    note.status = semantic_status(error)
    if isinstance(error, DatabaseUnavailable):
        note.trouble = error.reason
    body = {"error": error.text, "msg": "", "status": "error"}
    if isinstance(error, HttpError):
        return _answer(encoded(body), error.status, {**HEADERS, **error.headers})
    return _answer(encoded(body), semantic_status(error) if semantic else 200, HEADERS)


def refusal(status: HTTPStatus, text: str) -> bytes:
    """A whole answer, for what never reaches the application; the connection ends with it."""
    body = encoded({"error": text, "msg": "", "status": "error"})
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def semantic_status(error: ApiError) -> int:
    """What the error is, whatever the answer's status."""
    if isinstance(error, HttpError):
        return error.status
    return next((status for kind, status in SEMANTIC_STATUS if isinstance(error, kind)), 422)


def encoded(value: object) -> bytes:
    # One plain dumps: ten thousand accounts are listed in one answer, and a model layer would cost more than the query.
    return json.dumps(value, separators=(",", ":")).encode()


def _answer(content: bytes, status: int, headers: Mapping[str, str]) -> Response:
    return Response(content, status, headers=dict(headers), media_type="application/json")
