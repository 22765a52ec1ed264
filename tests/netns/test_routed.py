"""A stranger's route or rule that takes our packets elsewhere, and an external_ip that is not there: named."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest

from agent.kernel.host.interfaces import read_addresses, read_networks, read_uplink_mtu
from agent.kernel.host.routed import MOST_TOLD, narrow, warnings
from agent.model import Reach
from agent.objects import Forwarding, HostNetwork
from tests.netns.conftest import enter

SERVER = Forwarding("wg1", IPv4Interface("10.0.0.1/24"), "eth0", 51821, False, None)


class Node:
    """A node whose link is only an interface: what it leads to is Linux' business."""

    def __init__(self, namespace: str, run: Callable[..., Any]) -> None:
        self._namespace, self.run = namespace, run
        for device, address in (("eth0", "203.0.113.2/24"), ("tun9", "172.20.0.1/24"), ("wg1", "10.0.0.1/24")):
            self.ip("link", "add", device, "type", "veth", "peer", "name", f"{device}-far")
            self.ip("address", "add", address, "dev", device)
            for end in (device, f"{device}-far"):
                self.ip("link", "set", end, "up")
        self.ip("route", "add", "default", "via", "203.0.113.1")
        self.sysctl("net.ipv4.conf.all.forwarding=1")

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self._namespace, *words], check=True, timeout=10)

    def sysctl(self, word: str) -> None:
        subprocess.run(["ip", "netns", "exec", self._namespace, "sysctl", "-qw", word], check=True, timeout=10)

    def warnings(self, *servers: Forwarding) -> tuple[str, ...]:
        def look() -> tuple[str, ...]:
            host = [one for one in read_networks() if not one.interface.startswith("wg")]
            return warnings(servers or (SERVER,), host, read_addresses())

        told: tuple[str, ...] = self.run(look)
        return told


@pytest.fixture
def node(namespace: str) -> Iterator[Node]:
    with enter(namespace) as run:
        yield Node(namespace, run)


def test_where_everything_is_right_nothing_is_told(node: Node) -> None:
    assert node.warnings() == ()
    node.ip("route", "add", "10.0.0.0/8", "via", "172.20.0.2")  # larger than ours, and gives way to it
    node.ip("rule", "add", "fwmark", "0x99", "table", "77")
    node.sysctl("net.ipv4.conf.eth0.rp_filter=1")
    assert node.warnings() == ()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("route", "add", "10.0.0.128/25", "via", "172.20.0.2"), "10.0.0.128/25 leads to tun9 and lies in 10.0.0.0/24"),
        (("route", "add", "10.0.0.9", "dev", "tun9"), "10.0.0.9/32 leads to tun9"),
        (("address", "add", "10.0.0.77/30", "dev", "tun9"), "10.0.0.76/30 leads to tun9"),
    ],
)
def test_a_route_to_a_part_of_a_servers_network_is_named(node: Node, words: tuple[str, ...], told: str) -> None:
    node.ip(*words)
    assert any(told in warning and "wg1" in warning for warning in node.warnings())


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (("from", "10.0.0.0/24"), "what comes in by wg1 for the internet is led to tun9 and not to eth0"),
        (("iif", "wg1"), "what comes in by wg1 for the internet is led to tun9 and not to eth0"),
        (("to", "10.0.0.0/24"), "what comes in by eth0 for 10.0.0.0/24 is led to tun9 and not to wg1"),
        (("iif", "eth0"), "what comes in by eth0 for 10.0.0.0/24 is led to tun9 and not to wg1"),
    ],
)
def test_a_rule_that_takes_our_packets_is_named(node: Node, rule: tuple[str, ...], told: str) -> None:
    node.ip("route", "add", "default", "dev", "tun9", "table", "77")
    node.ip("rule", "add", *rule, "table", "77")
    assert any(told in warning for warning in node.warnings())
    node.ip("rule", "del", *rule, "table", "77")
    assert node.warnings() == ()


@pytest.mark.parametrize("route", [("default", "dev", "lo"), ("local", "default", "dev", "lo")])
def test_a_rule_that_leads_our_packets_into_this_box_is_named(node: Node, route: tuple[str, ...]) -> None:
    node.ip("route", "add", *route, "table", "77")
    node.ip("rule", "add", "iif", "wg1", "table", "77")
    assert any("what comes in by wg1 for the internet is led to" in warning for warning in node.warnings())


def test_a_rule_that_forbids_is_named(node: Node) -> None:
    node.ip("rule", "add", "from", "10.0.0.0/24", "prohibit")
    assert any("for the internet is led to nowhere" in warning for warning in node.warnings())


def test_a_server_without_a_way_out_and_one_with_a_narrow_reach_are_asked_for_what_they_do(node: Node) -> None:
    narrow = Forwarding(
        "wg1", SERVER.address, "eth0", 51821, False, None, Reach(False, (IPv4Network("172.20.0.128/25"),))
    )
    assert any("led to tun9 and not to eth0" in warning for warning in node.warnings(narrow))
    assert node.warnings(Forwarding("wg1", SERVER.address, "", 51821, False, None)) == ()


def test_an_external_ip_that_the_box_does_not_have_is_named(node: Node) -> None:
    def server(external: str) -> Forwarding:
        return Forwarding("wg1", SERVER.address, "eth0", 51821, False, IPv4Address(external))

    assert any("external_ip 203.0.113.9 of wg1 is no address" in text for text in node.warnings(server("203.0.113.9")))
    assert node.warnings(server("203.0.113.2")) == ()
    node.ip("address", "add", "203.0.113.9/32", "dev", "eth0")
    assert node.warnings(server("203.0.113.9")) == ()


def test_what_leaves_an_uplink_whole_is_its_mtu_or_that_of_its_default_route(node: Node) -> None:
    def whole() -> int:
        mtu: int = node.run(read_uplink_mtu, "eth0")
        return mtu

    assert whole() == 1500
    node.ip("link", "set", "eth0", "mtu", "1492")
    assert whole() == 1492
    node.ip("route", "replace", "default", "via", "203.0.113.1", "mtu", "1460")
    assert whole() == 1460
    node.ip("route", "add", "default", "via", "172.20.0.2", "dev", "tun9", "metric", "9", "mtu", "1300")
    assert whole() == 1460


def test_an_uplink_that_is_too_narrow_is_told() -> None:
    assert list(narrow("eth0", 1360)) == []
    assert "the MTU of eth0 is 1340: a tunnel needs 1360" in next(narrow("eth0", 1340))


def test_a_thousand_servers_with_one_trouble_are_a_few_lines() -> None:
    servers = [Forwarding(f"wg{n}", IPv4Interface(f"10.{n}.0.1/16"), "", 0, False, None) for n in range(1, 200)]
    host = [HostNetwork(IPv4Network("10.0.0.0/9"), "x"), *(HostNetwork(one.network, "docker0") for one in servers)]
    told = warnings(servers, host, ())
    assert len(told) == MOST_TOLD + 1 and told[-1].startswith("and 196 more")
