"""The gateway as a process: a fresh start, systemd's protocol, kill -9, a polite end. A fake agent on a real socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.config import load_config
from gateway.keys import Keys
from gateway.wiring import opened_store, prepare_database
from tests.fakes import direct
from tests.fakes.agent_server import serving
from tests.fakes.agents import FakeAgent

START_SECONDS = 40.0  # a loaded machine takes its time to import


class Gateway:
    """One gateway in a folder: its configuration, its process, and a client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gateway.toml"
        self.target = f"unix:{folder}/agent.sock"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.config.write_text(
            f'database = "sqlite:///{folder}/gateway.db"\nkey_file = "{folder}/secret.key"\n'
            f'listen = "127.0.0.1:{self.port}"\nendpoint = "vpn.example.com"\n'
        )
        self.access_hash = ""
        self.pending: str | None = None  # header of the last answer
        self.tls: ssl.SSLContext | None = None

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "gateway", "--config", str(self.config), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=START_SECONDS, check=False
        )

    @contextmanager
    def process(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """A running gateway; killed at the end of the block unless it has ended."""
        with open(self.folder / "gateway.log", "ab") as log:
            process = subprocess.Popen(self.command("serve"), stderr=log, env={**os.environ, **environment})
        try:
            self.wait_for(process)
            yield process
        finally:
            process.kill()
            process.wait()

    def wait_for(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if self.call("/healthz", raw=True) == "ok":
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"the gateway does not answer: {self.log()}")

    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def call(self, path: str, form: dict[str, str] | None = None, *, raw: bool = False) -> Any:
        body = urllib.parse.urlencode(form).encode() if form is not None else None
        request = urllib.request.Request(
            f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{path}",
            body,
            {"cookie": f"access_hash={self.access_hash}"},
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.tls)
        )
        try:
            with opener.open(request, timeout=20) as response:
                text = response.read().decode()
                self.pending = response.headers["X-Wirelane-Pending"]
        except http.client.HTTPException as error:  # it was killed in the middle of an answer
            raise ConnectionResetError(str(error)) from error
        return text if raw else json.loads(text)["msg"]

    async def register(self) -> None:
        """A node and an access key, as the command line adds them."""
        config = load_config(self.config)
        await prepare_database(config)
        async with opened_store(config) as store:
            await direct.add_node(store, "local", self.target)
            self.access_hash = (await Keys(store).add("test", ["127.0.0.1"])).reveal()

    def switch_tls_on(self) -> None:
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        command = ["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        with open(self.config, "a") as config:
            config.write(f'tls_certificate = "{certificate}"\ntls_key = "{key}"\n')
        self.tls = ssl.create_default_context(cafile=str(certificate))


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


@asynccontextmanager
async def with_agent(gateway: Gateway) -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    async with serving(agent, gateway.target):
        yield agent


async def until_ok(gateway: Gateway, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while (await asyncio.to_thread(gateway.call, "/api/v1/system/status"))["status"] != "OK":  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.anyio
async def test_a_fresh_start_needs_no_other_command_and_an_account_reaches_the_agent(gateway: Gateway) -> None:
    async with with_agent(gateway) as agent:
        with gateway.process():
            await gateway.register()
            await until_ok(gateway)
            await asyncio.to_thread(gateway.call, "/api/v1/wireguard", {"name": "s1"})
            account = await asyncio.to_thread(gateway.call, "/api/v1/account", {"wg_name": "s1", "b_download": "12"})
            assert gateway.pending is None
            assert [(a.name, a.download) for a in agent.accounts.values()] == [(account["name"], 12)]
            assert (await asyncio.to_thread(gateway.call, "/api/v1/system/status"))["status"] == "OK"
    assert (gateway.folder / "secret.key").stat().st_mode & 0o777 == 0o600
    assert gateway.access_hash not in gateway.log()


@pytest.mark.anyio
async def test_what_was_acknowledged_survives_kill_9(gateway: Gateway) -> None:
    async with with_agent(gateway) as agent:
        await gateway.register()
        with gateway.process() as process:
            await until_ok(gateway)
            await asyncio.to_thread(gateway.call, "/api/v1/wireguard", {"name": "s1"})
            names: set[str] = set()

            async def create() -> None:
                while True:
                    try:
                        account = await asyncio.to_thread(gateway.call, "/api/v1/account", {"wg_name": "s1"})
                    except OSError:
                        return
                    names.add(account["name"])

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(create())
                while len(names) < 10:  # noqa: ASYNC110 - as many as it likes
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGKILL)
        with gateway.process():
            await until_ok(gateway)
            kept = {account["name"] for account in await asyncio.to_thread(gateway.call, "/api/v1/account")}
            assert names <= kept
            assert {account.name for account in agent.accounts.values()} == kept


@pytest.mark.anyio
async def test_sigterm_answers_what_is_under_way_and_then_ends(gateway: Gateway) -> None:
    async with with_agent(gateway) as agent:
        await gateway.register()
        with gateway.process() as process:
            await until_ok(gateway)
            await asyncio.to_thread(gateway.call, "/api/v1/wireguard", {"name": "s1"})
            process.send_signal(signal.SIGHUP)  # no reason to end
            agent.slow = 1.0
            create = asyncio.create_task(asyncio.to_thread(gateway.call, "/api/v1/account", {"wg_name": "s1"}))
            await asyncio.sleep(0.4)
            process.send_signal(signal.SIGTERM)
            assert (await create)["name"] == "peer_1"
            assert gateway.pending is None
            assert await asyncio.to_thread(process.wait, 10) == 0
    assert "event=stopped" in gateway.log()
    assert "event=advice text='public_url is not set" in gateway.log()
    assert "Traceback" not in gateway.log()


@pytest.mark.anyio
async def test_systemd_is_told_ready_alive_and_stopping(gateway: Gateway) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(gateway.folder / "notify"))
        systemd.settimeout(5)
        with gateway.process(NOTIFY_SOCKET=str(gateway.folder / "notify"), WATCHDOG_USEC="400000") as process:
            told = [systemd.recv(100) for _ in range(4)]
            assert sorted(set(told)) == [b"READY=1", b"WATCHDOG=1"]
            process.send_signal(signal.SIGTERM)
            while told[-1] != b"STOPPING=1":
                told.append(systemd.recv(100))
            assert process.wait(10) == 0


