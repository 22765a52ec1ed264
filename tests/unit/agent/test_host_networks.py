"""Which networks a server may not have on this host, and why."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network

import pytest

from agent.kernel.host.networks import refusal, told
from agent.objects import HostNetwork

HOST = [
    HostNetwork(IPv4Network("10.0.0.0/24"), "eth1"),
    HostNetwork(IPv4Network("172.17.0.0/16"), "docker0"),
    HostNetwork(IPv4Network("203.0.113.0/24"), "eth0"),
    HostNetwork(IPv4Network("192.168.50.7/32"), "eth2"),
    HostNetwork(IPv4Network("127.0.0.0/8"), "lo"),
]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("10.0.0.1/24", "10.0.0.0/24, which the host has on eth1"),
        ("10.0.0.129/25", "on eth1"),
        ("10.0.0.1/8", "on eth1"),
        ("172.17.0.1/16", "on docker0"),
        ("172.17.200.1/30", "on docker0"),
        ("203.0.113.2/24", "on eth0"),
        ("192.168.50.1/24", "on eth2"),
        ("128.0.0.1/1", "too large"),
        ("10.0.0.1/7", "too large"),
        ("0.0.0.1/0", "too large"),
        ("127.0.0.2/8", "meaning of its own"),
        ("169.254.10.1/24", "meaning of its own"),
        ("224.0.0.1/24", "meaning of its own"),
        ("240.0.0.1/24", "meaning of its own"),
        ("0.0.0.1/24", "meaning of its own"),
        ("8.8.8.1/24", "public"),
        ("100.128.0.1/24", "public"),
        ("172.32.0.1/24", "public"),
    ],
)
def test_what_is_refused_says_why(address: str, why: str) -> None:
    assert why in refusal(IPv4Interface(address).network, HOST, allow_public=False)


@pytest.mark.parametrize(
    "address", ["10.0.1.1/24", "172.18.0.1/16", "192.168.51.1/24", "100.64.0.1/16", "198.18.0.1/15"]
)
def test_what_is_private_and_nobody_s_is_right(address: str) -> None:
    assert refusal(IPv4Interface(address).network, HOST, allow_public=False) == ""


def test_public_networks_are_for_who_asks_for_them_and_not_the_host_s_own() -> None:
    assert refusal(IPv4Network("8.8.8.0/24"), HOST, allow_public=True) == ""
    assert "on eth0" in refusal(IPv4Network("203.0.113.0/25"), HOST, allow_public=True)


def test_a_status_tells_of_a_million_routes_the_private_ones() -> None:
    few = [HostNetwork(IPv4Network("10.0.0.0/24"), "eth1"), HostNetwork(IPv4Network("8.8.8.0/24"), "eth0")]
    assert told(few) == tuple(few)
    public = [HostNetwork(IPv4Network((20 << 24 | number << 8, 24)), "eth0") for number in range(20_000)]
    assert told([*public, *few]) == (few[0],)
    private = [HostNetwork(IPv4Network((10 << 24 | number << 8, 24)), "eth0") for number in range(20_000)]
    assert len(told(private)) == 1_000
