"""A stranger on the internet who attacks a gateway, or the proxy before it, over bare sockets. A program of its own:

    python -m tests.netns.stranger --port 8080 --count 1000 --stolen HASH --allowed 127.0.0.2

He has no key, or one that was stolen and works from elsewhere only. Prints one line of JSON: how many attempts were
made, how many were answered at all, and every answer that was not his.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

PACKET_GAP = 0.01  # seconds: so that the parts arrive as packets
ANSWER_SECONDS = 5.0
IN_FLIGHT = 8
LONG = 200_000  # empty lines before a hidden request, which readers of requests pass over
HIDDEN_PATH = "/api/v1/openapi.json"  # needs no key: that it is served at all shows that it was taken for a request
HIDDEN = f"GET {HIDDEN_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
UNFINISHED = b"GET /api/v1/account HTTP/1.1\r\nHost: x\r\nX-Swallow: "  # the next caller's head, cookie and all
COLLECT = b"GET /api/v1/account/peer_1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
NOT_HIS = (b'"success"', b"private_key", b"PrivateKey", b'"openapi"')


@dataclass(frozen=True, slots=True)
class Attempt:
    kind: str
    packets: tuple[bytes, ...]


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def _post(lines: str) -> bytes:
    return f"POST /api/v1/account HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n".encode()


def offers() -> Iterator[Attempt]:
    """Upgrades that nobody takes: the body stays a body, however it is framed and in how many packets it comes."""
    for token, tail in itertools.product(("h2c", "websocket", "TLS/1.0", "anything/9", "h2c, websocket"), (0, 1)):
        body = (HIDDEN, UNFINISHED)[tail]
        for options in ("Upgrade", "keep-alive, Upgrade, HTTP2-Settings"):
            offer = f"Connection: {options}\r\nUpgrade: {token}\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
            plain = _post(f"{offer}Content-Length: {len(body)}")
            chunks = _post(f"{offer}Transfer-Encoding: chunked")
            yield Attempt("upgrade, one packet", (plain + body,))
            yield Attempt("upgrade, two packets", (plain, body))
            yield Attempt("upgrade, chunked", (chunks, _chunked(body)))
            yield Attempt("upgrade, ten packets", (plain, *(body[at : at + 8] for at in range(0, len(body), 8))))
        # nginx sends head and body on at once: only what one reading of the gateway does not hold comes in a second.
        long = b"\r\n" * LONG + HIDDEN
        head = _post(f"Connection: Upgrade\r\nUpgrade: {token}\r\nContent-Length: {len(long)}")
        yield Attempt("upgrade, long body", (head + long,))


def trailers(stolen: str, allowed: str) -> Iterator[Attempt]:
    """A stolen key, and behind the body what would make it good."""
    head = f"GET /api/v1/account/peer_1 HTTP/1.1\r\nHost: x\r\nCookie: access_hash={stolen}\r\nTrailer: X-Forwarded-For"
    chunked = f"{head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for name in ("X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Real-IP"):
        end = f"1\r\nx\r\n0\r\n{name}: {allowed}\r\n\r\n".encode()
        yield Attempt("trailer, one packet", (chunked + end,))
        yield Attempt("trailer, two packets", (chunked, end))
    yield Attempt("header", (head.encode() + f"\r\nX-Forwarded-For: {allowed}\r\n\r\n".encode(),))


def framings() -> Iterator[Attempt]:
    """Lengths that two readers could understand differently. A proxy may read the rest as a request of its own."""
    rest = b"GET /nowhere HTTP/1.1\r\nX-Swallow: "
    long = len(rest) + 5
    for lines in (
        f"Content-Length: {long}\r\nTransfer-Encoding: chunked",
        f"Transfer-Encoding: chunked\r\nContent-Length: {long}",
        f"Content-Length: 0\r\nContent-Length: {long}",
        f"Content-Length: {long}\r\nContent-Length: 0",
        f"Content-Length: {long}, 0",
        f"Content-Length: +{long}",
        f"Content-Length: {long}\r\nTransfer-Encoding : chunked",
        f"Content-Length: {long}\r\nTransfer-Encoding: xchunked",
        f"Content-Length: {long}\r\nTransfer-Encoding: identity, chunked",
        f"Content-Length: {long}\r\nTransfer-Encoding:\x0bchunked",
        f"Content-Length: {long}\r\nX: y\r\n Transfer-Encoding: chunked",
        f"Content-Length: {long}\r\nX: y\nTransfer-Encoding: chunked",
        f"Content-Length: {long}\r\nX: \0\r\nTransfer-Encoding: chunked",
        f"Transfer-Encoding: chunked\r\nX: {'y' * 300}\r\nContent-Length:{long}",
    ):
        yield Attempt("framing", (_post(lines) + b"0\r\n\r\n" + rest,))
        yield Attempt("framing, two packets", (_post(lines), b"0\r\n\r\n" + rest))


async def attempt(port: int, source: str, packets: tuple[bytes, ...]) -> bytes:
    """Sends the packets, then an honest request without a key; gives everything that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    found = bytearray()

    async def read() -> None:
        while part := await reader.read(65_536):
            found.extend(part)

    reading = asyncio.create_task(read())  # all the time: a reset takes with it what was not read
    try:
        for packet in (*packets, COLLECT):
            writer.write(packet)
            await asyncio.sleep(PACKET_GAP)
        await asyncio.wait_for(reading, ANSWER_SECONDS)
    except (OSError, TimeoutError):
        pass  # it was ended, or is never answered: both are no answer
    finally:
        reading.cancel()
        writer.transport.abort()
    return bytes(found)


def address(number: int) -> str:
    """One for each attempt: who tries wrong keys from one address waits for his answers."""
    return f"127.{1 + number // 62_500 % 200}.{number // 250 % 250}.{1 + number % 250}"


async def attack(options: argparse.Namespace) -> dict[str, object]:
    attempts = itertools.cycle([*offers(), *trailers(options.stolen, options.allowed), *framings()])
    made, answered, foreign = Counter[str](), 0, list[str]()
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int, what: Attempt) -> None:
        nonlocal answered
        try:
            found = await attempt(options.port, address(number), what.packets)
        finally:
            room.release()
        made[what.kind] += 1
        answered += bool(found)
        if any(sign in found for sign in NOT_HIS):
            foreign.append(f"{what.kind}: {what.packets!r} was answered {found[:600]!r}")

    async with asyncio.TaskGroup() as group:
        for number, what in zip(range(options.count), attempts, strict=False):
            await room.acquire()
            group.create_task(one(number, what))
            await asyncio.sleep(1 / options.rate)
    return {"attempts": made.total(), "kinds": made, "answered": answered, "foreign": foreign}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=200.0, help="attempts a second, at most")
    parser.add_argument("--stolen", default="0" * 80, help="a key that is good from elsewhere")
    parser.add_argument("--allowed", default="127.0.0.2", help="where it is good")
    os.nice(10)  # he has a machine of his own
    print(json.dumps(asyncio.run(attack(parser.parse_args()))))


if __name__ == "__main__":
    main()
