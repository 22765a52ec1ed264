"""A small client of the v1 REST API, for tests, demo and benchmarks. Thread-safe; knows nothing of the lab."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from tests.lab.errors import ApiError, LabError

CALL_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`pending`: the node that has not applied the change yet (X-Wirelane-Pending), "" = none; `node`: the one that the
    answer is about (X-Wirelane-Node)."""

    http_status: int
    error: str
    msg: Any
    pending: str
    node: str


class Rest:
    def __init__(self, url: str, access_hash: str) -> None:
        """`url`: root of the gateway, without /api/v1."""
        self.url = url
        self._access_hash = access_hash
        # The gateway is on loopback: a proxy that the environment names must not get the cookie.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, method: str, path: str, values: Mapping[str, object] | None = None) -> Answer:
        """One call below /api/v1; `values` are sent as a form. An error in the envelope is an Answer, not a raise."""
        request = urllib.request.Request(
            f"{self.url}/api/v1/{path}",
            method=method,
            data=None if values is None else urllib.parse.urlencode(values).encode(),
            headers={"Cookie": f"access_hash={self._access_hash}"},
        )
        try:
            with self._opener.open(request, timeout=CALL_SECONDS) as response:
                status, headers, body = response.status, response.headers, response.read()
        except urllib.error.HTTPError as failed:
            with failed:
                status, headers, body = failed.code, failed.headers, failed.read()
        except (OSError, HTTPException) as failed:  # nobody there; killed in the middle of its answer
            raise LabError(f"{method} {path}: {failed}") from failed
        try:
            envelope = json.loads(body)
            error, msg = envelope["error"], envelope["msg"]
        except (ValueError, KeyError, TypeError) as bad:
            raise LabError(f"{method} {path}: HTTP {status}, not an envelope: {body[:200]!r}") from bad
        return Answer(status, error, msg, headers.get("X-Wirelane-Pending", ""), headers.get("X-Wirelane-Node", ""))

    def _msg(self, method: str, path: str, values: Mapping[str, object] | None = None) -> Any:
        answer = self.call(method, path, values)
        if answer.error:
            raise ApiError(f"{method} {path}", answer.error)
        return answer.msg

    def get(self, path: str) -> Any:
        """`msg` of the answer. Raises ApiError with the text of the envelope."""
        return self._msg("GET", path)

    def post(self, path: str, **values: object) -> Any:
        return self._msg("POST", path, values)

    def put(self, path: str, **values: object) -> Any:
        return self._msg("PUT", path, values)

    def delete(self, path: str) -> Any:
        return self._msg("DELETE", path)
