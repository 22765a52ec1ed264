"""What real clients do on real sockets: hang up, ask for heads, label their bodies wrong."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from gateway import one_time_links
from gateway.fields import new_account, server_values
from gateway.http.pages import one_time_link
from tests.contract.served import Served, served
from tests.fakes.product import migrated_sqlite

WAIT_SECONDS = 10
LINKS = 40  # whose pages no connection of `narrow` takes at once
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl (package curl) is missing")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(migrated_sqlite(tmp_path_factory.mktemp("callers") / "gateway.db")) as gateway:
        gateway.do(gateway.product.servers.create(server_values({})))
        gateway.do(gateway.product.accounts.create(new_account({"wg_name": "Default_1", "name": "peer_1"})))
        yield gateway


def curl(gateway: Served, *arguments: str) -> str:
    command = ("curl", "-sS", "-b", f"access_hash={gateway.access_hash}", *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True).stdout


def pressed(gateway: Served, key: str, length: int = 0) -> socket.socket:
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), WAIT_SECONDS)
    connection.sendall(f"POST /otl/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
    return connection


def page(connection: socket.socket) -> bytes:
    found = b""
    while b"</html>" not in found and (part := connection.recv(65536)):
        found += part
    return found


@pytest.mark.parametrize("how", ["close", "reset", "body that never comes"])
def test_link_is_not_burnt_by_who_hangs_up(gateway: Served, how: str) -> None:
    key = gateway.do(gateway.product.one_time_links.create("peer_1"))
    connection = pressed(gateway, key, length=10 if how == "body that never comes" else 0)
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    with pressed(gateway, key) as other:  # at once: it waits for how the first one ends
        shown = page(other)
    assert shown.startswith(b"HTTP/1.1 200 ") and b"PrivateKey" in shown
    with pressed(gateway, key) as late:
        assert page(late).startswith(b"HTTP/1.1 404 ")


def test_link_is_burnt_by_who_closes_after_the_page(gateway: Served) -> None:
    for _ in range(20):
        key = gateway.do(gateway.product.one_time_links.create("peer_1"))
        with pressed(gateway, key) as connection:
            assert b"PrivateKey" in page(connection)
        deadline = time.monotonic() + WAIT_SECONDS
        while gateway.do(gateway.product.one_time_links.valid(key)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Served]:
    """A gateway whose connections take little: a page is soon the first that finds no room."""
    with served(migrated_sqlite(tmp_path / "gateway.db"), send_buffer=4096) as gateway:
        gateway.do(gateway.product.servers.create(server_values({})))
        gateway.do(gateway.product.accounts.create(new_account({"wg_name": "Default_1", "name": "peer_1"})))
        yield gateway


@contextmanager
def crammed(gateway: Served) -> Iterator[tuple[list[str], socket.socket, int]]:
    """A connection that opens link after link and reads nothing; the links, and the place of the first whose page
    waits for room."""
    keys = [gateway.do(gateway.product.one_time_links.create("peer_1")) for _ in range(LINKS)]
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.socket() as connection, closing(sqlite3.connect(gateway.database.removeprefix("sqlite:///"))) as base:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(WAIT_SECONDS)
        connection.connect((host, int(port)))
        for key in keys:
            connection.sendall(f"POST /otl/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        places = [-1]
        while places[-3:] != 3 * [places[-1]]:  # until it is the same for a second
            time.sleep(0.5)
            (used,) = base.execute("SELECT count(*) FROM one_time_links WHERE used IS NOT NULL").fetchone()
            places.append(used)
        assert 0 < used < LINKS, "the connection never ran full"
        yield keys, connection, used


def test_link_is_never_shown_twice_to_who_lets_his_connection_run_full(
    narrow: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He reads nothing, and presses the button: his page waits for room, and his lease ends."""
    monkeypatch.setattr(one_time_link, "SHOW_SECONDS", 2)
    monkeypatch.setattr(one_time_links, "LEASE_SECONDS", 4)
    with crammed(narrow) as (keys, connection, first):
        time.sleep(4)
        with pressed(narrow, keys[first]) as other:
            assert b"PrivateKey" in page(other)
        connection.settimeout(1)
        found = b""
        with suppress(OSError):
            while part := connection.recv(1 << 20):
                found += part
        assert found.count(b"PrivateKey") <= first


def test_link_is_not_burnt_by_who_hangs_up_while_his_page_waits_for_room(narrow: Served) -> None:
    with (
        crammed(narrow) as (keys, _, first),
        closing(sqlite3.connect(narrow.database.removeprefix("sqlite:///"))) as base,
    ):
        leased = base.execute("SELECT count(*) FROM one_time_links WHERE leased IS NOT NULL AND used IS NULL")
        assert leased.fetchone() == (1,), "nobody's page waits"
    time.sleep(0.5)
    with pressed(narrow, keys[first]) as other:
        assert b"PrivateKey" in page(other)


@needs_curl
def test_curl_gets_the_head_of_whatever_it_gets(gateway: Served) -> None:
    for path in ("/api/v1/account", "/api/v1/account/peer_1/", "//api/v1/openapi.json", "/healthz"):
        size = len(curl(gateway, gateway.url + path))
        head = curl(gateway, "-I", gateway.url + path).lower()
        assert head.startswith("http/1.1 200") and f"content-length: {size}\n" in head


@needs_curl
@pytest.mark.parametrize(
    "arguments",
    [
        ("?status=disable",),
        ("", "-d", "status=disable"),
        ("", "-F", "status=disable"),
        ("", "-H", "Content-Type: application/x-www-form-urlencoded", "-F", "status=disable"),
        ("", "-H", "Content-Type:", "-F", "status=disable"),
        ("", "-H", "Content-Type: application/json", "-d", '{"status": "disable"}'),
        ("?status=disable", "-d", "b_download=5"),
        ("/?status=disable", "-G", "-d", "b_upload=5"),
    ],
)
def test_account_is_off_whatever_way_it_was_said(gateway: Served, arguments: tuple[str, ...]) -> None:
    query, *options = arguments
    account = f"{gateway.url}/api/v1/account/peer_1"
    curl(gateway, "-X", "PUT", "-d", "status=enable", account)
    assert json.loads(curl(gateway, *options, "-X", "PUT", account + query))["msg"]["status"] == "disable"
    assert json.loads(curl(gateway, account))["msg"]["status"] == "disable"


@needs_curl
@pytest.mark.parametrize("what", ["account", "wireguard"])
def test_nothing_is_created_for_who_hung_up_while_the_database_was_held(gateway: Served, what: str) -> None:
    url = f"{gateway.url}/api/v1/{what}"
    fields = ("-d", "name=too_late", *(("-d", "wg_name=Default_1") if what == "account" else ()))
    with closing(sqlite3.connect(gateway.database.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(subprocess.CalledProcessError):
            curl(gateway, "--max-time", "1", "-X", "POST", *fields, url)
        holder.execute("ROLLBACK")
    time.sleep(0.5)  # by now it would be there
    assert json.loads(curl(gateway, f"{url}/too_late"))["status"] == "error"
    if what == "account":  # the same name is still to be had, by who waits
        assert json.loads(curl(gateway, "-X", "POST", *fields, url))["status"] == "success"
