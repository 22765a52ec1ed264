"""gateway/http/v1/forms.py: whatever clients call their bodies, fields come out; what cannot be read is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from gateway.errors import InvalidValue
from gateway.http import body as bodies
from gateway.http.envelope import HttpError
from gateway.http.v1 import forms

URLENCODED = "application/x-www-form-urlencoded"
LIMIT = 2000
BOUNDARY = "----boundary7MA4YWxk"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def request(chunks: Iterable[bytes], content_type: str, length: int | None = None) -> Request:
    headers = [(b"content-type", content_type.encode())] if content_type else []
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    left = list(chunks)

    async def receive() -> Message:
        body = left.pop(0) if left else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def read(body: bytes, content_type: str = URLENCODED) -> dict[str, str]:
    return form_of(request([body], content_type))


def form_of(request: Request) -> dict[str, str]:
    body, query = asyncio.run(forms.read_form(request, LIMIT))
    assert query == []
    return dict(body)


def refused(body: bytes, content_type: str = URLENCODED) -> int:
    with pytest.raises(HttpError) as caught:
        read(body, content_type)
    return caught.value.status


def multipart(*parts: tuple[str, bytes]) -> bytes:
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in parts
    )
    return body + f"--{BOUNDARY}--\r\n".encode()


@pytest.mark.parametrize(
    "content_type", [URLENCODED, f"{URLENCODED}; charset=UTF-8", "", "text/plain", "application/x"]
)
def test_urlencoded_is_read_under_any_label(content_type: str) -> None:
    body = b"wg_name=Default_1&password=a%2Bb+c%26&name=&b_download=12"
    fields = {"wg_name": "Default_1", "password": "a+b c&", "name": "", "b_download": "12"}
    assert read(body, content_type) == fields


def test_empty_body_has_no_fields() -> None:
    assert read(b"") == read(b"", "") == read(b"", "application/json") == read(b"", MULTIPART) == {}
    assert read(b"{}", "application/json") == read(multipart(), MULTIPART) == {}


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", URLENCODED, ""])
def test_json_is_read_under_any_label(content_type: str) -> None:
    body = b' {"name": "a", "b_download": 12, "mtu": 1420.0, "internal_traffic": true, "ikev2": false, "dns_1": null}'
    fields = {"name": "a", "b_download": "12", "mtu": "1420.0", "internal_traffic": "true", "ikev2": "false"}
    assert read(body, content_type) == fields


def test_multipart_is_read_whatever_is_in_it() -> None:
    body = multipart(("name", b"a"), ("password", b"--x\r\n- \r\nlast"), ("empty", b""), ("name", "ü".encode()))
    assert read(body, MULTIPART) == {"name": "ü", "password": "--x\r\n- \r\nlast", "empty": ""}


def test_multipart_arrives_in_the_smallest_pieces() -> None:
    body = multipart(("name", b"value"), ("other", b"1"))
    pieces = request([body[at : at + 1] for at in range(len(body))], MULTIPART)
    assert form_of(pieces) == {"name": "value", "other": "1"}


def test_file_of_a_multipart_form_is_a_field() -> None:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="private_key"; filename="k"\r\n'
    body = head.encode() + b"Content-Type: application/octet-stream\r\n\r\nKEY\r\n" + f"--{BOUNDARY}--".encode()
    assert read(body, MULTIPART) == {"private_key": "KEY"}


TWICE = {
    "urlencoded": (b"b_download=7&x=1&b_download=9&x=2", URLENCODED),
    "json": (b'{"b_download": 7, "x": 1, "b_download": "9", "x": 2}', "application/json"),
    "multipart": (multipart(("b_download", b"7"), ("x", b"1"), ("b_download", b"9"), ("x", b"2")), MULTIPART),
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_known_field_with_two_values_is_refused_by_name(kind: str) -> None:
    pairs, _ = asyncio.run(forms.read_form(request([TWICE[kind][0]], TWICE[kind][1]), LIMIT))
    for body, query, where in ((pairs, [], "the body"), ([], pairs, "the query")):
        with pytest.raises(InvalidValue) as caught:
            forms.merged(body, query, ["b_upload", "b_download"])
        assert str(caught.value) == f"Wrong b_download (it is twice in {where}, with different values)"
    assert dict(forms.merged(pairs, [], ["b_upload"])) == {"b_download": "9", "x": "2"}, "what no call knows"


def test_a_field_that_is_there_twice_with_one_value_has_it() -> None:
    body = [("status", "enable")] * 2
    assert dict(forms.merged(body, body, ["status"])) == {"status": "enable"}
    assert read(b'{"a": null, "a": 1, "b": 2, "b": null}') == {"a": "1", "b": "2"}, "null is an absent field"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"name=\xff", URLENCODED),
        (b"name=%ff", URLENCODED),
        (b"&".join(b"a%d=1" % number for number in range(101)), URLENCODED),
        (b'{"name": "\xff"}', "application/json"),
        (b'["name"]', "application/json"),
        (b"{", "application/json"),
        (b"{" * 1999, "application/json"),
        (b'{"a":' + b"[" * 1990, "application/json"),
        (multipart(("name", b"\xff")), MULTIPART),
        (multipart(("name", b"a"))[:-8], MULTIPART),
        (b"nothing of the kind", MULTIPART),
        (multipart(("name", b"a")), "multipart/form-data"),
        (f"--{BOUNDARY}\r\n\r\nno name\r\n--{BOUNDARY}--".encode(), MULTIPART),
    ],
)
def test_what_cannot_be_read_is_malformed(body: bytes, content_type: str) -> None:
    assert refused(body, content_type) == 400


def test_body_at_the_limit_is_read_and_one_byte_more_is_not() -> None:
    assert len(read(b"name=" + b"a" * (LIMIT - 5))["name"]) == LIMIT - 5
    assert refused(b"name=" + b"a" * (LIMIT - 4)) == 413


def test_client_that_asks_first_is_refused_before_it_sends_anything() -> None:
    asking = request([], URLENCODED, length=LIMIT + 1)
    asking.scope["headers"].append((b"expect", b"100-continue"))
    with pytest.raises(HttpError) as caught:
        asyncio.run(forms.read_form(asking, LIMIT))
    assert (caught.value.status, caught.value.headers["Connection"]) == (413, "close")


def test_body_that_is_too_long_is_read_to_its_end_but_not_kept() -> None:
    """A client that is still sending would not see the answer."""
    left = [b"a" * 1000] * 50
    with pytest.raises(HttpError) as caught:
        asyncio.run(forms.read_form(request(left, URLENCODED), LIMIT))
    assert caught.value.status == 413


def test_body_without_end_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "DISCARDED_BYTES", 10 * LIMIT)
    sent = 0

    async def endless() -> Message:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": b"a" * 100, "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(HttpError) as caught:
        asyncio.run(forms.read_form(Request(scope, endless), LIMIT))
    assert (caught.value.status, sent) == (413, 11 * LIMIT // 100 + 1)


def test_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.01)

    async def never() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(HttpError) as caught:
        asyncio.run(
            forms.read_form(Request({"type": "http", "method": "POST", "path": "/", "headers": []}, never), LIMIT)
        )
    assert caught.value.status == 408


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(max_size=200), st.sampled_from([URLENCODED, MULTIPART, "application/json", "", "multipart/form-data"]))
def test_any_bytes_are_fields_or_malformed(body: bytes, content_type: str) -> None:
    try:
        fields = read(body, content_type)
    except HttpError as error:
        status, fields = error.status, {}
        assert status == 400
    assert all(isinstance(text, str) for pair in fields.items() for text in pair)


FORMS = st.dictionaries(st.from_regex(r"[a-zA-Z_]{1,12}", fullmatch=True), st.text(max_size=40), max_size=8)


@settings(deadline=None)  # a busy machine is no failure
@given(FORMS)
def test_what_a_client_encodes_is_what_comes_out(form: dict[str, str]) -> None:
    for encoded in (
        httpx.Request("POST", "http://x", data=form),
        httpx.Request("POST", "http://x", json=form),
        httpx.Request("POST", "http://x", files={name: (None, value.encode()) for name, value in form.items()}),
    ):
        body, content_type = encoded.read(), encoded.headers.get("content-type", "")
        if body and len(body) < LIMIT:
            assert read(body, content_type) == form
