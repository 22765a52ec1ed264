"""gateway/http/access.py: whose address counts."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.http.access import client_address, is_open

TRUSTED = (ip_network("127.0.0.1/32"), ip_network("10.0.0.0/24"), ip_network("fd00::/64"))


def seen(peer: str | None, *forwarded: str) -> str | None:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    scope = {"type": "http", "headers": headers, "client": (peer, 1234) if peer else None}
    found = client_address(scope, TRUSTED)
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("::ffff:192.0.2.1", [], "192.0.2.1"),
        ("2001:db8::1", [], "2001:db8::1"),
        (None, [], None),
        ("unix", [], None),
        # a stranger may write what he likes
        ("192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        # a proxy of ours is believed, but only for the hop that it saw itself
        ("127.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("::ffff:127.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1, 203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),
        ("127.0.0.1", ["203.0.113.9, 10.0.0.7"], "203.0.113.9"),
        ("fd00::5", ["203.0.113.9 , 10.0.0.7,127.0.0.1"], "203.0.113.9"),
        # only proxies of ours in sight: the first of them is the caller
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["10.0.0.7"], "10.0.0.7"),
        ("127.0.0.1", [""], "127.0.0.1"),
        # nonsense from a proxy of ours lets nobody in
        ("127.0.0.1", ["unknown"], None),
        ("127.0.0.1", ["203.0.113.9, 10.0.0.7, for=1"], None),
    ],
)
def test_client_address(peer: str | None, forwarded: list[str], client: str | None) -> None:
    assert seen(peer, *forwarded) == client


def test_nobody_is_believed_where_no_proxy_is_trusted() -> None:
    scope = {"type": "http", "headers": [(b"x-forwarded-for", b"203.0.113.9")], "client": ("127.0.0.1", 1)}
    assert client_address(scope, ()) == ip_address("127.0.0.1")


def test_everything_under_api_needs_a_key_but_the_openapi_document() -> None:
    assert [path for path in ("/api", "/api/", "/api/v1/account", "/api/v1/nothing") if is_open(path)] == []
    assert all(is_open(path) for path in ("/", "/healthz", "/otl/x", "/apis", "/api/v1/openapi.json"))
