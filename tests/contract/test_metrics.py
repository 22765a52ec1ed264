"""/metrics of a real gateway process and of a real agent (over a kernel with a memory), as Prometheus reads them."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent import metrics
from agent.errors import ConfigError
from agent.metrics import MetricsServer, bound
from tests.contract.test_serve import Gateway, until_ok
from tests.fakes.agent_core import AgentCore, running_core

pytestmark = pytest.mark.anyio

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
SCRAPE_SECONDS = 0.25  # of a loaded machine; a scrape takes a hundredth of it


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read(port: int, path: str = "/metrics", headers: dict[str, str] | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def series(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def of(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"wirelane_{name}", tuple(sorted(labels.items()))


@asynccontextmanager
async def scraped_agent(core: AgentCore) -> AsyncIterator[int]:
    """The agent's own /metrics: the port."""
    port = free_port()
    with closing(bound(f"127.0.0.1:{port}")) as listening:
        serving = asyncio.create_task(MetricsServer(core.reconciler.status, "test").serve(listening))
        try:
            yield port
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def sell(gateway: Gateway, count: int) -> list[str]:
    """Accounts with names to look for."""
    names = [f"customer-{number:05}" for number in range(count)]
    table = gateway.folder / "accounts.csv"
    table.write_text("name,wg_name,username\n" + "".join(f"{name},s1,user-{name}\n" for name in names))
    done = await asyncio.to_thread(gateway.run, "account", "import", str(table))
    assert done.returncode == 0, done.stderr
    return names


async def until_held(core: AgentCore, accounts: int) -> None:
    async with asyncio.timeout(60):
        while (it := core.reconciler.status()).accounts < accounts or it.applied_revision < it.revision:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_scraped(port: int, key: tuple[str, tuple[tuple[str, str], ...]], value: float) -> str:
    async with asyncio.timeout(20):
        while True:
            text = await asyncio.to_thread(read, port)
            if series(text).get(key) == value:
                return text
            await asyncio.sleep(0.1)


async def test_both_tell_the_same_of_a_node_and_nothing_of_its_customers(gateway: Gateway, tmp_path: Path) -> None:
    async with running_core(tmp_path / "agent.sock", tmp_path / "agent.db") as core, scraped_agent(core) as port:
        await gateway.register()
        with gateway.process():
            await until_ok(gateway)
            await asyncio.to_thread(gateway.call, "/api/v1/wireguard", {"name": "s1"})
            names = await sell(gateway, 100)
            await until_held(core, 100)
            accounts = await asyncio.to_thread(gateway.call, "/api/v1/account")
            core.now = time.time() + 172_800  # its clock is two days ahead, and stands still here
            core.kernel.pass_traffic(accounts[0]["allowed_IPs"].split("/")[0], 1_000, 2_000)
            await core.reconciler.sample()
            await asyncio.to_thread(gateway.call, f"/api/v1/account/{names[0]}")
            counted = of("node_counted_bytes_total", node="local", direction="upload")
            of_gateway = await until_scraped(gateway.port, counted, 2_000)
            of_agent = await asyncio.to_thread(read, port)
            servers = await asyncio.to_thread(gateway.call, "/api/v1/wireguard")
    found, agent = series(of_gateway), series(of_agent)
    for name in ("applied_revision", "accounts", "servers", "failed_accounts", "drift_objects_total"):
        assert found[of(f"node_{name}", node="local")] == agent[of(f"agent_{name}")], name
    assert found[of("node_desired_revision", node="local")] == agent[of("agent_revision")]
    assert found[of("node_state", node="local", state="OK")] == 1
    assert agent[of("agent_counted_bytes_total", direction="download")] == 1_000
    assert agent[of("agent_info", version="test", node="local", wireguard="userspace", marks="iptables")] == 1
    assert found[of("node_clock_offset_seconds", node="local")] == pytest.approx(172_800, abs=60)
    assert found[of("node_sample_age_seconds", node="local")] == pytest.approx(0, abs=5)
    assert agent[of("agent_sample_age_seconds")] == pytest.approx(0, abs=5)
    assert 0 <= found[of("node_collection_age_seconds", node="local")] < 60
    assert found[of("http_requests_total", method="GET", path="/api/v1/account/{name}", status="200")] == 1
    secrets = [gateway.access_hash, *names, *(server["private_key"] for server in servers.values())]
    secrets += [str(account[key]) for account in accounts for key in ("username", "private_key", "password")]
    secrets += [account["allowed_IPs"].split("/")[0] for account in accounts]
    for secret in secrets:
        assert secret and secret not in of_gateway and secret not in of_agent, secret


