"""h11, and what we refuse or mend of a request's head before uvicorn has it.

Owns: how long a path and how many lines a head or trailer may have, and the absolute form of a target (RFC 9112,
3.2.2), which becomes the path and the Host that it stands for: whoever looks at a request sees one spelling. Knows no
socket. Called by listener.py.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import h11

HEAD_LINES = 128  # of trailers, too
PATH_BYTES = 2_048  # uvicorn unquotes it before anybody has looked at it: 30 ms for 30 kB of "%"
TOO_MANY_LINES = "The request's head has too many lines"

# No user information: nobody may think that another host is meant.
_ABSOLUTE = re.compile(rb"https?://((?:\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(?::[0-9]{0,5})?)(?=[/?]|$)(.*)", re.I)
_SCHEME = re.compile(rb"[a-z][a-z0-9+.-]*://", re.I)


class Refused(h11.RemoteProtocolError):
    """Its text is for the client."""


class Reader(h11.Connection):
    def __init__(self, most_bytes: int) -> None:
        super().__init__(h11.SERVER, most_bytes)

    def next_event(self) -> Any:
        """Raises Refused, and h11's own."""
        unread = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        event = super().next_event()
        if isinstance(event, h11.Request):
            head = unread[: len(unread) - len(self.trailing_data[0])]
            if head.count(b"\n") - 1 > HEAD_LINES:  # the last one is empty
                raise Refused(TOO_MANY_LINES, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return _mended(event)
        if isinstance(event, h11.EndOfMessage) and len(event.headers) > HEAD_LINES:
            raise Refused(TOO_MANY_LINES, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        return event


def _mended(request: h11.Request) -> h11.Request:
    if not request.target.startswith(b"/") and _SCHEME.match(request.target):
        request = _in_origin_form(request)
    if len(request.target.partition(b"?")[0]) > PATH_BYTES:
        raise Refused("The request's path is too long", HTTPStatus.REQUEST_URI_TOO_LONG)
    return request


def _in_origin_form(request: h11.Request) -> h11.Request:
    """The host of the target counts, whatever the header says."""
    found = _ABSOLUTE.fullmatch(request.target)
    if found is None or request.method == b"CONNECT":
        raise h11.RemoteProtocolError("a target that is none of ours")
    host, rest = found.groups()
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=rest if rest.startswith(b"/") else b"/" + rest,
        headers=[(b"host", host), *headers],
        http_version=request.http_version,
    )
