"""The way back by a former uplink: which routes are kept in the table `default`, and for whom Linux takes them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.kernel.host.answers import PROTOCOL, Answers
from tests.netns.conftest import enter

WEB = "203.0.113.9"
Ip = Callable[..., str]


@pytest.fixture
def ip(namespace: str) -> Ip:
    def call(*words: str) -> str:
        command = ["ip", "-n", namespace, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout

    for device, address in (("eth0", "198.51.100.2/24"), ("eth1", "192.0.2.2/24"), ("eth2", "100.64.0.2/32")):
        call("link", "add", device, "type", "veth", "peer", "name", f"{device}-far")
        call("address", "add", address, "dev", device)
        call("link", "set", device, "up")
        call("link", "set", f"{device}-far", "up")
    return call


@pytest.fixture
def run(namespace: str) -> Iterator[Callable[..., Any]]:
    with enter(namespace) as run:
        yield run


def kept(ip: Ip) -> set[tuple[str, str]]:
    """Device and gateway of the routes of ours."""
    routes = json.loads(ip("-json", "route", "show", "table", "all") or "[]")
    ours = [route for route in routes if route.get("protocol") == str(PROTOCOL) and route["table"] == "default"]
    return {(route["dev"], route.get("gateway", "")) for route in ours}


def way(ip: Ip, *words: str) -> str:
    """The device that a packet to the internet leaves by; "" = Linux knows no way."""
    try:
        (found,) = json.loads(ip("-json", "route", "get", WEB, *words))
    except subprocess.CalledProcessError:
        return ""
    return f"{found['dev']} {found.get('gateway', 'neighbour')}"


def test_a_former_default_route_is_kept_for_who_is_bound_to_its_interface(ip: Ip, run: Callable[..., Any]) -> None:
    answers = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0")
    run(answers.keep, True)
    assert kept(ip) == set()  # it is in the main table
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    assert way(ip, "oif", "eth0") == "eth0 neighbour"  # which is what loses the answers
    run(answers.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.1")}
    assert way(ip, "oif", "eth0") == "eth0 198.51.100.1"
    assert way(ip) == way(ip, "from", "198.51.100.2") == "eth1 192.0.2.1"  # everything else goes where main says
    run(answers.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.1")}
    ip("route", "replace", "default", "via", "198.51.100.1", "dev", "eth0")
    run(answers.keep, True)
    assert kept(ip) == {("eth1", "192.0.2.1")}
    run(answers.keep, False)  # the last server is gone
    assert kept(ip) == set()


def test_without_any_default_route_nothing_is_kept(ip: Ip, run: Callable[..., Any]) -> None:
    """Who takes the default route away means it: the host has no way to the internet, and gets none from here."""
    answers = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0")
    run(answers.keep, True)
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    ip("route", "del", "default")
    run(answers.keep, True)
    assert (kept(ip), way(ip)) == (set(), "")
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "eth1")  # a redial: eth0 is remembered
    run(answers.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.1")}


def test_after_a_restart_what_stands_is_known(ip: Ip, run: Callable[..., Any]) -> None:
    first = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0")
    run(first.keep, True)
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    run(first.keep, True)
    second = Answers()
    run(second.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.1")}
    run(Answers().keep, False)
    assert kept(ip) == set()


@pytest.mark.parametrize(
    ("words", "device", "gateway"),
    [
        (("via", "172.31.1.1", "dev", "eth2", "onlink"), "eth2", "172.31.1.1"),
        (("dev", "eth0", "scope", "link"), "eth0", ""),
        (("via", "198.51.100.1", "dev", "eth0", "metric", "50"), "eth0", "198.51.100.1"),
    ],
)
def test_routes_of_every_kind_are_kept(
    ip: Ip, run: Callable[..., Any], words: tuple[str, ...], device: str, gateway: str
) -> None:
    answers = Answers()
    ip("route", "add", "default", *words)
    run(answers.keep, True)
    ip("route", "del", "default", *words)
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    assert kept(ip) == {(device, gateway)}
    run(answers.keep, True)
    assert kept(ip) == {(device, gateway)}


def test_the_best_of_several_and_each_of_several_paths_is_remembered(ip: Ip, run: Callable[..., Any]) -> None:
    answers = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0", "metric", "10")
    ip("route", "add", "default", "via", "198.51.100.7", "dev", "eth0", "metric", "20")
    run(answers.keep, True)
    ip("route", "flush", "default")
    ip("route", "add", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.1")}
    hops = "nexthop via 198.51.100.3 dev eth0 nexthop via 192.0.2.1 dev eth1"
    ip("route", "replace", "default", *hops.split())
    run(answers.keep, True)
    assert kept(ip) == set()
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    assert kept(ip) == {("eth0", "198.51.100.3")}


def test_an_interface_that_goes_takes_its_way_along(ip: Ip, run: Callable[..., Any]) -> None:
    answers = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0")
    run(answers.keep, True)
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    ip("link", "set", "eth0", "down")
    run(answers.keep, True)
    assert kept(ip) == set()
    ip("link", "set", "eth0", "up")
    ip("address", "flush", "dev", "eth0")
    run(answers.keep, True)  # its gateway is no neighbour any more
    assert kept(ip) == set()
    ip("link", "del", "eth0")
    run(answers.keep, True)
    assert kept(ip) == set()


def test_what_others_keep_in_that_table_is_left_alone(ip: Ip, run: Callable[..., Any]) -> None:
    ip("route", "add", "default", "via", "198.51.100.9", "dev", "eth0", "table", "default")
    answers = Answers()
    ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth0")
    run(answers.keep, True)
    ip("route", "replace", "default", "via", "192.0.2.1", "dev", "eth1")
    run(answers.keep, True)
    run(answers.keep, False)
    assert "198.51.100.9" in ip("route", "show", "table", "default")
    assert way(ip, "oif", "eth0") == "eth0 198.51.100.9"  # and comes first
    assert kept(ip) == set()
