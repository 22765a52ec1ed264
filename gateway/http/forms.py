"""A request's body becomes form fields: text by name. Owns the limits of size and time. Called by app.py.

urlencoded, multipart and JSON objects, whatever PHP or curl says they are: `curl -d` labels its bodies urlencoded, some
clients label nothing. A field given twice: the last one wins. What the fields mean is gateway/fields.py's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from urllib.parse import parse_qsl

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway import fields
from gateway.http.envelope import HttpError

# The parser warns of every odd byte: one line for each of a stranger's mistakes is his to choose, not ours to write.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

BODY_SECONDS = 20.0  # below the listener's own bound, so that there is an answer
MAX_FIELDS = 100
# Of a body that is too long, so much is read and forgotten before the answer: a client that is still sending when the
# connection closes loses the answer.
DISCARDED_BYTES = 32 * 1024 * 1024


async def read_form(request: Request, max_bytes: int) -> dict[str, str]:
    """Raises HttpError: 413 above `max_bytes` (which is never kept), 408 when too slow, 400 when unreadable."""
    body = await _read_body(request, max_bytes)
    if not body:
        return {}
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    try:
        if kind == b"multipart/form-data":
            pairs = _multipart(body, options.get(b"boundary", b""))
        elif kind.endswith(b"json") or body.lstrip()[:1] == b"{":  # no urlencoded form starts with a brace
            return fields.json_form(body.decode())
        else:
            pairs = parse_qsl(
                body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS, separator="&"
            )
    except (ValueError, RecursionError, MultipartParseError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise HttpError(400, "Malformed body (only form fields or a JSON object, in UTF-8)") from None
    return dict(pairs)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = HttpError(413, f"Body too large (only {max_bytes} bytes)", {"Connection": "close"})
    declared = request.headers.get("content-length", "")
    if request.headers.get("expect") and declared.isdecimal() and int(declared[:20]) > max_bytes:
        raise too_large  # the client asked first and has sent nothing yet
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= max_bytes:
                    body += chunk
                elif size > max_bytes + DISCARDED_BYTES:
                    break
    except TimeoutError:
        if size <= max_bytes:
            raise HttpError(408, "Body too slow", {"Connection": "close"}) from None
    if size > max_bytes:
        raise too_large
    return bytes(body)


def _multipart(body: bytes, boundary: bytes) -> Iterable[tuple[str, str]]:
    if not boundary:
        raise ValueError("no boundary")
    parts = _Parts()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.header_name,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_part_data": parts.data,
            "on_part_end": parts.end,
            "on_end": parts.finish,
        },
    )
    parser.write(body)
    parser.finalize()
    if not parts.finished or len(parts.found) > MAX_FIELDS:
        raise ValueError("cut off, or too many parts")
    return [(name.decode(), value.decode()) for name, value in parts.found]


class _Parts:
    """Gathers what the multipart parser reports, piece by piece. An uploaded file is a field like any other."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.finished = False
        self.begin()

    def begin(self) -> None:
        self._field = self._value = b""
        self._name: bytes | None = None
        self._data = bytearray()

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name")
        self._field = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def end(self) -> None:
        if self._name is None:
            raise ValueError("a part without a name")
        self.found.append((self._name, bytes(self._data)))

    def finish(self) -> None:
        self.finished = True
