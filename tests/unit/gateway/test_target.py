"""One rule for where an agent is called."""

from __future__ import annotations

import pytest

from gateway.target import address, parsed


@pytest.mark.parametrize(
    ("text", "kept", "at"),
    [
        ("198.51.100.11:7443", "198.51.100.11:7443", ("198.51.100.11", 7443)),
        ("Fra.Example.COM.:7443", "fra.example.com:7443", ("fra.example.com", 7443)),
        ("[2001:db8:0:0::1]:1", "[2001:db8::1]:1", ("2001:db8::1", 1)),
        ("fra:65535", "fra:65535", ("fra", 65535)),
    ],
)
def test_an_agent_on_another_host_has_an_address_and_a_port(text: str, kept: str, at: tuple[str, int]) -> None:
    assert parsed(text) == parsed(kept) == kept
    assert address(kept) == at


def test_an_agent_on_this_host_has_a_socket() -> None:
    longest = "unix:/" + "x" * 106
    for text in ("unix:/run/wirelane-agent/agent.sock", longest):
        assert parsed(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fra",
        "fra:",
        ":7443",
        "fra:0",
        "fra:65536",
        "fra:٣",
        "fra:7443 ",
        "a b:7443",
        "192.0.2.1",
        "0.0.0.0:7443",
        "2001:db8::1:7443",
        "2001:db8::1",
        "[2001:db8::1]",
        "[192.0.2.1]:7443",
        "dns:fra:7443",
        "https://fra:7443",
        "unix:agent.sock",
        "unix:",
        "unix:/",
        "unix://run/agent.sock",
        "unix:/run/\n",
        "unix:/" + "x" * 107,
        "UNIX:/run/agent.sock",
    ],
)
def test_what_cannot_be_one_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|an absolute path: unix:/|Linux allows 107 bytes"):
        parsed(text)
