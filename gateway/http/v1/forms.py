"""A request's body and query become form fields: text by name. Called by answering.py.

urlencoded, multipart and JSON objects, whatever PHP or curl says they are: `curl -d` labels its bodies urlencoded, some
clients label nothing, and a PHP client may label its multipart urlencoded. Fields of the query count like those of the
body. A field given twice, wherever, has one value: which of two was meant nobody can say. What the fields mean is
gateway/fields.py's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from gateway import fields
from gateway.errors import InvalidValue
from gateway.http.body import read_body
from gateway.http.envelope import HttpError

# The parser warns of every odd byte: one line for each of a stranger's mistakes is his to choose, not ours to write.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

MAX_FIELDS = 100
# Also "attachment", which libcurl writes where the label was overridden.
PART = re.compile(rb"\r\ncontent-disposition:[^\r\n]*\bname=", re.IGNORECASE)

Pairs = list[tuple[str, str]]


async def read_form(request: Request, max_bytes: int) -> tuple[Pairs, Pairs]:
    """The fields of the body, and those of the query.

    Raises HttpError: 413 above `max_bytes` (which is never kept), 408 when too slow, 400 when unreadable.
    """
    query = request.scope.get("query_string", b"")
    body = await read_body(request, max_bytes)
    try:
        return _body_pairs(body, request.headers.get("content-type", "")) if body else [], _urlencoded(query)
    except (ValueError, RecursionError, MultipartParseError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise HttpError(400, "Malformed body (only form fields or a JSON object, in UTF-8)") from None


def merged(body: Pairs, query: Pairs, known: Collection[str]) -> Pairs:
    """Raises InvalidValue at a known field that has two values: nobody can say which of them was meant."""
    for name in known:
        in_body, in_query = ({value for key, value in pairs if key == name} for pairs in (body, query))
        for where, values in (("the body", in_body), ("the query", in_query)):
            if len(values) > 1:
                raise InvalidValue(f"Wrong {name} (it is twice in {where}, with different values)", name)
        if len(in_body | in_query) > 1:
            raise InvalidValue(f"Wrong {name} (it is in the query and in the body, with different values)", name)
    return [*query, *body]


def _body_pairs(body: bytes, content_type: str) -> Pairs:
    kind, options = parse_options_header(content_type)
    start = body.lstrip()
    if kind == b"multipart/form-data":
        return _multipart(body, options.get(b"boundary", b""))
    if kind.endswith(b"json") or start[:1] == b"{":  # no urlencoded form starts with a brace
        pairs = list(fields.json_fields(body.decode()))
        if len(pairs) > MAX_FIELDS:
            raise ValueError("too many fields")
        return pairs
    if start[:2] == b"--" and PART.search(start):
        return _multipart(start, start[2:].partition(b"\r\n")[0])
    return _urlencoded(body)


def _urlencoded(text: bytes) -> Pairs:
    return parse_qsl(text.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS, separator="&")


def _multipart(body: bytes, boundary: bytes) -> Pairs:
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
