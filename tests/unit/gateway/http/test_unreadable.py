"""An account or server whose secrets cannot be decrypted says so itself; everybody else is shown as ever."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from sqlalchemy import update

from gateway.bulk import export_accounts
from gateway.store.tables import accounts, servers
from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio

PROBLEM = "The private key of account one cannot be decrypted (the database was edited or damaged)"


async def damage(api: Api, table: Any, name: str, value: bytes) -> None:
    work = update(table).where(table.c.name == name).values(private_key=value)
    await api.product.store.change(lambda tx: tx.run(work))


@pytest.mark.parametrize("value", [b"", b"\x01", b"\x01short", b"\x02" + bytes(60), b"\x01" + bytes(60)])
async def test_account_with_a_damaged_key_spoils_only_itself(api: Api, value: bytes) -> None:
    one, two = [await api.msg("POST", "/account", wg_name="Default_1", name=name) for name in ("one", "two")]
    link = httpx.URL(await api.msg("GET", "/account/one/otl")).path
    await damage(api, accounts, "one", value)
    spoiled = {**one, "private_key": "", "problem": PROBLEM}
    assert await api.msg("GET", "/account") == [spoiled, two]
    assert await api.msg("GET", "/wireguard/Default_1/peers") == {"one": spoiled, "two": two}
    for path in ("", "/config_text", "/config_qr"):
        assert await api.error("GET", f"/account/one{path}") == PROBLEM
    assert (await api.http.post(link)).status_code == 503
    assert (await api.msg("PUT", "/account/one", status="disable"))["status"] == "disable"
    assert (await api.msg("GET", "/account/one/dump"))["endpoint"] == "(none)"
    assert await api.msg("GET", "/account/two") == two
    parts: list[bytes] = []
    left_out: list[str] = []
    count = await export_accounts(
        api.product.store, "csv", parts.append, lambda *_: None, lambda account: left_out.append(account.name)
    )
    assert (count, left_out) == (1, ["one"]) and b"\ntwo," in b"".join(parts) and b"\none," not in b"".join(parts)
    assert await api.msg("DELETE", "/account/one") == "success"


async def test_server_with_a_damaged_key_spoils_only_itself(api: Api) -> None:
    other = await api.msg("POST", "/wireguard")
    account = await api.msg("POST", "/account", wg_name="Default_1", name="one")
    text = await api.msg("GET", "/account/one/config_text")
    await damage(api, servers, "Default_1", b"\x01" + bytes(60))
    listed = await api.msg("GET", "/wireguard")
    problem = "The private key of server Default_1 cannot be decrypted (the database was edited or damaged)"
    assert listed["Default_2"] == other
    assert (listed["Default_1"]["private_key"], listed["Default_1"]["problem"]) == ("", problem)
    assert await api.error("GET", "/wireguard/Default_1") == problem
    assert await api.msg("GET", "/account/one/config_text") == text
    assert await api.msg("PUT", "/account/one", b_download="12") == account
    made = await api.msg("POST", "/account", wg_name="Default_1", name="two")
    assert made["wg_name"] == "Default_1"
    key = "aDUBOBJxMcpbvbq3YqYbP9nnvBgGpe2IVsFBbKfHuGU="
    assert "problem" not in await api.msg("PUT", "/wireguard/Default_1", private_key=key)
    assert (await api.msg("GET", "/wireguard/Default_1"))["private_key"] == key
