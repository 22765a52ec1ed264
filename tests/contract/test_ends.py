"""Where a request ends, and what a client hears that ends it early, wrongly, or with the end of all it has to say."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from gateway.fields import new_account, server_values
from gateway.http import listener
from tests.contract.served import Served, served
from tests.contract.test_door import served as served_by_tls
from tests.contract.test_listener import CHUNKED, GET, Streams, answer_of, anyio_backend, listening, refusal_of
from tests.fakes import direct
from tests.fakes.product import migrated_sqlite

pytestmark = pytest.mark.anyio

__all__ = ["anyio_backend"]

LATER = b"POST /later HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"


@asynccontextmanager
async def connecting(tls: bool, folder: Path) -> AsyncIterator[Callable[[], Awaitable[Streams]]]:
    if tls:
        async with served_by_tls(folder) as one:
            yield one.secure
    else:
        async with listening() as connect:
            yield connect


both = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


# -- it has nothing more to say --


@pytest.mark.parametrize("sent", [GET, LATER, LATER.replace(b"POST", b"PUT"), GET.replace(b"/ ", b"/later ")])
async def test_who_has_nothing_more_to_say_gets_his_answer(anyio_backend: str, sent: bytes) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(sent)
        writer.write_eof()
        everything = await asyncio.wait_for(reader.read(), 5)
        assert everything.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"").startswith(b"HTTP/1.1 200")


async def test_what_came_before_the_end_is_all_answered(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(LATER * 3 + GET * 2 + LATER)
        writer.write_eof()
        assert (await asyncio.wait_for(reader.read(), 5)).count(b"HTTP/1.1 200") == 6


async def test_a_large_answer_comes_whole_after_the_end(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(GET.replace(b"/ ", b"/large "))
        writer.write_eof()
        received = 0
        while part := await asyncio.wait_for(reader.read(1 << 20), 5):
            received += len(part)
        assert received > 64 << 20


async def test_who_ends_his_side_and_reads_nothing_is_cut_off(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(listener, "CLOSE_SECONDS", 0.3)
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(GET.replace(b"/ ", b"/large "))
        writer.write_eof()
        await asyncio.sleep(3.0)
        received = 0
        with suppress(ConnectionResetError):
            while part := await asyncio.wait_for(reader.read(1 << 20), 5):
                received += len(part)
        assert received < 64 << 20


@pytest.mark.parametrize("sent", [CHUNKED + b"3\r\nabc\r\n", LATER[:-1]], ids=["chunks", "length"])
async def test_a_body_that_ends_with_the_connection_is_no_body(anyio_backend: str, sent: bytes) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(sent)
        writer.write_eof()
        assert await refusal_of(reader) == (400, "The request's body ended early")


async def test_an_end_between_two_requests_ends_the_connection(anyio_backend: str) -> None:
    async with listening() as connect:
        for more in (b"", b"GET / HT"):
            reader, writer = await connect()
            writer.write(GET)
            assert (await answer_of(reader))[0] == 200
            writer.write(more)
            writer.write_eof()
            assert await asyncio.wait_for(reader.read(), 2) == b""


# -- lines --


@both
@pytest.mark.parametrize("packets", [1, 10])
@pytest.mark.parametrize("kind", ["head", "folded", "trailers"])
async def test_a_head_of_too_many_lines_is_refused_also_when_it_is_whole(
    anyio_backend: str, kind: str, packets: int, tls: bool, tmp_path: Path
) -> None:
    start, line = {
        "head": (b"GET / HTTP/1.1\r\nhost: x\r\n", b"a-name: a value\r\n"),
        "folded": (b"GET / HTTP/1.1\r\nhost: x\r\na: 1\r\n", b" b\r\n"),
        "trailers": (CHUNKED + b"0\r\n", b"a-name: a value\r\n"),
    }[kind]
    async with connecting(tls, tmp_path) as connect:
        for count in (130, 300, 3000) if packets == 1 else (130,):  # who sends on after the answer may not see it
            reader, writer = await connect()
            whole = start + line * count + b"\r\n"
            size = -(-len(whole) // packets)
            for at in range(0, len(whole), size):
                writer.write(whole[at : at + size])
                await asyncio.sleep(0.001)
            assert await refusal_of(reader) == (431, "The request's head has too many lines"), count


async def test_a_head_of_as_many_lines_as_may_be_is_served(anyio_backend: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        for _ in range(3):
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:1\r\n" * 126 + b"\r\n")
            assert (await answer_of(reader))[0] == 200
        writer.write((b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:1\r\n" * 100 + b"\r\n") * 3)
        assert [(await answer_of(reader))[0] for _ in range(3)] == [200] * 3


# -- broken bodies --

BROKEN = {
    "size": (b"zz\r\nabc\r\n", "Not an HTTP request"),
    "end": (b"1\r\nabc\r\n0\r\n\r\n", "Not an HTTP request"),
    "crumbs": (b"1\r\na\r\n" * 100, "The request's body comes in crumbs"),
}


@both
@pytest.mark.parametrize("together", [False, True], ids=["after the head", "with it"])
@pytest.mark.parametrize("kind", BROKEN)
async def test_who_sends_a_broken_body_hears_so(
    anyio_backend: str, kind: str, together: bool, tls: bool, tmp_path: Path
) -> None:
    body, text = BROKEN[kind]
    async with connecting(tls, tmp_path) as connect:
        reader, writer = await connect()
        if together:
            writer.write(CHUNKED + body)
        else:
            writer.write(CHUNKED + b"3\r\nabc\r\n")
            await asyncio.sleep(0.1)
            writer.write(body)
        assert await refusal_of(reader) == (400, text)


# -- the product behind it --


def asked(one: Served, method: str, path: str, rest: str, version: str = "1.1") -> socket.socket:
    host, port = one.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), 10)
    cookie = f"Cookie: access_hash={one.access_hash}"
    connection.sendall(f"{method} /api/v1/{path} HTTP/{version}\r\nHost: x\r\n{cookie}\r\n{rest}".encode())
    return connection


def everything(connection: socket.socket) -> str:
    with connection:
        found = b""
        while part := connection.recv(65_536):
            found += part
    return found.decode().replace("HTTP/1.1 100 Continue\r\n\r\n", "")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Served]:
    with served(migrated_sqlite(tmp_path / "gateway.db")) as one:
        one.do(one.product.servers.create(server_values({})))
        one.do(one.product.accounts.create(new_account({"wg_name": "Default_1", "name": "bert"})))
        yield one


def names(one: Served) -> set[str]:
    return {account.name for account in one.do(direct.accounts(one.product.accounts))}


def test_a_change_is_answered_also_when_nothing_more_is_to_come(gateway: Served) -> None:
    for method, path, body, is_right in (
        ("PUT", "account/bert", "b_download=33", '"b_download":"33"'),
        ("POST", "account", "wg_name=Default_1&name=anna", '"name":"anna"'),
        ("DELETE", "account/bert", "", '"success"'),
    ):
        connection = asked(gateway, method, path, f"Content-Length: {len(body)}\r\n\r\n{body}")
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
        assert answer.startswith("HTTP/1.1 200 ") and is_right in answer, method
    assert names(gateway) == {"anna"}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize(
    ("method", "path", "form"),
    [
        ("PUT", "account/bert", "status=disable&"),
        ("POST", "account", "wg_name=Default_1&"),
        ("DELETE", "account/bert", ""),
    ],
)
def test_nothing_is_changed_by_a_request_that_is_broken(
    gateway: Served, method: str, path: str, form: str, broken: str
) -> None:
    start = f"{len(form):x}\r\n{form}\r\n" if form else ""
    body, text = BROKEN[broken]
    rest = f"Transfer-Encoding: chunked\r\n\r\n{start}{body.decode()}"
    answer = everything(asked(gateway, method, path, rest))
    assert answer.startswith("HTTP/1.1 400 ") and text in answer
    time.sleep(0.2)
    assert names(gateway) == {"bert"}
    assert gateway.do(gateway.product.accounts.get("bert")).enabled


def test_nothing_is_created_for_who_hung_up_while_the_database_was_held(gateway: Served) -> None:
    body = "wg_name=Default_1&name=anna"
    with closing(sqlite3.connect(gateway.database.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for version, more in (("1.0", ""), ("1.1", ""), ("1.1", "Connection: close\r\n")):
            connection = asked(gateway, "POST", "account", f"{more}Content-Length: {len(body)}\r\n\r\n{body}", version)
            time.sleep(0.2)
            connection.close()
        time.sleep(0.6)
        other.execute("ROLLBACK")
    time.sleep(0.5)
    assert names(gateway) == {"bert"}


# -- the absolute form of a target --


@both
@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
async def test_a_target_with_its_host_is_the_same_request(
    anyio_backend: str, scheme: str, tls: bool, tmp_path: Path
) -> None:
    async with connecting(tls, tmp_path) as connect:
        reader, writer = await connect()
        for target, length in (("own.example:8080/headers?a=b", None), ("own.example", 0), ("[2001:db8::1]:80?c=d", 0)):
            writer.write(f"GET {scheme}://{target} HTTP/1.1\r\nHost: other\r\n\r\n".encode())
            status, _, body = await answer_of(reader)
            assert status == 200
            assert body == b"%d" % length if length is not None else b"(b'host', b'own.example:8080')" in body
            assert b"other" not in body
        writer.write(b"GET http://x/" + b"a" * 2100 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await refusal_of(reader) == (414, "The request's path is too long")


@pytest.mark.parametrize(
    "line",
    [
        "GET ftp://own/healthz",
        "GET http://own@other/healthz",
        "GET http:///healthz",
        "GET http://own:99999999/healthz",
        "GET http://own#/healthz",
        "GET file:///etc/passwd",
        "CONNECT http://own/healthz",
        "CONNECT own:443",
    ],
)
async def test_a_target_that_is_none_of_ours_is_refused(anyio_backend: str, line: str) -> None:
    async with listening() as connect:
        reader, writer = await connect()
        writer.write(f"{line} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        assert await refusal_of(reader) == (400, "Not an HTTP request")


def test_a_target_with_its_host_opens_nothing(gateway: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gateway.http")
    host, port = gateway.url.removeprefix("http://").split(":")
    cookie = f"Cookie: access_hash={gateway.access_hash}\r\n"
    for target, headers, status, has in (
        ("http://own/healthz", "", 200, ""),
        ("http://own/api/v1/account/bert", "", 200, "Not authorized"),
        ("http://own//api/v1/account/bert/", "", 200, "Not authorized"),
        ("http://own/api/v1/account/bert", cookie, 200, '"name":"bert"'),
        ("*", cookie, 404, ""),
        ("own:80", cookie, 404, ""),
        ("api/v1/account/bert", cookie, 404, ""),
    ):
        connection = socket.create_connection((host, int(port)), 10)
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n".encode())
        answer = everything(connection)
        assert answer.startswith(f"HTTP/1.1 {status} ") and has in answer, target
    said = [record.getMessage() for record in caplog.records]
    assert sum("event=refused" in line and "path=/api/v1/account/{name} " in line for line in said) == 1, said
    assert any("event=request" in line and "path=/api/v1/account/{name} " in line for line in said), said
