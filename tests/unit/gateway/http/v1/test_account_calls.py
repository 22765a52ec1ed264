"""gateway/http/v1/account.py: the twelve calls, told as a customer's life."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import Callable
from datetime import date

import pytest

from gateway.model import Account, LiveAccount
from gateway.profile import config_qr
from tests.fakes.product import NODE
from tests.unit.gateway.http.conftest import PUBLIC_URL, Api

pytestmark = pytest.mark.anyio


async def test_account_lives_from_add_to_delete(api: Api) -> None:
    made = await api.msg("POST", "/account", wg_name="Default_1", name="NAME111", status="disable", b_download="100")
    assert (made["name"], made["status"], made["b_download"], made["b_upload"]) == ("NAME111", "disable", "100", "10")
    assert await api.msg("GET", "/account/NAME111") == made
    assert await api.msg("GET", "/account") == [made]
    edit = {"allowed_IPs": "10.0.0.60", "b_download": "11", "b_upload": "0", "password": "P 2", "status": "enable"}
    edited = await api.msg("PUT", "/account/NAME111", **edit)
    assert edited == {**made, **edit}
    assert await api.msg("DELETE", "/account/NAME111") == "success"
    assert await api.msg("GET", "/account") == []


async def test_a_preshared_key_is_in_the_configuration_and_in_no_other_answer(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    async def in_text() -> str:
        text = await api.msg("GET", "/account/one/config_text")
        assert base64.b64decode(await api.msg("GET", "/account/one/config_qr")) == config_qr(text)
        return str(text.partition("\nPresharedKey = ")[2])

    given, shown = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE=", []
    plain = await api.msg("POST", "/account", wg_name="Default_1", name="one")
    keyed = plain | {"has_preshared_key": "1"}
    seen = []
    for value, told in ((given, keyed), ("1", keyed), ("", plain), ("1", keyed), ("0", plain), (given, keyed)):
        shown.append(await api.msg("PUT", "/account/one", preshared_key=value))
        assert shown[-1] == told
        seen.append(await in_text())
    assert (seen[0], seen[2], seen[4], seen[5]) == (given, "", "", given)
    assert len({given, seen[1], seen[3]}) == 3 and {len(seen[1]), len(seen[3])} == {44}
    shown.append(await api.msg("PUT", "/account/one", b_download="7"))
    assert await in_text() == given, "what an edit does not name is unchanged"
    shown += [await api.msg("GET", "/account"), await api.msg("GET", "/wireguard/Default_1/peers")]
    shown.append(await api.msg("POST", "/account", wg_name="Default_1", preshared_key=given))
    assert given not in str(shown) + caplog.text and "'preshared_key'" not in str(shown)
    wrong = await api.error("PUT", "/account/one", preshared_key=given[:-2])
    assert wrong == "Wrong preshared_key (only 1 = generate, 0 = none, or 32 bytes in base64)"
    assert await in_text() == given


async def test_account_that_is_not_there_is_not_found_by_any_call(api: Api) -> None:
    paths = ("", "/config_text", "/config_qr", "/ikev2_profile", "/otl", "/firewall_mangle_rules", "/traffic_control")
    for path in (*paths, "/dump", "/traffic_statistics/2022/11"):
        for name in ("nobody", "n" * 65, "a%20b", "a%00b", "%C3%BC", "%FF", "a%0A"):
            assert await api.error("GET", f"/account/{name}{path}") == "Account not found"
    assert await api.error("PUT", "/account/nobody", status="enable") == "Account not found"
    assert await api.error("DELETE", "/account/nobody") == "Account not found"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({}, "Wireguard server not valid"),
        ({"wg_name": "nowhere"}, "Wireguard server not valid"),
        ({"wg_name": "Default_1", "name": "a b"}, "Wrong name (only letters, numbers and '_', '-')"),
        ({"wg_name": "Default_1", "name": "taken"}, "The name is already in use"),
        ({"wg_name": "Default_1", "username": "taken"}, "The username is already in use"),
        ({"wg_name": "Default_1", "username": "a.b"}, "Wrong Username (only letters, numbers and '_', '-')"),
        ({"wg_name": "Default_1", "allowed_IPs": "10.0.0"}, "Wrong IP format"),
        ({"wg_name": "Default_1", "allowed_IPs": "10.0.0.9"}, "IP address already in use"),
        (
            {"wg_name": "Default_1", "allowed_IPs": "10.1.0.9"},
            "The IP address is not within the range of the wireguard server",
        ),
        (
            {"wg_name": "Default_1", "allowed_IPs": "10.0.0.1"},
            "The IP address is not within the range of the wireguard server",
        ),
        ({"wg_name": "Default_1", "private_key": "short"}, "Keys are invalid"),
        ({"wg_name": "Default_1", "status": "on"}, "Wrong status (only enable or disable)"),
        ({"wg_name": "Default_1", "b_download": "10001"}, "Wrong b_download (only 0-10000)"),
    ],
)
async def test_add_says_what_is_wrong(api: Api, form: dict[str, str], text: str) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="taken", username="taken", allowed_IPs="10.0.0.9")
    assert await api.error("POST", "/account", **form) == text
    assert len(await api.msg("GET", "/account")) == 1


async def test_body_of_get_and_delete_is_ignored(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    for method, path in (("GET", "/account/one"), ("DELETE", "/account/one")):
        answer = await api.http.request(method, f"/api/v1{path}", content=b"\xff" * 100_000)
        assert answer.json()["status"] == "success"


async def test_json_and_multipart_are_as_good_as_urlencoded(api: Api) -> None:
    form = {"wg_name": "Default_1", "b_download": 0, "b_upload": 7}
    made = (await api.http.post("/api/v1/account", json=form)).json()["msg"]
    assert (made["b_download"], made["b_upload"]) == ("0", "7")
    parts = {"wg_name": (None, b"Default_1"), "b_upload": (None, b"8")}
    assert (await api.http.post("/api/v1/account", files=parts)).json()["msg"]["b_upload"] == "8"


@pytest.mark.parametrize("settle_seconds", [0.5])
async def test_change_that_the_node_has_not_applied_names_it_in_a_header(api: Api) -> None:
    api.product.agents[NODE].away = True
    answer = await api.http.post("/api/v1/account", data={"wg_name": "Default_1", "name": "one"})
    assert answer.json()["status"] == "success" and answer.headers["x-wirelane-pending"] == NODE
    for method, path in (("PUT", "/api/v1/account/one"), ("DELETE", "/api/v1/account/one")):
        answer = await api.http.request(method, path, data={"status": "disable"})
        assert answer.json()["status"] == "success" and answer.headers["x-wirelane-pending"] == NODE
    assert "x-wirelane-pending" not in (await api.http.get("/api/v1/account")).headers


async def test_configuration_is_the_same_as_text_and_as_picture(api: Api) -> None:
    account = await api.msg("POST", "/account", wg_name="Default_1", name="one")
    server = await api.msg("GET", "/wireguard/Default_1")
    text = await api.msg("GET", "/account/one/config_text")
    assert text == (
        f"[Interface]\nAddress = 10.0.0.2/24\nDNS = 8.8.8.8,1.1.1.1\nPrivateKey = {account['private_key']}\n\n"
        f"[Peer]\nAllowedIPs = 0.0.0.0/0\nEndpoint = vpn.example.com:51821\nPublicKey = {server['public_key']}"
    )
    assert base64.b64decode(await api.msg("GET", "/account/one/config_qr"), validate=True) == config_qr(text)
    assert "\n\tAddress = " in await api.serve(tabs=True).msg("GET", "/account/one/config_text")


async def test_every_call_makes_another_one_time_link(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    links = {await api.msg("GET", "/account/one/otl") for _ in range(3)}
    assert len(links) == 3
    assert all(re.fullmatch(rf"{PUBLIC_URL}/otl/[0-9a-f]{{80}}", link) for link in links)


async def test_live_reads_show_the_kernel(api: Api) -> None:
    account = await api.msg("POST", "/account", wg_name="Default_1", name="one", b_upload="0")
    (known,) = api.product.agents[NODE].accounts.values()
    api.product.agents[NODE].use(known.id, date(2026, 1, 1), 5000, 600)
    mark = f"MARK {int(account['mangle']):#x}"
    assert await api.msg("GET", "/account/one/firewall_mangle_rules") == (
        f"0.0.0.0/0 -> 10.0.0.2 {mark} Pkt:5 Bytes:5000\n10.0.0.2 -> 0.0.0.0/0 {mark} Pkt:0 Bytes:600\n"
    )
    first, second, rest = (await api.msg("GET", "/account/one/traffic_control")).split("\n\n", 2)
    assert first == "eth0 --> no class (unlimited)"
    assert second.startswith("wg1 --> class htb 1:100 ") and second.count("\n") == 2 and rest == ""
    dump = await api.msg("GET", "/account/one/dump")
    assert dump["allowed_ips"] == "10.0.0.2/32" and dump["endpoint"] == "(none)"


async def test_live_reads_of_a_disabled_account_have_the_same_shape(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one", status="disable")
    none = "eth0 --> no class (disabled)\n\nwg1 --> no class (disabled)\n\n"
    assert await api.msg("GET", "/account/one/traffic_control") == none
    assert await api.msg("GET", "/account/one/dump") == {
        "allowed_ips": "10.0.0.2/32",
        "endpoint": "(none)",
        "keepalive": "off",
        "latest_handshake": "0",
        "transfer_rx": "0",
        "transfer_tx": "0",
    }


async def test_live_reads_name_the_node_that_is_away(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    api.product.agents[NODE].away = True
    for path in ("dump", "firewall_mangle_rules", "traffic_control"):
        assert await api.error("GET", f"/account/one/{path}") == f"Node {NODE} is not available"


async def test_live_reads_do_not_invent_what_the_kernel_lacks(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    account = await api.product.accounts.get("one")

    async def bare(*_: object) -> object:
        return account, LiveAccount(None, None, "eth0", "wg1", None, None)

    monkeypatch.setattr(api.product.accounts, "live", bare)
    assert NODE in await api.error("GET", "/account/one/firewall_mangle_rules")
    assert NODE in await api.error("GET", "/account/one/traffic_control")


async def test_statistics_have_every_day_of_the_month(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    (known,) = api.product.agents[NODE].accounts.values()
    api.product.agents[NODE].use(known.id, date(2024, 2, 29), 168658637, 15390640)
    days = await api.msg("GET", "/account/one/traffic_statistics/2024/02")
    assert days == await api.msg("GET", "/account/one/traffic_statistics/2024/2")
    assert [day["date"] for day in days] == [f"2024-02-{number:02}" for number in range(1, 30)]
    assert days[-1] == {
        "account": "one",
        "date": "2024-02-29",
        "traffic_download": 168658637,
        "traffic_upload": 15390640,
    }
    assert days[0] == {"account": "one", "date": "2024-02-01", "traffic_download": 0, "traffic_upload": 0}
    assert await api.error("GET", "/account/one/traffic_statistics/2024/13") == "Wrong month setting"
    assert await api.error("GET", "/account/one/traffic_statistics/24/1") == "Wrong year setting"


async def test_hundred_creates_at_once_that_name_nothing_give_a_hundred_accounts(api: Api) -> None:
    made = await asyncio.gather(*(api.msg("POST", "/account", wg_name="Default_1") for _ in range(100)))
    for key in ("name", "username", "allowed_IPs", "mangle", "private_key", "public_key"):
        assert len({account[key] for account in made}) == 100
    listed = await api.msg("GET", "/account")
    assert sorted(made, key=lambda account: account["name"]) == sorted(listed, key=lambda account: account["name"])


async def test_listing_is_spelled_fast_enough_for_ten_thousand(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    many = [await api.product.accounts.get("one")] * 10_000

    async def visit(page: Callable[[list[Account]], None]) -> None:
        for start in range(0, 10_000, 500):
            page(many[start : start + 500])

    monkeypatch.setattr(api.product.accounts, "visit", visit)
    started = time.perf_counter()
    assert len(await api.msg("GET", "/account")) == 10_000
    assert time.perf_counter() - started < 1.5  # 0.1 s on an idle machine; this one may be busy


async def test_an_account_stays_on_its_server(api: Api) -> None:
    await api.msg("POST", "/account", wg_name="Default_1", name="one")
    assert (await api.msg("PUT", "/account/one", wg_name="Default_1", b_upload="7"))["b_upload"] == "7"
    assert await api.error("PUT", "/account/one", wg_name="elsewhere") == "Wireguard server not valid"


async def test_an_account_that_is_not_there_is_the_larger_error(api: Api) -> None:
    assert await api.error("PUT", "/account/nope", status="bad") == "Account not found"
    assert await api.error("GET", "/account/nope/traffic_statistics/2024/13") == "Account not found"
