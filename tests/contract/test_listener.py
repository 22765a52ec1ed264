"""What a client can make the listener wait for or keep is bounded, and whatever it refuses has the envelope's form."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from gateway.http import admission, listener
from gateway.http.listener import Listener
from gateway.http.ports import bound_socket

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The gateway runs on uvloop; what holds on one loop alone would be luck."""
    return "asyncio", {"use_uvloop": request.param}


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def app(scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Reads the body and says how long it was; /large answers with 64 MB."""
    length, more = 0, scope["path"] != "/early"  # that one answers before it has read anything
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/later":
        await asyncio.sleep(0.2)
    bodies = {"/large": b"x" * (64 << 20), "/headers": repr(scope["headers"]).encode()}
    body = bodies.get(scope["path"], b"%d" % length)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening() -> AsyncIterator[Callable[..., Awaitable[Streams]]]:
    """A listener; gives a function that connects to it."""
    ready = asyncio.Event()
    server = Listener(app, None, ready.set)
    with bound_socket("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        task = asyncio.create_task(server.serve([bound]))
        await asyncio.wait_for(ready.wait(), 5)
        writers: list[asyncio.StreamWriter] = []

        async def connect(address: str = "127.0.0.1") -> Streams:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
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


async def test_a_head_that_does_not_end_is_not_waited_for(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_SECONDS", 0.3)
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nhost")

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.1)
                writer.write(b"t")

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


@pytest.mark.parametrize("path", [b"%" * 2100, b"a" * 2100, b"a" * 30_000])
async def test_a_path_that_is_too_long_is_refused_before_anything_reads_it(anyio_backend: str, path: bytes) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"GET /%b?b=c HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        assert await refusal_of(reader) == (414, "The request's path is too long")


async def test_a_query_may_be_long(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"PUT /?allowed_ips=" + b"10.0.0.0%2F8%2C" * 500 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await answer_of(reader))[0] == 200


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
        await asyncio.sleep(3.0)
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
    monkeypatch.setattr(admission, "FROM_ONE_ADDRESS", 3)
    async with listening() as connect:
        open_ones = [await connect() for _ in range(3)]
        for reader, writer in open_ones:
            writer.write(GET)
            assert (await answer_of(reader))[0] == 200
        reader, _ = await connect()
        assert await refusal_of(reader) == (503, "Too many connections, try again")
        reader, writer = await connect("127.0.0.2")
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200, "another address is not shut out"
        open_ones[0][1].close()
        await asyncio.sleep(0.1)
        reader, writer = await connect()
        writer.write(GET)
        assert (await answer_of(reader))[0] == 200


# -- what is not this request's ------------------------------------------------------------------------------------

OFFERS = [
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: QQ==\r\n",
    b"connection: keep-alive, Upgrade\r\nupgrade: TLS/1.0\r\n",
    b"connection: upgrade\r\nupgrade: anything/9, h2c\r\n",
]
LENGTHS = {
    "length": b"content-length: 14\r\n\r\nstatus=disable",
    "chunks": b"transfer-encoding: chunked\r\n\r\n7;a=b\r\nstatus=\r\n7\r\ndisable\r\n0\r\nx-a: 192.0.2.1\r\n\r\n",
}


@pytest.mark.parametrize("packets", [1, 2, 10])
@pytest.mark.parametrize("framed", LENGTHS)
@pytest.mark.parametrize("offer", OFFERS)
async def test_an_offer_to_upgrade_is_ignored_and_the_request_served_whole(
    anyio_backend: str, offer: bytes, framed: str, packets: int
) -> None:
    whole = b"PUT / HTTP/1.1\r\nhost: x\r\n" + offer + LENGTHS[framed] + GET
    async with listening() as connect:
        reader, writer = await connect()
        size = -(-len(whole) // packets)
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            if packets > 1:
                await asyncio.sleep(0.001)
        assert (await answer_of(reader))[::2] == (200, b"14")
        assert (await answer_of(reader))[::2] == (200, b"0"), "what follows is the next request, and no other"


async def test_trailers_never_become_headers(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(b"POST /headers HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
        writer.write(b"X-Forwarded-For: 192.0.2.1\r\nCookie: access_hash=00\r\n\r\n")
        assert b"192.0.2.1" not in (await answer_of(reader))[2]


@pytest.mark.parametrize("kind", ["trailers", "chunk extension", "head"])
async def test_lines_without_end_are_cut_off_and_not_kept(anyio_backend: str, kind: str) -> None:
    starts = {
        "trailers": (
            b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            b"x: " + b"y" * 997 + b"\r\n",
        ),
        "chunk extension": (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;", b"y" * 1000),
        "head": (b"GET / HTTP/1.1\r\n", b"x: " + b"y" * 997 + b"\r\n"),
    }
    start, line = starts[kind]
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(start)
        sent = 0
        with suppress(ConnectionError):
            while sent < 64_000_000 and not reader.at_eof():
                writer.write(line * 100)
                sent += len(line) * 100
                async with asyncio.timeout(5):
                    await writer.drain()
                await asyncio.sleep(0)
        assert sent < 16_000_000


@pytest.mark.parametrize(
    "smuggled",
    [
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\nZ\r\n0\r\n\r\n" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello" + GET,
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\x00\r\n\r\nhello" + GET,
        b"CONNECT a:1 HTTP/1.1\r\nhost: x\r\n\r\n" + GET,
    ],
)
async def test_a_request_of_which_two_readers_may_think_differently_ends_the_connection(
    anyio_backend: str, smuggled: bytes
) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(smuggled)
        everything = await asyncio.wait_for(reader.read(), 5)
        assert everything.count(b"HTTP/1.1 ") == 1 and everything[:12] == b"HTTP/1.1 400"


# -- the pace of others --------------------------------------------------------------------------------------------


async def test_a_client_that_reads_slowly_gets_all_of_it(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.5)
    monkeypatch.setattr(listener, "IDLE_SECONDS", 0.5)
    async with listening() as connect:
        reader, writer = await connect()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        writer.write(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n")
        received = 0
        while received < 64 << 20:
            received += len(await asyncio.wait_for(reader.read(4 << 20), 5))
            await asyncio.sleep(0.02 if received > 4 << 20 else 0.2)
        assert received > 64 << 20


async def test_a_client_that_is_gone_before_its_answer_is_no_error(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening() as connect:
        for late in (b"", b"zz\r\n"):  # gone; or a body that turns out to be nonsense while the answer is made
            for _ in range(20):
                _, writer = await connect()
                writer.write(b"POST /later HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n" + late)
                await writer.drain()
                writer.transport.abort()
        await asyncio.sleep(0.5)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "crumb"),
    [
        (CHUNKED.replace(b"/ ", b"/early "), b"1\r\na\r\n"),
        (CHUNKED.replace(b"/ ", b"/early "), b"1;x\r\na\r\n"),
        (CHUNKED, b"1\r\na\r\n"),
        (CHUNKED, b"00000003\r\naaa\r\n"),
        (CHUNKED + b"0\r\n", b"a:\r\n"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"a:\r\n"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n", b"cookie:a\r\n"),
        (b"", b"\r\n"),
        (b"", GET),
    ],
    ids=["answered", "answered, extension", "chunks", "zeros", "trailers", "headers", "cookies", "empty", "requests"],
)
async def test_who_sends_crumbs_keeps_nobody_waiting(anyio_backend: str, start: bytes, crumb: bytes) -> None:
    """One connection as fast as it can, of what costs most to take apart for what it costs to send."""
    async with listening() as connect:
        reader, writer = await connect()

        async def flood() -> None:
            with suppress(ConnectionError):
                writer.write(start)
                while True:
                    writer.write(crumb * (256_000 // len(crumb)))
                    await writer.drain()
                    await asyncio.sleep(0)

        async def drink() -> None:
            with suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass

        tasks = [asyncio.create_task(flood()), asyncio.create_task(drink())]
        end, longest = time.monotonic() + 1.5, 0.0
        while time.monotonic() < end:
            before = time.thread_time()  # what the loop worked; what a busy machine did meanwhile is not its
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)
        for task in tasks:
            task.cancel()
    assert longest < 0.25, f"the loop was busy for {longest:.3f} s"


LENGTH = b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [CHUNKED.replace(b"/ ", b"/early "), CHUNKED.replace(b"/ ", b"/early ") + b"1\r\na\r\n0\r\n\r\n", LENGTH + b"ab"],
    ids=["the rest is on its way", "it has come", "a length"],
)
async def test_a_connection_ends_with_the_answer_to_a_body_that_nobody_has_read(
    anyio_backend: str, sent: bytes
) -> None:
    """And says so: a proxy must not send somebody else's request after the rest of that body."""
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(sent)
        status, headers, _ = await answer_of(reader)
        assert (status, headers["connection"]) == (200, "close")
        async with asyncio.timeout(1):
            assert await reader.read() == b""


async def test_a_chunked_body_that_was_read_keeps_the_connection(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(CHUNKED)
            writer.write(b"3\r\nabc\r\n0\r\n\r\n")
            status, headers, body = await answer_of(reader)
            assert (status, body) == (200, b"3") and "connection" not in headers


async def test_who_is_refused_in_the_middle_of_a_large_body_hears_why(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(
            b"POST /early HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 200000\r\n\r\n" + b"b" * 200_000
        )
        assert (await answer_of(reader))[0] == 200
