"""gateway/http/pages/one_time_link.py: its pages, as bytes. What a browser makes of them: tests/contract."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import logging
import re

import httpx
import pytest
from sqlalchemy import select
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import DatabaseUnavailable
from gateway.http.app import HttpSettings, build_app
from gateway.http.pages.one_time_link import file_name
from gateway.one_time_links import LEASE_SECONDS
from gateway.store.tables import one_time_links
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio


async def new_link(api: Api, **form: str) -> str:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", **form)
    return httpx.URL(await api.msg("GET", "/account/one/otl")).path


async def test_previews_do_not_use_the_link_up_and_the_button_does(api: Api) -> None:
    path = await new_link(api)
    api.http.cookies.clear()  # whoever has the link needs nothing else
    for method in ("GET", "HEAD", "GET", "HEAD"):
        answer = await api.http.request(method, path)
        assert answer.status_code == 200 and "PrivateKey" not in answer.text
    opened = await api.http.post(path)
    assert opened.status_code == 200 and "PrivateKey" in opened.text
    for method in ("GET", "POST"):
        assert (await api.http.request(method, path)).status_code == 404


async def test_of_many_who_press_the_button_one_sees_it(api: Api) -> None:
    path = await new_link(api)
    answers = await asyncio.gather(*(api.http.post(path) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 19


async def test_what_is_not_relevant_looks_always_the_same(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    used, expired = await new_link(api), httpx.URL(await api.msg("GET", "/account/one/otl")).path
    deleted = httpx.URL(await api.msg("GET", "/account/one/otl")).path
    await api.http.post(used)
    future = api.product.one_time_links._now() + 11 * 86400
    pages = set()
    with monkeypatch.context() as patch:
        patch.setattr(api.product.one_time_links, "_now", lambda: future)
        pages |= {(answer.status_code, answer.text) for answer in [await api.http.get(expired)]}
    await api.msg("DELETE", "/account/one")
    unknown = [f"/otl/{'0' * 80}", "/otl/short", f"/otl/{'A' * 80}", f"/otl/{'a' * 81}", "/otl/a%00b"]
    for path in (used, deleted, *unknown):
        for method in ("GET", "POST"):
            answer = await api.http.request(method, path)
            pages.add((answer.status_code, answer.text))
    assert len(pages) == 1 and "not relevant" in pages.pop()[1]


async def test_page_has_text_picture_and_file_of_the_same_configuration(api: Api) -> None:
    path = await new_link(api)
    text = await api.msg("GET", "/account/one/config_text")
    picture = await api.msg("GET", "/account/one/config_qr")
    page = (await api.http.post(path)).text
    (shown,) = re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)
    assert html.unescape(shown) == text
    assert f'src="data:image/png;base64,{picture}"' in page
    ((name, file),) = re.findall(r'download="([^"]*)" href="data:[^,]*;base64,([^"]*)"', page)
    assert (name, base64.b64decode(file).decode()) == ("one.conf", text)


async def test_file_of_a_long_name_is_one_that_wireguard_takes(api: Api) -> None:
    name = "customer-2024-0001"
    await api.msg("POST", "/account", wg_name="Default_1", name=name)
    page = (await api.http.post(httpx.URL(await api.msg("GET", f"/account/{name}/otl")).path)).text
    assert f'download="{file_name(name)}.conf"' in page and f"<strong>{name}</strong>" in page


def test_names_of_files_fit_the_apps_and_differ() -> None:
    alike = [f"customer-000123-{device}" for device in ("laptop", "phone", "phone2", "PHONE", "l" * 40)]
    names = [*alike, *(f"{'x' * 60}{n}" for n in range(1000)), "a", "peer_1", "x" * 15, "x" * 16]
    files = [file_name(name) for name in names]
    assert all(re.fullmatch(r"[a-zA-Z0-9_=+.-]{1,15}", file) for file in files)
    assert len({file.lower() for file in files}) == len(names)
    assert [file_name(name) for name in ("a", "peer_1", "x" * 15)] == ["a", "peer_1", "x" * 15]
    assert [file_name(name)[:4] for name in ("con", "NUL", "com1")] == ["con-", "NUL-", "com1"]
    assert file_name("com1") != "com1"


class Gone(Exception):
    """The server's way to say that a connection broke."""


