"""A gateway under attack from the internet, directly and behind Debian's proxies.

Nobody gets an answer that is not his, memory stays flat, and other callers hardly notice.

Stands on this rung because it measures, and this one has the machine to itself. Everything is on the loopback.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load_config
from gateway.keys import Keys
from gateway.wiring import opened_store, prepare_database
from tests.contract.test_serve import Gateway
from tests.fakes import direct
from tests.netns import stranger
from tests.netns.fronts import FRONTS, missing, standing

GOOD, BAD = "127.0.0.2", "127.0.0.9"  # where the key works from; where strangers are
ATTEMPTS = 1250  # on each of four fronts
QUIET_SECONDS = 3.0
ATTACK_SECONDS = 60
NOISE_SECONDS = 0.010  # a p99 of less says more about this machine than about the gateway
FLAT_KB = 16 * 1024
FLOOD_BYTES = 60 << 20
TRAILERS = b"X-Forwarded-For: 127.0.0.2\r\n" * 2000


class Target(Gateway):
    """A gateway that trusts proxies on 127.0.0.1, with four accounts and a key for GOOD."""

    pid = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with open(self.config, "a") as config:
            config.write('trusted_proxies = ["127.0.0.1"]\n')

    async def register(self) -> None:
        config = load_config(self.config)
        await prepare_database(config)
        async with opened_store(config) as store:
            await direct.add_node(store, "local", self.target)
            self.access_hash = (await Keys(store).add("test", [GOOD])).reveal()

    def memory_kb(self) -> int:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1])


class Customer:
    """Calls for one account over and over on kept connections, and looks at whether the answer is the right one."""

    def __init__(self, access_hash: str, port: int, name: str) -> None:
        self._cookie = {"cookie": f"access_hash={access_hash}"}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10, source_address=(GOOD, 0))
        self._name = name

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        kind = {"content-type": "application/x-www-form-urlencoded"} if body else {}
        self._connection.request(method, f"/api/v1/{path}", body, {**self._cookie, **kind})
        return json.loads(self._connection.getresponse().read())

    def look(self, into: list[float]) -> None:
        started = time.perf_counter()
        answer = self.ask("GET", f"account/{self._name}")
        into.append(time.perf_counter() - started)
        assert answer["msg"]["name"] == self._name, answer

    def close(self) -> None:
        self._connection.close()


@contextmanager
def target(folder: Path, tls: bool = False) -> Iterator[Target]:
    gateway = Target(folder)
    if tls:
        gateway.switch_tls_on()
    asyncio.run(gateway.register())
    agent = subprocess.Popen([sys.executable, "-m", "tests.fakes.agent_server", gateway.target])
    try:
        with gateway.process() as process:
            gateway.pid = process.pid
            yield gateway
    finally:
        agent.terminate()
        agent.wait()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with target(tmp_path_factory.mktemp("attacked")) as gateway:
        owner = Customer(gateway.access_hash, gateway.port, "")
        assert owner.ask("POST", "wireguard", "name=s1")["error"] == ""
        for number in range(4):
            assert owner.ask("POST", "account", f"wg_name=s1&name=peer_{number}")["error"] == ""
        owner.close()
        yield gateway


class Customers:
    """Two of them, on threads of their own, until they are told to stop."""

    def __init__(self, gateway: Target, port: int) -> None:
        self.seconds: list[float] = []
        self._stop = threading.Event()
        self._wrong: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(gateway, port, f"peer_{n}")) for n in (2, 3)]

    def __enter__(self) -> Customers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert self._wrong == [], "a customer got an answer that is not his, or none"

    def _run(self, gateway: Target, port: int, name: str) -> None:
        customer = Customer(gateway.access_hash, port, name)
        try:
            while not self._stop.wait(0.005):
                customer.look(self.seconds)
        except Exception as error:
            self._wrong.append(error)
        finally:
            customer.close()

    def p99(self) -> float:
        return sorted(self.seconds)[len(self.seconds) * 99 // 100]


def attacked(gateway: Target, port: int) -> dict[str, Any]:
    """What the stranger says of his attack: a process of his own."""
    command = [sys.executable, "-m", "tests.netns.stranger", "--port", str(port), "--count", str(ATTEMPTS)]
    command += ["--stolen", gateway.access_hash, "--allowed", GOOD]
    found = subprocess.run(command, capture_output=True, text=True, timeout=ATTACK_SECONDS, check=True)
    report: dict[str, Any] = json.loads(found.stdout)
    return report


@pytest.mark.parametrize("front", FRONTS)
def test_nobody_gets_an_answer_that_is_not_his(gateway: Target, front: str, tmp_path: Path) -> None:
    if missing(front):
        pytest.skip(f"{front} is missing")
    with standing(front, gateway.port, tmp_path) as port:
        with Customers(gateway, port) as before:
            time.sleep(QUIET_SECONDS)
        log, memory = len(gateway.log()), gateway.memory_kb()
        with Customers(gateway, port) as during:
            report = attacked(gateway, port)
        told = gateway.log()[log:]
    grown = gateway.memory_kb() - memory
    print(
        f"{front}: {report['attempts']} attempts, {report['answered']} answered, {len(report['foreign'])} foreign; "
        f"p99 {before.p99() * 1000:.1f} ms, {during.p99() * 1000:.1f} ms under attack; memory {grown:+d} kB"
    )
    assert report["foreign"] == []
    assert report["attempts"] == ATTEMPTS and report["answered"] > ATTEMPTS * 0.9
    assert f"path={stranger.HIDDEN_PATH}" not in told, "what was a body has been served as a request"
    assert "Traceback" not in told and "internal-error" not in told
    assert grown < FLAT_KB
    assert during.p99() < 2 * max(before.p99(), NOISE_SECONDS)


@pytest.mark.parametrize("front", FRONTS)
def test_trailers_without_an_end_cost_no_memory(gateway: Target, front: str, tmp_path: Path) -> None:
    if missing(front):
        pytest.skip(f"{front} is missing")
    memory, sent = gateway.memory_kb(), 0
    with (
        standing(front, gateway.port, tmp_path) as port,
        socket.create_connection(("127.0.0.1", port), 10, source_address=(BAD, 0)) as connection,
    ):
        with suppress(OSError):
            connection.sendall(b"POST /api/v1/account HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
            while sent < FLOOD_BYTES:
                connection.sendall(TRAILERS)
                sent += len(TRAILERS)
        grown = gateway.memory_kb() - memory
    print(f"{front}: {sent >> 10} kB of trailers, memory {grown:+d} kB")
    assert grown < FLAT_KB
    if front == "direct":  # a proxy may throw away by itself whatever comes
        assert sent < FLOOD_BYTES, "it was ended"


def flood(port: int, count: int, rooms: ExitStack) -> None:
    for _ in range(count):
        rooms.enter_context(socket.create_connection(("127.0.0.1", port), 10, source_address=(BAD, 0)))


def test_idle_connections_of_one_address_shut_nobody_out(gateway: Target) -> None:
    with ExitStack() as rooms, Customers(gateway, gateway.port) as customers:
        flood(gateway.port, 1000, rooms)
        time.sleep(1)
    assert len(customers.seconds) > 20
    assert gateway.log().count("event=connections-refused") == 1, "one line, whatever comes"


def test_handshakes_that_never_begin_shut_nobody_out(tmp_path: Path) -> None:
    with target(tmp_path, tls=True) as gateway, ExitStack() as rooms:
        flood(gateway.port, 1000, rooms)
        for _ in range(20):
            connection = http.client.HTTPSConnection(
                "127.0.0.1", gateway.port, timeout=5, source_address=(GOOD, 0), context=gateway.tls
            )
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"ok"
            connection.close()
        descriptors = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
        assert descriptors < 200, "the bound for one address holds before the handshake"
        assert gateway.log().count("event=connections-refused") == 1
