"""What is read of routes and interfaces, in every spelling of Linux; and that a router's ten thousand cost little."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from agent.kernel.host.answers import Answers
from agent.kernel.host.interfaces import read_device_routes, read_interfaces, read_networks, read_uplink_mtu, uplink
from agent.kernel.host.routes import MAIN_TABLE, Hop, read_defaults
from agent.kernel.tc.shaper import Qdiscs
from agent.objects import Diff, HostNetwork, Qdisc, Scope
from tests.netns.conftest import enter

MANY_ROUTES, MANY_INTERFACES = 10_000, 500
SECONDS = 0.2  # for what decides how soon a default route is followed, with many routes; the library took 0.9 for each


@pytest.fixture
def ip(namespace: str) -> Callable[[str], None]:
    def call(*lines: str) -> None:
        batch = "".join(f"{line}\n" for line in lines)
        command = ["ip", "-n", namespace, "-batch", "-"]
        subprocess.run(command, input=batch, check=True, capture_output=True, text=True, timeout=60)

    for device, address in (("eth0", "198.51.100.2/24"), ("eth1", "192.0.2.2/24")):
        call(f"link add {device} type veth peer name {device}-far", f"address add {address} dev {device}")
        call(f"link set {device} up", f"link set {device}-far up")
    return call


@pytest.fixture
def run(namespace: str) -> Iterator[Callable[..., Any]]:
    with enter(namespace) as run:
        yield run


def hop(run: Callable[..., Any], device: str, gateway: str, *, onlink: bool = False) -> Hop:
    index = run(read_interfaces)[device].index
    return Hop(index, IPv4Address(gateway) if gateway else None, onlink, True)


@pytest.mark.parametrize(
    ("words", "hops"),
    [
        ("via 198.51.100.1", [("eth0", "198.51.100.1")]),
        ("dev eth1 scope link", [("eth1", "")]),
        ("nexthop via 192.0.2.1 nexthop dev eth0", [("eth1", "192.0.2.1"), ("eth0", "")]),
        ("nhid 7", [("eth1", "192.0.2.9")]),
        ("nhid 9", [("eth1", "192.0.2.9"), ("eth0", "198.51.100.9")]),
    ],
)
def test_default_routes_of_every_spelling(
    ip: Callable[..., None], run: Callable[..., Any], words: str, hops: list[tuple[str, str]]
) -> None:
    ip("nexthop add id 7 via 192.0.2.9 dev eth1", "nexthop add id 8 via 198.51.100.9 dev eth0")
    ip("nexthop add id 9 group 7/8")
    ip(f"route add default metric 7 {words}", "route add default via 198.51.100.7 table 300")
    (found,) = run(read_defaults, MAIN_TABLE)
    assert (found.network, found.table, found.priority, found.mtu) == (IPv4Network("0.0.0.0/0"), MAIN_TABLE, 7, 0)
    assert found.hops == tuple(hop(run, *one) for one in hops)
    assert run(uplink, "auto") == hops[0][0]


def test_a_route_with_an_mtu_of_its_own_and_one_that_leads_nowhere(
    ip: Callable[..., None], run: Callable[..., Any]
) -> None:
    ip("route add blackhole default metric 1", "route add default via 192.0.2.1 dev eth1 metric 2 mtu 1400")
    ip("route add default via 198.51.100.1 dev eth0 onlink metric 3")
    nowhere, small, onlink = sorted(run(read_defaults, MAIN_TABLE), key=lambda one: one.priority)
    assert nowhere.hops == (Hop(0, None, False, True),)
    assert small.hops == (hop(run, "eth1", "192.0.2.1"),) and small.mtu == 1400
    assert onlink.hops == (hop(run, "eth0", "198.51.100.1", onlink=True),)
    assert run(uplink, "auto") == "eth1"
    assert (run(read_uplink_mtu, "eth1"), run(read_uplink_mtu, "eth0")) == (1400, 1500)


def test_the_networks_of_the_host_and_those_straight_out_of_an_interface(
    ip: Callable[..., None], run: Callable[..., Any]
) -> None:
    ip("route add 10.7.0.0/16 via 198.51.100.1", "route add 10.8.0.0/16 dev eth1", "route add blackhole 10.9.0.0/16")
    ip("route add 10.10.0.0/16 via 198.51.100.1 table 300", "route add default via 198.51.100.1")
    ip("address add 10.11.0.1 peer 10.12.0.1/32 dev eth1")
    networks = {(str(one.network), one.interface) for one in run(read_networks) if one.interface != "lo"}
    assert networks == {
        ("198.51.100.0/24", "eth0"),
        ("192.0.2.0/24", "eth1"),
        ("10.7.0.0/16", "eth0"),
        ("10.8.0.0/16", "eth1"),
        ("10.9.0.0/16", "a route"),
        ("10.11.0.1/32", "eth1"),
        ("10.12.0.1/32", "eth1"),
    }
    straight = {(str(network), name) for network, name in run(read_device_routes)}
    assert {("198.51.100.0/24", "eth0"), ("10.8.0.0/16", "eth1"), ("10.12.0.1/32", "eth1")} <= straight
    assert not any(str(network) == "10.7.0.0/16" for network, _ in straight)
    (_, second) = run(read_interfaces)["eth1"].addresses
    assert (second.local, second.peer, second.prefix) == (IPv4Address("10.11.0.1"), IPv4Address("10.12.0.1"), 32)


def test_beside_many_routes_a_default_route_is_found_at_once(ip: Callable[..., None], run: Callable[..., Any]) -> None:
    ip("route add default via 198.51.100.1")
    ip(*(f"route add 10.{i >> 8}.{i & 255}.0/24 via 198.51.100.1" for i in range(MANY_ROUTES)))
    began = time.monotonic()
    run(Answers().keep, True)
    assert run(uplink, "auto") == "eth0"
    assert time.monotonic() - began < SECONDS
    assert HostNetwork(IPv4Network("10.3.2.0/24"), "eth0") in run(read_networks)


def test_beside_many_interfaces_one_with_our_root_is_found_at_once(
    ip: Callable[..., None], run: Callable[..., Any]
) -> None:
    ip(*(f"link add v{i} type veth peer name w{i}" for i in range(MANY_INTERFACES // 2)))
    assert run(Qdiscs().apply, Diff(add={"v7": Qdisc("v7")})) == {}
    ip("link set v7 down")
    began = time.monotonic()
    assert set(run(Qdiscs().read, Scope(frozenset(), ""))) == {"v7"}
    assert len(run(read_interfaces)) > MANY_INTERFACES
    assert time.monotonic() - began < SECONDS