async def pressed(api: Api, path: str, receive: Receive, send: Send) -> None:
    """The button, as the listener hands it on."""
    scope: Scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "client": None}
    await build_app(api.services, HttpSettings("https://vpn.example.com"))(scope, receive, send)


async def test_who_hangs_up_before_the_page_was_sent_burns_nothing(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.http")
    path = await new_link(api)
    request: Message = {"type": "http.request", "body": b"", "more_body": False}
    waiting = asyncio.Event()

    async def sent(message: Message) -> None:
        raise Gone

    async def nothing(message: Message) -> None:
        raise AssertionError("nobody is there")

    messages = iter([request, {"type": "http.disconnect"}])

    async def hung_up() -> Message:
        return next(messages)

    async def there() -> Message:
        await waiting.wait()
        return request

    await pressed(api, path, hung_up, nothing)
    with pytest.raises(Gone):  # cut off in the middle
        await pressed(api, path, there, sent)
    assert "path=/otl/{key} status=499" in caplog.text and "can be opened again" in caplog.text
    opened = await api.http.post(path)
    assert opened.status_code == 200 and "PrivateKey" in opened.text
    assert (await api.http.post(path)).status_code == 404


@pytest.mark.parametrize("somebody_came", [True, False])
async def test_a_page_that_waited_for_room_until_its_lease_was_over_is_not_shown(
    api: Api, monkeypatch: pytest.MonkeyPatch, somebody_came: bool
) -> None:
    path, links = await new_link(api), api.product.one_time_links
    waits, room, sent = asyncio.Event(), asyncio.Event(), list[Message]()

    async def full(message: Message) -> None:
        sent.append(message)
        waits.set()
        await room.wait()

    async def there() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    first = asyncio.create_task(pressed(api, path, there, full))
    await asyncio.wait_for(waits.wait(), 5)
    later = links._now() + LEASE_SECONDS
    monkeypatch.setattr(links, "_now", lambda: later)
    if somebody_came:
        assert "PrivateKey" in (await api.http.post(path)).text
    room.set()
    await asyncio.wait_for(first, 5)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert ("PrivateKey" in (await api.http.post(path)).text) is not somebody_came


async def test_link_that_could_not_be_shown_stays(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await new_link(api)

    async def away(_: str) -> None:
        raise DatabaseUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(api.product.servers, "get", away)
        assert (await api.http.post(path)).status_code == 503
    assert (await api.http.post(path)).status_code == 200


async def test_links_need_to_know_where_customers_reach_the_gateway(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    answer = await api.serve(public_url="").http.get("/api/v1/account/one/otl")
    assert "public_url in gateway.toml" in answer.json()["error"]


async def test_head_makes_no_link(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    assert (await api.http.head("/api/v1/account/one/otl")).status_code == 200
    assert await api.product.store.read(lambda tx: tx.all(select(one_time_links))) == []


async def test_disabled_account_still_sees_its_configuration(api: Api) -> None:
    assert (await api.http.post(await new_link(api, status="disable"))).status_code == 200


async def test_customer_who_keeps_the_key_is_told_what_to_do(api: Api) -> None:
    public = "sdxzHEBOdgm9ZzRn2tw2bzdnU1v7mUp1plpAU+craSo="
    page = (await api.http.post(await new_link(api, public_key=public))).text
    assert 'id="own-key"' in page and "# PrivateKey = (yours)" in page and 'id="qr"' not in page


async def test_policy_allows_what_is_in_the_page_and_nothing_else(api: Api) -> None:
    path = await new_link(api)
    for method in ("GET", "POST"):
        answer = await api.http.request(method, path)
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert (policy["img-src"], policy["form-action"], policy["base-uri"]) == ("data:", "'self'", "'none'")
        for element, source in (("style", "style-src"), ("script", "script-src")):
            (inside,) = re.findall(rf"<{element}>(.*?)</{element}>", answer.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy[source] and "unsafe" not in policy[source]
        assert not re.search(r"""\son\w+=|\sstyle=|(src|href)=(?!"data:)|https?:|@import|url\(""", answer.text)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-robots-tag"] == "noindex, nofollow"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_store_that_is_away_does_not_look_like_a_used_link(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    path = await new_link(api)

    async def away(_: str) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(api.product.one_time_links, "valid", away)
    monkeypatch.setattr(api.product.one_time_links, "lease", away)
    for method in ("GET", "POST"):
        answer = await api.http.request(method, path)
        assert answer.status_code == 503 and "try again" in answer.text