async def test_a_scrape_of_ten_thousand_accounts_is_as_large_as_one_of_none(gateway: Gateway, tmp_path: Path) -> None:
    async with running_core(tmp_path / "agent.sock", tmp_path / "agent.db") as core, scraped_agent(core) as port:
        await gateway.register()
        with gateway.process():
            await until_ok(gateway)
            await asyncio.to_thread(gateway.call, "/api/v1/wireguard", {"name": "s1", "address": "10.0.0.1/16"})
            await until_scraped(gateway.port, of("node_servers", node="local"), 1)
            before = [series(await asyncio.to_thread(read, each)) for each in (gateway.port, port)]
            await sell(gateway, 10_000)
            await until_held(core, 10_000)
            await until_scraped(gateway.port, of("node_accounts", node="local"), 10_000)
            for each, empty in zip((gateway.port, port), before, strict=True):
                took = []
                for _ in range(5):
                    started = time.monotonic()
                    text = await asyncio.to_thread(read, each)
                    took.append(time.monotonic() - started)
                full = series(text)
                new = {key for key in full.keys() - empty.keys() if not key[0].startswith("wirelane_http_")}
                assert not new
                assert min(took) < SCRAPE_SECONDS, took


async def test_an_outsider_gets_401_and_a_key_lets_in(gateway: Gateway) -> None:
    with gateway.config.open("a") as config:
        config.write('metrics_networks = ["127.0.0.77"]\n')
    await gateway.register()
    with gateway.process():
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            await asyncio.to_thread(read, gateway.port)
        assert "wirelane" not in refused.value.read().decode()
        with_key = {"cookie": f"access_hash={gateway.access_hash}"}
        assert "wirelane_nodes 1.0" in await asyncio.to_thread(read, gateway.port, headers=with_key)
    assert "event=refused method=GET path=/metrics status=401" in gateway.log()


async def test_the_agents_door_knows_one_path_and_one_method(tmp_path: Path) -> None:
    async with running_core(tmp_path / "agent.sock", tmp_path / "agent.db") as core, scraped_agent(core) as port:
        for text, answer in (
            (b"GET /metrics?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200"),
            (b"GET /metrics HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 404"),
            (b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 405"),
            (b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 405"),
            (b"nonsense\r\n\r\n", b""),
            (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20_000, b""),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(text)
            try:
                told = await asyncio.wait_for(reader.read(), 5)
            except ConnectionResetError:  # before all of what it sent was read
                told = b""
            writer.close()
            assert told.startswith(answer) and bool(told) == bool(answer), (text[:40], told[:40])


async def test_who_holds_its_connections_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SECONDS", 1.0)
    async with running_core(tmp_path / "agent.sock", tmp_path / "agent.db") as core, scraped_agent(core) as port:
        lines = [await asyncio.open_connection("127.0.0.1", port) for _ in range(metrics.CONNECTIONS)]
        await asyncio.sleep(0.2)
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset
            await asyncio.to_thread(read, port)  # there is no room
        started = time.monotonic()
        for reader, writer in lines:
            writer.write(b"GET /metrics HTTP/1.1\r\n")  # and never the rest
            with suppress(ConnectionResetError):  # as well as an end: it was cut before this came
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert time.monotonic() - started < 3
        assert "wirelane_agent_info" in await asyncio.to_thread(read, port)


async def test_an_address_that_is_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics: 127.0.0.1:{port}: Address already in use$"):
            bound(f"127.0.0.1:{port}")
