"""A program: many callers at once, each with a connection of its own, and as little work for each call as can be.

Reads one JSON object: address, cookie, callers, forms (the bodies of creates). Prints one: seconds of all together, the
time of each call, how many were pending, the first error or "".
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Seen:
    times: list[float] = field(default_factory=list)
    pending: int = 0
    error: str = ""


async def _caller(address: str, cookie: str, forms: Iterator[str], seen: Seen) -> None:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /api/v1/account HTTP/1.1\r\nHost: {address}\r\nCookie: {cookie}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: "
    )
    for form in forms:
        began = time.perf_counter()
        writer.write(f"{head}{len(form)}\r\n\r\n{form}".encode())
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        seen.times.append(time.perf_counter() - began)
        seen.pending += b"x-wirelane-pending" in answer
        if error := json.loads(body)["error"]:
            seen.error = seen.error or error
    writer.close()


async def _all(asked: dict[str, Any]) -> dict[str, Any]:
    seen, forms = Seen(), iter(asked["forms"])
    began = time.perf_counter()
    callers = (_caller(asked["address"], asked["cookie"], forms, seen) for _ in range(asked["callers"]))
    await asyncio.gather(*callers)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "times": seen.times, "pending": seen.pending, "error": seen.error}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_all(json.load(sys.stdin)))))
