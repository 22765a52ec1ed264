"""REST calls over one kept connection, each with its time; and the 32 callers beside us. Called by the questions."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.box import Box
from tests.lab.errors import LabError
from tests.lab.services import ROOT, environment

CALL_SECONDS = 30.0
CALLERS_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Call:
    """`pending`: it was answered before the node had applied it."""

    seconds: float
    msg: Any
    pending: bool


class Line:
    """One keep-alive connection to the gateway."""

    def __init__(self, box: Box) -> None:
        self._cookie = f"access_hash={box.lab.describe()['access_hash']}"
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(box.lab.url).netloc, timeout=CALL_SECONDS)

    def call(self, method: str, path: str, values: Mapping[str, object] | None = None) -> Call:
        """Raises LabError where the envelope tells an error."""
        headers = {"Cookie": self._cookie}
        body = None
        if values is not None:
            body = urllib.parse.urlencode(values)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        began = time.perf_counter()
        self._connection.request(method, f"/api/v1/{path}", body, headers)
        response = self._connection.getresponse()
        answer = response.read()
        seconds = time.perf_counter() - began
        envelope = json.loads(answer)
        if envelope["error"]:
            raise LabError(f"{method} {path}: {envelope['error']}")
        return Call(seconds, envelope["msg"], "X-Wirelane-Pending" in response.headers)

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Changed:
    """Times of single calls, one after the other, in seconds."""

    create: list[float]
    edit: list[float]
    delete: list[float]
    pending: int


def changes(box: Box, count: int) -> Changed:
    """So many creates, edits of the rate and deletes, each applied when it is answered; nothing stays behind."""
    line = Line(box)
    names = [f"change{number}" for number in range(count)]
    create = [
        line.call("POST", "account", {"name": name, "wg_name": server, "b_download": 10, "b_upload": 10})
        for name, server in zip(names, box.servers * count, strict=False)
    ]
    edit = [line.call("PUT", f"account/{name}", {"b_download": 20}) for name in names]
    delete = [line.call("DELETE", f"account/{name}") for name in names]
    line.close()
    pending = sum(call.pending for call in (*create, *edit, *delete))
    created, edited, deleted = ([call.seconds for call in part] for part in (create, edit, delete))
    return Changed(created, edited, deleted, pending)


def together(box: Box, callers: int, count: int) -> dict[str, Any]:
    """So many creates by so many callers at once, from a process of their own; see callers.py for the answer."""
    asked = {
        "address": urllib.parse.urlsplit(box.lab.url).netloc,
        "cookie": f"access_hash={box.lab.describe()['access_hash']}",
        "callers": callers,
        "forms": [
            urllib.parse.urlencode({"name": f"many{i}", "wg_name": server, "b_download": 10, "b_upload": 10})
            for i, server in zip(range(count), box.servers * count, strict=False)
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.callers"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=CALLERS_SECONDS,
        check=False,
    )
    if done.returncode:
        raise LabError(f"the callers failed: {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
