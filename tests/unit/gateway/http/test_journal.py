"""What the operator reads: who was refused and why, and one line for each change."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_network

import httpx
import pytest

from gateway.errors import DatabaseUnavailable
from gateway.http import refusals, repeats
from gateway.http.app import HttpSettings, build_app
from gateway.http.caller import Caller, read_hop
from gateway.http.pages import one_time_link
from gateway.http.refusals import Refusal, Refusals
from gateway.http.repeats import MOST_SUBJECTS
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import CLIENT, PUBLIC_URL, Api, _client

pytestmark = pytest.mark.anyio

STRANGER = "203.0.113.66"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "gateway.http")
    return caplog


def shown(lines: pytest.LogCaptureFixture) -> list[str]:
    """Without how long it took."""
    found = [record.getMessage() for record in lines.records if record.name == "gateway.http"]
    return [f"{line.split(' ms=')[0]} {line.split(' ms=')[1].split(' ', 1)[1]}" for line in found if " ms=" in line]


# -- refusals -----------------------------------------------------------------------------------------------------


async def test_refusal_says_who_with_which_key_and_why(api: Api, lines: pytest.LogCaptureFixture) -> None:
    app = build_app(api.services, HttpSettings(PUBLIC_URL))
    right = dict(api.http.cookies)["access_hash"]
    revoked = (await api.product.keys.add("old", ["0.0.0.0/0"])).reveal()
    api.product.keys._good_until = 0
    assert (await api.http.get("/api/v1/system/status")).status_code == 200  # now it is known
    await api.product.keys.revoke("old")
    api.product.keys._good_until = 0
    lines.clear()
    for sent, path in (
        ({}, "/account"),
        ({"access_hash": "short\nevent=x"}, "/account"),
        ({"access_hash": "0" * 80}, "/account/secret"),
        ({"access_hash": right}, "/account/peer_1/dump"),
        ({"access_hash": revoked}, "/nothing"),
    ):
        async with _client(app, sent, STRANGER) as client:
            assert (await client.request("DELETE", f"/api/v1{path}")).json()["error"] == "Not authorized"
    start = "event=refused method=DELETE path="
    assert shown(lines) == [
        f"{start}/api/v1/account status=200 client={STRANGER} key=- reason=no-cookie",
        f"{start}/api/v1/account status=200 client={STRANGER} key=- reason=malformed-key",
        f"{start}/api/v1/account/{{name}} status=200 client={STRANGER} key=- reason=unknown-key",
        f"{start}/api/v1/account/{{name}}/dump status=200 client={STRANGER} key=tests reason=wrong-address",
        f"{start}- status=200 client={STRANGER} key=old reason=revoked-key",
    ]


async def test_proxy_that_names_nobody_is_told_to_the_operator(api: Api, lines: pytest.LogCaptureFixture) -> None:
    settings = HttpSettings(PUBLIC_URL, trusted_proxies=(ip_network("10.9.9.0/24"),))
    wrong = "the trusted proxy 10.9.9.1 sent an X-Forwarded-For that names no address"
    for headers, why in (
        ({}, "the trusted proxy 10.9.9.1 sent no X-Forwarded-For"),
        ({"X-Forwarded-For": "evil=\tx"}, f"{wrong}: 'evil=\\\\tx'"),
        ({"X-Forwarded-For": "9" * 1000}, f"{wrong}: '{'9' * 60}'"),
    ):
        lines.clear()
        async with _client(build_app(api.services, settings), dict(api.http.cookies), "10.9.9.1") as client:
            assert (await client.get("/api/v1/account", headers=headers)).json()["error"] == "Not authorized"
        (line,) = shown(lines)
        assert line.startswith("event=refused ") and "client=- key=- reason=no-address detail=" in line and why in line


async def test_wrong_keys_are_slowed_down_and_counted_and_right_ones_are_not(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "WINDOW_SECONDS", 1.0)
    monkeypatch.setattr(repeats, "WINDOW_SECONDS", 1.0)
    app = build_app(api.services, HttpSettings(PUBLIC_URL))

    async def tried(access_hash: str, address: str) -> float:
        began = time.monotonic()
        async with _client(app, {"access_hash": access_hash}, address) as client:
            await client.get("/api/v1/account")
        return time.monotonic() - began

    wrong = [await tried(f"{number:080x}", CLIENT) for number in range(6)]
    assert max(wrong[:3]) < 0.09 and 0.09 < wrong[3] < wrong[4] < wrong[5]
    assert await tried(dict(api.http.cookies)["access_hash"], CLIENT) < 0.09
    assert await tried("0" * 80, STRANGER) < 0.09
    await asyncio.sleep(0.8)
    texts = [record.getMessage() for record in lines.records]
    assert sum("event=refused " in text and CLIENT in text for text in texts) == 1
    assert f"event=refused-again client={CLIENT} key=- reason=unknown-key count=5 seconds=1" in texts
    assert not any("refused-again" in text and STRANGER in text for text in texts)


@pytest.mark.parametrize("path", ["/api/v1/account", "/nothing", f"/otl/{'0' * 80}"])
async def test_whatever_gets_nothing_without_a_key_is_slowed_down(api: Api, path: str) -> None:
    async with _client(build_app(api.services, HttpSettings(PUBLIC_URL)), {}, STRANGER) as client:
        seconds = []
        for _ in range(5):
            began = time.monotonic()
            await client.get(path)
            seconds.append(time.monotonic() - began)
        assert min(seconds[:3]) < 0.09 < seconds[3] < seconds[4]
        began = time.monotonic()
        assert (await client.get("/api/v1/openapi.json")).status_code == 200
        assert time.monotonic() - began < 1, "what is open to all does not wait"


async def test_one_address_has_so_many_requests_without_a_key_in_work_and_no_more(api: Api) -> None:
    most, now = 0, 0

    async def ping() -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1

    app = build_app(dataclasses.replace(api.services, ping=ping), HttpSettings(PUBLIC_URL))
    async with _client(app, {}, STRANGER) as client:
        answers = await asyncio.gather(*(client.get("/healthz") for _ in range(refusals.MOST_WAITING + 20)))
        assert most == refusals.AT_ONCE
        assert sorted(answer.status_code for answer in answers)[-20:] == [429] * 20
        assert answers[-1].headers["connection"] == "close"
        assert (await client.get("/healthz")).status_code == 200, "its places are free again"


async def test_a_database_that_is_away_is_said_once(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable("no route to host")

    monkeypatch.setattr(api.services.keys, "judged", away)
    for _ in range(20):
        await api.http.get("/api/v1/account")
    assert sum("event=database-unavailable " in record.getMessage() for record in lines.records) == 1


async def test_callers_without_number_need_no_memory_without_bound(lines: pytest.LogCaptureFixture) -> None:
    table = Refusals()
    firsts = [table.is_first(Refusal(Caller(read_hop(f"2001:db8:{n:x}::1")), "unknown-key")) for n in range(3000)]
    assert firsts == [True] * MOST_SUBJECTS + [False] * (3000 - MOST_SUBJECTS)
    assert len(table._repeats._counts) == MOST_SUBJECTS + 1
    await asyncio.gather(*(table.wait(Caller(read_hop(f"2001:db8:{n:x}::1"))) for n in range(3000)))
    assert len(table._tries) == MOST_SUBJECTS
    began = time.monotonic()
    await asyncio.gather(*(table.wait(Caller(read_hop(f"2001:db8::{n:x}"))) for n in range(1, 9)))
    assert 1.5 < time.monotonic() - began < 4, "one /64 is one caller, and no wait is longer than two seconds"


async def test_what_a_stranger_can_ask_for_without_end_is_counted(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repeats, "WINDOW_SECONDS", 8)  # which all that is asked has to fit into
    monkeypatch.setattr(refusals, "FREE_TRIES", 1000)
    api.http.cookies.clear()
    lines.clear()
    asked = [
        ("GET", "/x"),
        ("GET", "/x/y"),
        ("GET", "/healthz"),
        ("POST", f"/otl/{'0' * 80}"),
        ("POST", "/otl/nonsense"),
    ]
    for n in range(5):
        for method, path in (*asked, (f"ODD{n}", "/x")):
            await api.http.request(method, path)
    texts = [record.getMessage() for record in lines.records]
    assert len([text for text in texts if "event=request " in text]) == len(texts) == 2, "one for each path"
    assert not any("event=change" in text for text in texts), "nothing was changed"
    await asyncio.sleep(8.2)
    texts = [record.getMessage() for record in lines.records]
    again = [text for text in texts if text.startswith("event=request-again path=/otl/")]
    assert len(again) == 1 and "status=404" in again[0] and "count=9 seconds=" in again[0]


async def test_neighbours_share_a_count_and_a_broken_database_makes_no_flood(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(api.product.one_time_links, "valid", away)
    app = build_app(replace(api.services, ping=away), HttpSettings(PUBLIC_URL))
    lines.clear()
    for n in range(1, 10):
        async with _client(app, {}, f"2001:db8:0:7::{n}") as client:
            assert (await client.get("/x")).status_code == 404
            assert (await client.get("/api/v1/account")).status_code == 200
            assert (await client.get("/healthz")).status_code == 503
            assert (await client.get(f"/otl/{'0' * 80}")).status_code == 503
    events = [record.getMessage().split()[0] for record in lines.records if record.name == "gateway.http"]
    assert events == [
        "event=request",
        "event=refused",
        *("event=unhealthy", "event=request"),
        *("event=link-failed", "event=request"),
    ]


async def test_who_opens_and_hangs_up_again_and_again_writes_one_line(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_: object) -> bool:
        return True

    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    path = httpx.URL(await api.msg("GET", "/account/one/otl")).path
    api.http.cookies.clear()
    lines.clear()
    with monkeypatch.context() as patch:
        patch.setattr(one_time_link, "_hung_up", gone)
        for _ in range(5):
            with suppress(AssertionError):  # httpx misses the answer
                await api.http.post(path)
    assert (await api.http.post(path)).status_code == 200
    outcomes = [line.split(" outcome=")[1] for line in shown(lines)]
    assert outcomes == [
        "'nobody was there to take the page: the link can be opened again' pending=-",
        "'success' pending=-",
    ]


# -- changes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settle_seconds", [0.5])
async def test_each_change_is_one_line(api: Api, lines: pytest.LogCaptureFixture) -> None:
    lines.clear()
    await api.msg("POST", "/account", wg_name="Default_1", password="hidden")
    await api.msg("POST", "/account?name=two", wg_name="Default_1")
    await api.error("POST", "/account", wg_name="nowhere", name="three")
    await api.error("POST", "/account", wg_name="Default_1", name="a b\n'")
    await api.msg("PUT", "/account/peer_1", b_download="5")
    await api.error("PUT", "/account/peer_1", Status="disable")
    await api.error("PUT", "/account/no%0Aone", status="disable")
    await api.msg("POST", "/wireguard")
    await api.msg("PUT", "/wireguard/Default_1/set_bandwidth")
    api.product.agents[NODE].away = True
    await api.msg("DELETE", "/account/two")
    one = f"client={CLIENT} key=tests"
    right = "outcome='success' pending=-"
    spelling = "Wrong field 'Status' (its name is status, with one value)"
    name = "/api/v1/account/{name}"
    assert shown(lines) == [
        f"event=change method=POST path=/api/v1/account status=200 {one} account=peer_1 {right}",
        f"event=change method=POST path=/api/v1/account status=200 {one} account=two {right}",
        f"event=change method=POST path=/api/v1/account status=200 {one} account=three "
        "outcome='Wireguard server not valid' pending=-",
        f"event=change method=POST path=/api/v1/account status=200 {one} account=a%20b%0A%27 "
        """outcome="Wrong name (only letters, numbers and '_', '-')" pending=-""",
        f"event=change method=PUT path={name} status=200 {one} account=peer_1 {right}",
        f'event=change method=PUT path={name} status=200 {one} account=peer_1 outcome="{spelling}" pending=-',
        f"event=change method=PUT path={name} status=200 {one} account=no%0Aone outcome='Account not found' pending=-",
        f"event=change method=POST path=/api/v1/wireguard status=200 {one} server=Default_2 {right}",
        "event=change method=PUT path=/api/v1/wireguard/{name}/set_bandwidth status=200 "
        f"{one} server=Default_1 {right}",
        f"event=change method=DELETE path={name} status=200 {one} account=two outcome='success' pending={NODE}",
    ]


async def test_bug_in_a_change_is_in_its_line_too(
    api: Api, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(api.product.accounts, "delete", broken)
    answer = await api.http.delete("/api/v1/account/peer_1")
    outcome = f"outcome='internal error {answer.headers['x-wirelane-error']}'"
    assert outcome in shown(lines)[-1]
