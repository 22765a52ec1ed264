"""One rule for an endpoint, wherever it comes in, and one spelling wherever it goes out."""

from __future__ import annotations

import pytest

from gateway.config import parse_config
from gateway.endpoint import is_right, parsed, with_port
from gateway.errors import ConfigError, InvalidValue
from gateway.fields import server_values
from gateway.store.nodes import checked_endpoint

WRONG = [
    "vpn:80",
    "vpn.example.com:51820",
    "http://vpn.example.com",
    "vpn.example.com/",
    "a b",
    " vpn",
    "vpn\nPostUp = reboot",
    "vpn\r",
    "vpn\x00",
    "2001:db8::1%eth0",
    "[2001:db8::1]:443",
    "[192.0.2.1]",
    "[vpn]",
    "192.0.2.1:80",
    "300.1.1.1",
    "1.2.3",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "vpn.exämple.com",
    "-a.example",
    "a-.example",
    "a..b",
    ".a",
    "x" * 64,
    "a." * 130 + "com",
    "vpn;reboot",
    "$(reboot)",
    "user@vpn",
    "under_score",
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_endpoint_is_refused_at_every_door(text: str) -> None:
    assert not is_right(text)
    with pytest.raises(InvalidValue, match="Wrong endpoint of the node"):
        checked_endpoint(text)
    with pytest.raises(ConfigError, match="endpoint: "):
        parse_config({"endpoint": text})
    if text.strip() == text:
        with pytest.raises(InvalidValue, match="Wrong endpoint"):
            server_values({"endpoint": text})


@pytest.mark.parametrize(
    ("text", "kept", "shown"),
    [
        ("VPN.example.com", "vpn.example.com", "vpn.example.com:51820"),
        ("vpn.example.com.", "vpn.example.com", "vpn.example.com:51820"),
        ("fra1", "fra1", "fra1:51820"),
        ("1and1.example", "1and1.example", "1and1.example:51820"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.1:51820"),
        ("2001:DB8:0::1", "2001:db8::1", "[2001:db8::1]:51820"),
        ("[2001:db8::1]", "2001:db8::1", "[2001:db8::1]:51820"),
    ],
)
def test_an_endpoint_has_one_spelling_and_brackets_where_a_port_follows(text: str, kept: str, shown: str) -> None:
    assert parsed(text) == checked_endpoint(text) == server_values({"endpoint": text}).endpoint == kept
    assert with_port(kept, 51820) == shown
