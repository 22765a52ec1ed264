"""gateway/http/app.py and the layers before it: who is let in, and that every answer is the envelope."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network

import httpx
import pytest

from gateway.errors import DatabaseUnavailable
from gateway.http.app import HttpSettings, build_app
from gateway.http.v1 import CALLS
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import CLIENT, PUBLIC_URL, Api, _client

pytestmark = pytest.mark.anyio

ERROR = {"msg": "", "status": "error"}


def cookies(api: Api) -> dict[str, str]:
    return dict(api.http.cookies)


@pytest.mark.parametrize("path", ["/account", "/account/nobody", "/wireguard", "/system/status", "/nothing", "", "/"])
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
async def test_stranger_learns_nothing_under_api(api: Api, method: str, path: str) -> None:
    for sent in ({}, {"access_hash": ""}, {"access_hash": "0" * 80}, {"access_hash": "short"}):
        async with _client(build_app(api.services, HttpSettings(PUBLIC_URL)), sent) as stranger:
            answer = await stranger.request(method, f"/api/v1{path}")
        assert (answer.status_code, answer.json()) == (200, {"error": "Not authorized", **ERROR})


async def test_key_works_only_from_its_address(api: Api) -> None:
    app = build_app(api.services, HttpSettings(PUBLIC_URL))
    for address, status in ((CLIENT, "success"), (f"::ffff:{CLIENT}", "success"), ("192.0.2.10", "error")):
        async with _client(app, cookies(api), address) as client:
            assert (await client.get("/api/v1/account")).json()["status"] == status


async def test_address_behind_a_trusted_proxy_is_the_forwarded_one(api: Api) -> None:
    settings = HttpSettings(PUBLIC_URL, trusted_proxies=(ip_network("10.9.9.0/24"),))
    app = build_app(api.services, settings)
    forwarded = {"X-Forwarded-For": f"203.0.113.1, {CLIENT}"}
    for peer, status in (("10.9.9.1", "success"), ("10.9.8.1", "error")):
        async with _client(app, cookies(api), peer) as client:
            assert (await client.get("/api/v1/account", headers=forwarded)).json()["status"] == status


async def test_cookie_is_found_among_others(api: Api) -> None:
    app = build_app(api.services, HttpSettings(PUBLIC_URL))
    header = f"lang=en; access_hash={cookies(api)['access_hash']}; theme=dark"
    async with _client(app, {}) as client:
        assert (await client.get("/api/v1/account", headers={"Cookie": header})).json()["status"] == "success"


@pytest.mark.parametrize("http_status", ["always_200", "semantic"])
async def test_errors_of_http_itself_have_their_status_in_both_modes(api: Api, http_status: str) -> None:
    http = api.serve(http_status=http_status, max_body_bytes=100).http
    for method, path, body, status, text in (
        ("GET", "/", b"", 404, "Not found"),
        ("GET", "/api/v1/nothing", b"", 404, "Not found"),
        ("PUT", "/api/v1/account/", b"", 405, "Method not allowed"),
        ("POST", "/api/v1/account/a/b/c", b"", 404, "Not found"),
        ("PATCH", "/api/v1/account", b"", 405, "Method not allowed"),
        ("HEAD", "/api/v1/wireguard/x/set_bandwidth", b"", 405, "Method not allowed"),
        ("POST", "/healthz", b"", 405, "Method not allowed"),
        ("PUT", f"/otl/{'a' * 80}", b"", 405, "Method not allowed"),
        ("POST", "/api/v1/account", b"a=%ff", 400, "Malformed body (only form fields or a JSON object, in UTF-8)"),
        ("POST", "/api/v1/account", b"a" * 101, 413, "Body too large (only 100 bytes)"),
    ):
        answer = await http.request(method, path, content=body)
        assert answer.status_code == status, (method, path)
        if method != "HEAD":
            assert answer.json() == {"error": text, **ERROR}
        assert ("allow" in answer.headers) == (status == 405)


async def test_body_too_large_is_refused_without_a_length_too(api: Api) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"a" * 1000

    answer = await api.http.post("/api/v1/account", content=chunks())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")


async def test_semantic_mode_only_changes_the_status(api: Api) -> None:
    http = api.serve(http_status="semantic").http
    api.product.agents[NODE].away = False
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    for method, path, form, status in (
        ("GET", "/account/nobody", {}, 404),
        ("POST", "/account", {"wg_name": "Default_1", "name": "one"}, 409),
        ("POST", "/account", {"wg_name": "Default_1", "name": "a b"}, 422),
        ("GET", "/account/one/ikev2_profile", {}, 409),
    ):
        plain = await api.http.request(method, f"/api/v1{path}", data=form)
        semantic = await http.request(method, f"/api/v1{path}", data=form)
        assert (plain.status_code, semantic.status_code) == (200, status)
        assert plain.json() == semantic.json()
    api.product.agents[NODE].away = True
    assert (await http.get("/api/v1/account/one/dump")).status_code == 503
    http.cookies.clear()
    assert (await http.get("/api/v1/account")).status_code == 401


async def test_nothing_may_keep_or_reinterpret_an_answer(api: Api) -> None:
    for path in ("/api/v1/account", "/api/v1/nothing", "/api/v1/account/nobody"):
        headers = (await api.http.get(path)).headers
        assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")


async def test_bug_shows_nothing_but_an_id_that_the_log_has_too(
    api: Api, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(page: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.product.accounts, "visit", broken)
    answer = await api.http.get("/api/v1/account")
    assert (answer.status_code, answer.json()) == (500, {"error": "Internal error", **ERROR})
    assert "secret detail" not in str(answer.headers)
    assert f"id={answer.headers['x-wirelane-error']}" in caplog.text and "secret detail" in caplog.text


async def test_store_that_is_away_is_an_error_in_words(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*_: object) -> bool:
        raise DatabaseUnavailable("connection refused")

    monkeypatch.setattr(api.product.keys, "judged", away)
    answer = await api.serve(http_status="semantic").http.get("/api/v1/account")
    assert (answer.status_code, answer.json()["error"]) == (503, "The database is not available, try again")


async def test_healthz_tells_whether_the_store_answers(api: Api) -> None:
    async def away() -> None:
        raise DatabaseUnavailable

    async def stuck() -> None:
        await asyncio.sleep(3600)

    async def health(api: Api, ping: Callable[[], Awaitable[object]]) -> tuple[int, str]:
        app = build_app(replace(api.services, ping=ping), HttpSettings(PUBLIC_URL))
        async with _client(app, {}) as client:
            answer = await client.get("/healthz")
        return answer.status_code, answer.text

    assert await health(api, api.product.store.ping) == (200, "ok")
    assert await health(api, away) == (503, "the database is not available")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.http.health.PING_SECONDS", 0.01)
        assert await health(api, stuck) == (503, "the database is not available")


async def test_access_log_has_the_template_and_no_secret(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.http")
    await api.msg("POST", "/account", wg_name="Default_1", name="secretname", password="secretpassword")
    link = await api.msg("GET", "/account/secretname/otl")
    await api.http.get(httpx.URL(link).path + "?token=secretquery")
    await api.http.post(httpx.URL(link).path)
    await api.http.get("/api/v1/secretpath")
    shown = [record.getMessage() for record in caplog.records if record.name == "gateway.http"]
    assert [line.split(" ms=")[0] for line in shown] == [
        "event=change method=POST path=/api/v1/account status=200",
        "event=change method=GET path=/api/v1/account/{name}/otl status=200",
        "event=request method=GET path=/otl/{key} status=200",
        "event=change method=POST path=/otl/{key} status=200",
        "event=request method=GET path=- status=404",
    ]
    assert all(f" client={CLIENT}" in line for line in shown)
    for secret in ("secretp", "secretq", httpx.URL(link).path[5:], cookies(api)["access_hash"]):
        assert secret not in "".join(shown)


async def test_openapi_document_is_open_and_has_every_call(api: Api) -> None:
    api.http.cookies.clear()
    document = (await api.http.get("/api/v1/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    for call in CALLS:
        operation = document["paths"][call.path][call.method.lower()]
        assert ("requestBody" in operation) == bool(call.fields)
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(identifiers) == len(set(identifiers)) == len(CALLS) + 1
