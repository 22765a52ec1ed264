"""gateway/http/metrics.py: /metrics, what is in it and who may read it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import ip_network

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.errors import DatabaseUnavailable
from gateway.http.app import HttpSettings, build_app
from gateway.http.services import LOOPBACK
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import CLIENT, PUBLIC_URL, Api, _client

pytestmark = pytest.mark.anyio

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def series(text: str) -> Series:
    """Every sample; one that comes twice is an error."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def of(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return f"wirelane_{name}", tuple(sorted(labels.items()))


async def read(
    api: Api, headers: Mapping[str, str] = {}, address: str = "127.0.0.1", **settings: object
) -> httpx.Response:
    app = build_app(api.services, HttpSettings(PUBLIC_URL, **settings))  # type: ignore[arg-type]
    async with _client(app, {}, address) as client:
        return await client.get("/metrics", headers=headers)


async def scraped(api: Api) -> Series:
    answer = await api.serve(metrics_networks=(ip_network(CLIENT),)).http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return series(answer.text)


async def test_a_node_as_status_shows_it(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="anna")
    agent = api.product.agents[NODE]
    agent.refuse[next(iter(agent.accounts))] = "no room"
    async with asyncio.timeout(10):
        while (found := await scraped(api))[of("node_failed_accounts", node=NODE)] != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert found[of("node_reachable", node=NODE)] == 1
    states = {state: found[of("node_state", node=NODE, state=state)] for state in ("OK", "pending", "failed", "away")}
    assert states == {"OK": 0, "pending": 0, "failed": 1, "away": 0}
    revisions = ("desired_revision", "applied_revision")
    assert {found[of(f"node_{name}", node=NODE)] for name in revisions} == {3}
    assert found[of("node_pending_changes", node=NODE)] == 0
    assert found[of("node_info", node=NODE, version="fake", wireguard="userspace", marks="iptables")] == 1
    assert (found[of("node_accounts", node=NODE)], found[of("node_servers", node=NODE)]) == (1, 1)
    assert (found[of("accounts")], found[of("servers")], found[of("nodes")]) == (1, 1, 1)
    assert found[of("node_counted_bytes_total", node=NODE, direction="download")] == 0
    assert found["process_resident_memory_bytes", ()] > 1_000_000


async def test_a_node_that_is_away_has_its_cause_and_no_numbers_that_nobody_knows(api: Api) -> None:
    api.product.agents[NODE].away = True
    async with asyncio.timeout(10):
        while (found := await scraped(api))[of("node_reachable", node=NODE)]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert found[of("node_unreachable", node=NODE, cause="no-answer")] == 1
    assert found[of("node_state", node=NODE, state="away")] == 1
    assert found[of("node_desired_revision", node=NODE)] == 2
    assert not [key for key in found if key[0] in ("wirelane_node_applied_revision", "wirelane_node_accounts")]


async def test_calls_are_counted_by_template_and_by_what_their_errors_are(api: Api) -> None:
    door = api.serve(metrics_networks=(ip_network(CLIENT),))
    await door.msg("GET", "/account")
    assert await door.error("GET", "/account/secret_customer") == "Account not found"
    await door.http.request("PROPFIND", "/api/v1/account")
    await door.http.get("/nowhere/secret_customer")
    stranger = _client(build_app(api.services, HttpSettings(PUBLIC_URL)), {})
    assert (await stranger.get("/api/v1/account")).status_code == 200  # as v1 clients expect
    text = (await door.http.get("/metrics")).text
    found = series(text)
    for method, path, status in (
        ("GET", "/api/v1/account", 200),
        ("GET", "/api/v1/account/{name}", 404),  # answered with 200
        ("other", "/api/v1/account", 405),
        ("GET", "-", 404),
    ):
        assert found[of("http_requests_total", method=method, path=path, status=str(status))] == 1, (path, status)
        assert found[of("http_request_duration_seconds_count", method=method, path=path)] >= 1
    assert "secret_customer" not in text


async def test_a_refused_call_counts_as_401(api: Api) -> None:
    door = api.serve(metrics_networks=(ip_network(CLIENT),))
    door.http.cookies.clear()
    await door.error("GET", "/account")
    found = series((await door.http.get("/metrics")).text)
    assert found[of("http_requests_total", method="GET", path="/api/v1/account", status="401")] == 1


@pytest.mark.parametrize(
    ("address", "headers", "networks", "is_let_in"),
    [
        ("127.0.0.1", {}, LOOPBACK, True),
        ("127.8.0.1", {}, LOOPBACK, True),
        ("::1", {}, LOOPBACK, True),
        ("::ffff:127.0.0.1", {}, LOOPBACK, True),
        ("198.51.100.7", {}, LOOPBACK, False),
        ("198.51.100.7", {}, (ip_network("198.51.100.0/24"),), True),
        ("127.0.0.1", {}, (), False),
        # A proxy on this box hands on what strangers ask for.
        ("127.0.0.1", {"X-Forwarded-For": "198.51.100.7"}, LOOPBACK, False),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, LOOPBACK, False),
        ("127.0.0.1", {"Forwarded": "for=127.0.0.1"}, LOOPBACK, False),
        ("127.0.0.1", {"Via": "1.1 proxy"}, LOOPBACK, False),
        ("127.0.0.1", {"X-Real-IP": "127.0.0.1"}, LOOPBACK, False),
    ],
)
@pytest.mark.parametrize("trusted", [(), (ip_network("127.0.0.1"),)])
async def test_it_is_open_to_its_networks_without_a_proxy_in_between(
    api: Api, address: str, headers: dict[str, str], networks: object, is_let_in: bool, trusted: object
) -> None:
    answer = await read(api, headers, address, metrics_networks=networks, trusted_proxies=trusted)
    assert answer.status_code == (200 if is_let_in else 401)
    assert ("wirelane_" in answer.text) == is_let_in
    if not is_let_in:
        assert answer.json() == {"error": "Not authorized", "msg": "", "status": "error"}


async def test_a_key_opens_it_from_anywhere(api: Api) -> None:
    answer = await api.http.get("/metrics")  # from CLIENT, which is in no network of metrics
    assert (answer.status_code, "wirelane_nodes 1.0" in answer.text) == (200, True)
    assert (await api.http.post("/metrics")).status_code == 405
    assert (await api.http.head("/metrics")).text == ""


async def test_without_a_database_it_says_just_that(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("gone")

    monkeypatch.setattr(api.product.system, "fleet", away)
    found = await scraped(api)
    assert found[of("database_available")] == 0
    assert not [name for name, _ in found if name.startswith("wirelane_node")]


async def test_what_the_database_did_not_do_is_counted_by_reason(api: Api) -> None:
    async def broken(_: object) -> None:
        raise OSError(28, "No space left on device")

    before = await scraped(api)
    assert before[of("database_errors_total", reason="full")] == 0
    with pytest.raises(DatabaseUnavailable):
        await api.product.store.read(broken)
    found = await scraped(api)
    assert found[of("database_errors_total", reason="full")] == 1
    assert found[of("database_available")] == 1