def test_a_port_that_is_taken_is_one_clear_line(gateway: Gateway) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", gateway.port))
        other.listen()
        done = gateway.run("serve")
    assert done.returncode == 2
    assert done.stderr == f"wirelane-gateway: listen: 127.0.0.1:{gateway.port}: Address already in use\n"
    assert not (gateway.folder / "gateway.db").exists()


def test_sqlite_is_for_one_gateway_and_the_command_line_works_beside_it(gateway: Gateway) -> None:
    with gateway.process():
        first = gateway.config
        gateway.config = gateway.folder / "second.toml"
        gateway.config.write_text(first.read_text().replace(f"127.0.0.1:{gateway.port}", f"127.0.0.2:{gateway.port}"))
        done = gateway.run("serve")
        assert done.returncode == 2
        assert done.stderr == (
            f"wirelane-gateway: database: another gateway serves {gateway.folder}/gateway.db; "
            "SQLite is for one, use PostgreSQL for several\n"
        )
        assert gateway.run("node", "list").returncode == 0
        gateway.config = first
    with gateway.process():  # kill -9 of the first one leaves nothing behind
        assert gateway.call("/healthz", raw=True) == "ok"


def test_tls_is_served_from_certificate_files(gateway: Gateway) -> None:
    gateway.switch_tls_on()
    with gateway.process():
        assert gateway.call("/healthz", raw=True) == "ok"
    assert "tls=yes" in gateway.log()
