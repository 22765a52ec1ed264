"""What a client can make the listener wait for or keep is bounded, and whatever it refuses has the envelope's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.http import listener
from gateway.http.listener import Listener, bound_socket

pytestmark = pytest.mark.anyio

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Reads the body and says how long it was; /large answers with 64 MB."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    body = b"%d" % length if scope["path"] == "/" else b"x" * (64 << 20)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening() -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    """A listener; gives a function that connects to it."""
    ready = asyncio.Event()
    server = Listener(app, None, ready.set)
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        task = asyncio.create_task(server.serve([bound]))
        await asyncio.wait_for(ready.wait(), 5)
        writers: list[asyncio.StreamWriter] = []

        async def connect() -> Streams:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            return reader, writer

        try:
            yield connect
        finally:
            for writer in writers:
                writer.close()
            server.should_exit = True
            await asyncio.wait_for(task, 15)


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the next answer."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def refusal_of(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and error text of an answer after which the connection ends."""
    status, _, body = await answer_of(reader)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    envelope = json.loads(body)
    assert (envelope["msg"], envelope["status"]) == ("", "error")
    return status, envelope["error"]


async def test_a_connection_serves_many_requests_and_says_nothing_of_the_server(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(GET)
            status, headers, body = await answer_of(reader)
            assert (status, body) == (200, b"0")
            assert "server" not in headers
        writer.write(GET + GET)  # two in one packet
        assert [(await answer_of(reader))[0] for _ in range(2)] == [200, 200]
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + b"b" * 100000)
        assert (await answer_of(reader))[2] == b"100000"


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nhost", b"\r\n\r\n"])
async def test_a_head_that_does_not_end_is_not_waited_for(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(start)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.1)
                writer.write(start[-1:])

        dripping = asyncio.create_task(drip())
        assert await refusal_of(reader) == (408, "The request took too long")
        dripping.cancel()
        silent, _ = await connect()
        assert await asyncio.wait_for(silent.read(), 2) == b""


async def test_a_head_that_is_too_large_is_refused(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 40_000)
        assert await refusal_of(reader) == (431, "The request's head is too large")


async def test_a_body_that_does_not_come_is_not_waited_for(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "BODY_SECONDS", 0.3)
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
        assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_a_client_that_does_not_read_is_cut_off(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.3)
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1.0)
        received = 0
        try:
            while part := await asyncio.wait_for(reader.read(1 << 20), 5):
                received += len(part)
        except ConnectionResetError:
            pass
        assert received < 64 << 20


async def test_what_is_not_http_is_refused(anyio_backend: str) -> None:
    async with listening() as connect:
        for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n"):
            reader, writer = await connect()
            writer.write(nonsense)
            assert await refusal_of(reader) == (400, "Not an HTTP request")


async def test_too_many_connections_are_refused(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS", 3)
    async with listening() as connect:
        open_ones = [await connect() for _ in range(3)]
        for reader, writer in open_ones:
            writer.write(GET)
            assert (await answer_of(reader))[0] == 200
        reader, _ = await connect()
        assert await refusal_of(reader) == (503, "Too many connections, try again")
        open_ones[0][1].close()
        await asyncio.sleep(0.1)
        reader, writer = await connect()
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200
