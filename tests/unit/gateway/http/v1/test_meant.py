"""Nothing that was meant is ignored in silence: fields of the query, other spellings, names that nobody knows."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.unit.gateway.http.conftest import Api

pytestmark = pytest.mark.anyio

IGNORED = "x-wirelane-ignored"


@pytest.fixture
async def account(api: Api) -> dict[str, str]:
    found: dict[str, str] = await api.msg("POST", "/account", wg_name="Default_1", name="one")
    return found


async def put(api: Api, query: str = "", **request: Any) -> httpx.Response:
    return await api.http.put(f"/api/v1/account/one{query}", **request)


async def status(api: Api) -> str:
    return str((await api.msg("GET", "/account/one"))["status"])


@pytest.mark.usefixtures("account")
async def test_query_counts_like_the_body(api: Api) -> None:
    assert (await put(api, "?status=disable")).json()["msg"]["status"] == "disable"
    found = (await put(api, "?status=enable&b_download=7", data={"b_upload": "8", "status": "enable"})).json()["msg"]
    assert (found["status"], found["b_download"], found["b_upload"]) == ("enable", "7", "8")
    refused = (await put(api, "?status=enable", json={"status": "disable"})).json()["error"]
    assert refused == "Wrong status (it is in the query and in the body, with different values)"
    for twice in (b"status=disable&status=enable", b'{"status": "disable", "status": 1}'):
        refused = (await put(api, content=twice)).json()["error"]
        assert refused == "Wrong status (it is twice in the body, with different values)"
    assert await status(api) == "enable"
    assert (await put(api, "?status=%ff")).status_code == 400
    made = await api.http.post("/api/v1/account?wg_name=Default_1&name=two&b_download=3")
    assert (made.json()["msg"]["name"], made.json()["msg"]["b_download"]) == ("two", "3")


SPELLINGS = (
    *("status[0]", "status[]", "[status]", "Status", " status", "status ", "STATUS", "status.", "amp;status"),
    *("\ufeffstatus", "sta_tus", "status\0", '"status', "\uff53tatus", "b_download[]", "B_DOWNLOAD", "b-download"),
    *("bDownload", "b download", "allowed_ips", "Password", "wgName", "Allowed_IPs_IPv6"),
)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("name", SPELLINGS)
async def test_known_field_in_another_spelling_is_an_error_that_names_it(api: Api, name: str) -> None:
    before = await api.msg("GET", "/account/one")
    for request in ({"data": {name: "5"}}, {"json": {name: "5"}}, {"files": {"x": (None, b""), name: (None, b"5")}}):
        if "files" in request and not name.replace('"', "\0").isprintable():
            continue  # httpx spells these otherwise
        error = (await put(api, **request)).json()["error"]
        assert error.startswith("Wrong field ") and "its name is " in error, (request, error)
    assert (await put(api, "?" + str(httpx.QueryParams({name: "5"})))).json()["error"].startswith("Wrong field ")
    assert await api.msg("GET", "/account/one") == before


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("value", [["disable"], [], {"0": "disable"}, {}, [["disable"]], [{"a": 1}]])
async def test_lists_and_objects_are_no_values(api: Api, value: object) -> None:
    error = (await put(api, json={"b_upload": 5, "status": value})).json()["error"]
    assert "its name is status" in error
    assert await status(api) == "enable"


async def test_unknown_names_are_ignored_and_told(api: Api, account: dict[str, str]) -> None:
    answer = await put(api, "?_=1", json={"b_download": "5", "token": "x", "data": {"status": "disable"}})
    assert (answer.json()["msg"]["b_download"], answer.headers[IGNORED]) == ("5", "_, token, data[status]")
    assert IGNORED not in (await put(api, data={"b_download": "6"})).headers
    hostile = await put(api, json={"a\r\nX-Evil: 1": "x", "ü, b": "", "c" * 500: ""})
    assert "x-evil" not in hostile.headers
    assert hostile.headers[IGNORED] == f"a%0D%0AX-Evil:%201, %C3%BC%2C%20b, {'c' * 80}"
    many = (await put(api, json={f"field{n}": n for n in range(90)})).headers[IGNORED]
    assert many.startswith("field0, field1, ") and many.endswith("field19, and 70 more")
    assert (await put(api, json={f"field{n}": n for n in range(101)})).status_code == 400


async def test_whole_object_that_is_sent_back_is_only_told_where_it_differs(api: Api, account: dict[str, str]) -> None:
    answer = await put(api, data={**account, "b_download": "9"})
    assert answer.json()["msg"] == {**account, "b_download": "9"} and IGNORED not in answer.headers
    renamed = await put(api, json={**account, "name": "new", "private_key": "x", "mangle": 7})
    assert renamed.json()["msg"]["name"] == "one" and renamed.headers[IGNORED] == "mangle, name, private_key"
    server = await api.msg("GET", "/wireguard/Default_1")
    answer = await api.http.put("/api/v1/wireguard/Default_1", json=server)
    assert answer.json()["msg"] == server and IGNORED not in answer.headers
    answer = await api.http.put("/api/v1/wireguard/Default_1", json={**server, "interface_name": "wg9"})
    assert answer.json()["msg"] == server and answer.headers[IGNORED] == "interface_name"
    assert "Wrong node" in await api.error("PUT", "/wireguard/Default_1", node="elsewhere")


async def test_yes_and_no_as_php_writes_them(api: Api) -> None:
    for text, meant in (("1", True), ("0", False), ("true", True), ("", False), ("TRUE", True), ("false", False)):
        found = await api.msg("PUT", "/wireguard/Default_1", internal_traffic=text)
        assert found["internal_traffic"] is meant, text
    for value in (True, False):
        answer = await api.http.put("/api/v1/wireguard/Default_1", json={"internal_traffic": value, "ikev2": False})
        assert answer.json()["msg"]["internal_traffic"] is value
    for text in ("yes", "on", "2", "null"):
        assert "Wrong internal_traffic" in await api.error("PUT", "/wireguard/Default_1", internal_traffic=text)


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("value", [True, False, "true", "false", "", None])
async def test_number_is_no_yes_and_no_no(api: Api, value: object) -> None:
    answer = (await put(api, json={"b_download": value})).json()
    assert (answer["error"] == "Wrong b_download (only 0-10000)") == (value not in ("", None)), answer
    assert (await api.msg("GET", "/account/one"))["b_download"] == "12"
    if isinstance(value, bool):
        assert "Wrong status" in (await put(api, json={"status": value})).json()["error"]


@pytest.mark.usefixtures("account")
async def test_multipart_under_a_wrong_label_is_read(api: Api) -> None:
    """PHP: an array in CURLOPT_POSTFIELDS, and a header that says urlencoded."""
    line = "--------------------------d74496d66958873e"
    for label, kind in (("application/x-www-form-urlencoded", "attachment"), ("", "form-data"), ("text/plain", "x")):
        body = f'{line}\r\nContent-Disposition: {kind}; name="status"\r\n\r\ndisable\r\n{line}--\r\n'
        await put(api, data={"status": "enable"})
        assert (await put(api, content=body, headers={"content-type": label})).json()["error"] == ""
        assert await status(api) == "disable"


@pytest.mark.usefixtures("account")
async def test_slashes_too_many_are_forgiven(api: Api) -> None:
    plain = (await api.http.get("/api/v1/account/one")).json()
    for path in ("/api/v1/account/one/", "//api/v1//account///one//", "/api//v1/account/one"):
        assert (await api.http.get(httpx.URL("http://gateway").copy_with(raw_path=path.encode()))).json() == plain
    api.http.cookies.clear()
    for path in ("//api/v1/account", "/api/v1//account/", "///api"):
        answer = await api.http.get(httpx.URL("http://gateway").copy_with(raw_path=path.encode()))
        assert answer.json()["error"] == "Not authorized"
    assert (await api.http.get("/healthz/")).text == "ok"


@pytest.mark.usefixtures("account")
async def test_head_works_where_get_does(api: Api) -> None:
    for path in ("/account", "/account/one", "/account/one/config_text", "/wireguard", "/system/status", "/nothing"):
        got, head = await api.http.get(f"/api/v1{path}"), await api.http.head(f"/api/v1{path}")
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-length"] == got.headers["content-length"], path
    api.http.cookies.clear()
    document = await api.http.head("/api/v1/openapi.json")
    assert int(document.headers["content-length"]) > 1000 and document.content == b""
    assert json.loads((await api.http.get("/api/v1/openapi.json")).content)["info"]["description"]
