"""gateway/http/v1/links.py, and what becomes of it on the page."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from sqlalchemy import update

from gateway.store import Transaction
from gateway.store.tables import settings
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio


async def new_link(api: Api, name: str = "one") -> str:
    return httpx.URL(await api.msg("GET", f"/account/{name}/otl")).path


@pytest.fixture
async def link(api: Api) -> str:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    return await new_link(api)


def hashes(kind: str, answer: httpx.Response) -> list[str]:
    found = re.search(rf"{kind}-src ([^;]*)", answer.headers["content-security-policy"])
    assert found is not None
    return found[1].split()


def hash_of(tag: str, answer: httpx.Response) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
    assert found is not None and answer.text.count(f"<{tag}") == 1
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"


async def test_links_are_listed_until_they_are_opened_without_their_keys(api: Api, link: str) -> None:
    await new_link(api)
    found = (await api.msg("GET", "/otl/list"))["olts"]
    today = datetime.now(UTC).date()
    assert len(found) == 2
    for key, one in found.items():
        assert one == {
            "account": "one",
            "created_data": f"{today}",
            "key": key,
            "lifetime": f"{today + timedelta(days=10)}",
        }
        assert link.removeprefix("/otl/")[:16] not in key and "not kept" in key
    await api.http.post(link)
    assert len((await api.msg("GET", "/otl/list"))["olts"]) == 1
    await api.msg("DELETE", "/account/one")
    assert await api.msg("GET", "/otl/list") == {"olts": {}}


async def test_lifetime_is_that_of_new_links(api: Api, link: str) -> None:
    assert (await api.msg("GET", "/otl/config"))["lifetime"] == "10"
    assert (await api.msg("PUT", "/otl/config", lifetime="3", title="Ours"))["lifetime"] == "3"
    await new_link(api)
    found = (await api.msg("GET", "/otl/list"))["olts"].values()
    today = datetime.now(UTC).date()
    assert {one["lifetime"] for one in found} == {f"{today + timedelta(days=days)}" for days in (3, 10)}
    for wrong in ("0", "3651", "ten"):
        assert await api.error("PUT", "/otl/config", lifetime=wrong) == "Wrong lifetime (only 1-3650)"
    assert (await api.msg("GET", "/otl/config"))["title"] == "Ours"


async def test_an_empty_lifetime_is_the_files_again(api: Api) -> None:
    await api.msg("PUT", "/otl/config", lifetime="3")
    assert (await api.msg("PUT", "/otl/config", title="Ours"))["lifetime"] == "3"
    assert (await api.msg("GET", "/system/status"))["set_by_api"] == ["link_days"]
    assert (await api.msg("PUT", "/otl/config", lifetime=""))["lifetime"] == "10"
    assert (await api.msg("GET", "/system/status"))["set_by_api"] == []


async def test_texts_and_style_stand_on_the_pages_within_their_policy(api: Api, link: str) -> None:
    told = {
        "title": "VPN <of> Example",
        "css": "main > h1 { color: red }\nbody { margin: 0 }",
        "before_body": "<p>Welcome & <b>enjoy</b></p>",
        "after_body": '<p><a href="https://example.com/help">Help</a></p>',
        "not_relevant": "<p>Ask <b>us</b></p>",
    }
    assert await api.msg("PUT", "/otl/config", **told) == {**told, "lifetime": "10"}
    assert await api.msg("GET", "/otl/config") == {**told, "lifetime": "10"}
    for method in ("GET", "POST"):
        answer = await api.http.request(method, link)
        assert "<title>VPN &lt;of&gt; Example</title>" in answer.text
        assert "<p>Welcome &amp; <b>enjoy</b></p>" in answer.text and "main > h1 { color: red }" in answer.text
        assert '<a href="https://example.com/help" rel="noopener noreferrer">Help</a>' in answer.text
        assert hashes("style", answer) == [hash_of("style", answer)]
        assert hashes("script", answer) == [hash_of("script", answer)]
    gone = [await api.http.get(path) for path in (link, "/otl/nonsense", f"/otl/{'0' * 80}")]
    assert {(answer.status_code, answer.text) for answer in gone} == {(404, gone[0].text)}
    assert "<p>Ask <b>us</b></p>" in gone[0].text and "opened already" not in gone[0].text
    assert hashes("script", gone[0]) == ["'none'"]


async def test_what_is_not_wanted_of_wireguard_is_not_shown(api: Api, link: str) -> None:
    found = await api.msg("GET", "/otl/config_wireguard")
    assert found.pop("enable") is found.pop("enable_config_qr") is found.pop("enable_config_text") is True
    assert set(found.values()) == {""} and len(found) == 13
    own = {"download_config_button_label": "Get <it>", "button2_label": "App", "button2_link": "https://example.com/a"}
    await api.msg("PUT", "/otl/config_wireguard", enable_config_qr="0", **own)
    page = (await api.http.post(link)).text
    assert 'id="qr"' not in page and 'id="config"' in page and ">Get &lt;it&gt;</a>" in page
    assert '<a class="button" href="https://example.com/a" rel="noopener noreferrer">App</a>' in page
    await api.msg("PUT", "/otl/config_wireguard", enable_config_qr="1", enable_config_text="0")
    answer = await api.http.post(await new_link(api))
    assert 'id="qr"' in answer.text and 'id="config"' not in answer.text and "<script>" not in answer.text
    await api.msg("PUT", "/otl/config_wireguard", enable="0")
    page = (await api.http.post(await new_link(api))).text
    assert 'id="download"' not in page and 'id="qr"' not in page and "PrivateKey" not in page


async def test_wrong_texts_are_refused_and_change_nothing(api: Api) -> None:
    assert "Wrong css" in await api.error("PUT", "/otl/config", css="</style>", title="x")
    assert (
        await api.error("PUT", "/otl/config_ikev2", button1_link="javascript:alert(1)")
        == "Wrong button1_link (only https://...)"
    )
    assert (await api.msg("GET", "/otl/config"))["title"] == ""


async def test_texts_that_somebody_else_wrote_into_the_database_are_not_shown(api: Api, link: str) -> None:
    await api.msg("PUT", "/otl/config", title="Ours")

    async def spoil(tx: Transaction) -> None:
        await tx.run(update(settings).where(settings.c.name == "link_page").values(value='{"config": {"title": "X"}}'))

    await api.product.store.change(spoil)
    assert "<title>Your VPN access</title>" in (await api.http.get(link)).text
