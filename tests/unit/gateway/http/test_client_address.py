"""gateway/http/caller.py and access.py: whose address counts."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from gateway.http.access import is_open
from gateway.http.caller import MOST_HOPS, caller_of

TRUSTED = (ip_network("127.0.0.1/32"), ip_network("10.0.0.0/24"), ip_network("fd00::/64"))


def seen(peer: str | None, *forwarded: str) -> str | None:
    headers = [(b"x-forwarded-for", line.encode()) for line in forwarded]
    scope = {"type": "http", "headers": headers, "client": (peer, 1234) if peer else None}
    found = caller_of(scope, TRUSTED)
    assert (found.address is None) == bool(found.problem)
    return None if found.address is None else str(found)


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
        ("127.0.0.1", ["10.0.0.7"], "10.0.0.7"),
        # a proxy of ours that names nobody vouches for nobody
        ("127.0.0.1", [], None),
        ("127.0.0.1", [""], None),
        ("127.0.0.1", ["203.0.113.9,"], None),
        ("127.0.0.1", ["203.0.113.9,, 10.0.0.7"], None),
        ("127.0.0.1", ["203.0.113.9", ""], None),
        ("127.0.0.1", ["1.1.1.1,, 203.0.113.9"], "203.0.113.9"),
        # with a port, in brackets, in quotes, with a zone
        ("127.0.0.1", ["203.0.113.7:51234"], "203.0.113.7"),
        ("127.0.0.1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("127.0.0.1", ["[2001:db8::7]"], "2001:db8::7"),
        ("127.0.0.1", ['"[2001:db8::7]:443"'], "2001:db8::7"),
        ("127.0.0.1", ['"203.0.113.7"'], "203.0.113.7"),
        ("127.0.0.1", ['"203.0.113.7:80"'], "203.0.113.7"),
        ("127.0.0.1", ['203.0.113.7:1, 10.0.0.7:65535, "10.0.0.8"'], "203.0.113.7"),
        ("127.0.0.1", ["[::ffff:203.0.113.7]:443"], "203.0.113.7"),
        ("127.0.0.1", ["fe80::7%eth0"], "fe80::7"),
        ("127.0.0.1", ["[fe80::7%eth0]:443"], "fe80::7"),
        ("fe80::7%eth0\nevent=x", [], "fe80::7"),
        # nonsense from a proxy of ours lets nobody in
        *(("127.0.0.1", [hop], None) for hop in ("unknown", "_hidden", "203.0.113.9, 10.0.0.7, for=1", "for=1.2.3.4")),
        *(("127.0.0.1", [hop], None) for hop in ("[2001:db8::7", "2001:db8::7]", "[203.0.113.7]:80", "[]:80", "[]")),
        *(("127.0.0.1", [hop], None) for hop in ("203.0.113.7:", "203.0.113.7:65536", "203.0.113.7:x", ":80", '"')),
        *(("127.0.0.1", [hop], None) for hop in ('"203.0.113.7', "203.0.113.7%eth0", "300.1.1.1", "010.1.1.1", "7")),
        ("127.0.0.1", [",".join(["203.0.113.9", *["10.0.0.7"] * (MOST_HOPS - 1)])], "203.0.113.9"),
        ("127.0.0.1", [",".join(["203.0.113.9", *["10.0.0.7"] * (MOST_HOPS + 1)])], None),
    ],
)
def test_client_address(peer: str | None, forwarded: list[str], client: str | None) -> None:
    assert seen(peer, *forwarded) == client


def test_nobody_is_believed_where_no_proxy_is_trusted() -> None:
    scope = {"type": "http", "headers": [(b"x-forwarded-for", b"203.0.113.9")], "client": ("127.0.0.1", 1)}
    assert caller_of(scope, ()).address == ip_address("127.0.0.1")


def test_everything_under_api_needs_a_key_but_the_openapi_document() -> None:
    assert [path for path in ("/api", "/api/", "/api/v1/account", "/api/v1/nothing") if is_open(path)] == []
    assert all(is_open(path) for path in ("/", "/healthz", "/otl/x", "/apis", "/api/v1/openapi.json"))
