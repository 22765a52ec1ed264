"""Each part by itself: what its objects are called, and whose they are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, ip_network
from typing import Any

import pytest

from agent.desired import Desired, Snapshot
from agent.model import NO_SECRET, FilterRule, PortForward
from agent.objects import (
    DAMAGED,
    FILTER_KEY,
    NAT_PORTS,
    Class,
    Filter,
    Forwarding,
    ForwardingIPv6,
    Gate,
    Link,
    LoginRow,
    Mark,
    Peer,
    Port,
    Qdisc,
    Responder,
)
from agent.parts import (
    ACCOUNT_PARTS,
    CLASSES,
    FILTER,
    FORWARDING,
    GATE,
    LINKS,
    LOGINS,
    MARKS,
    PARTS,
    PEERS,
    PORTS,
    QDISCS,
    RESPONDER,
    AccountPart,
    Part,
)
from agent.parts.forwarding import free_ports
from agent.wanted import wanted
from tests.fakes.state import EPOCH, IKEV2, account, key, login, server

TALL = {"server": "s2", "address": IPv4Address("10.0.2.9"), "mark": 40_960}
LED = account(2, login=login(2), ports=(PortForward("tcp", 80, 8080),))
NO_MAIL = FilterRule(False, ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"), "tcp", 0, 25)
SERVERS = server(1, ikev2=IKEV2, filter=(NO_MAIL,)), server(2, filter=(NO_MAIL,))
DESIRED = Desired.of(EPOCH, Snapshot(1, SERVERS, (LED, account(3, **TALL))))
IPV6 = IPv6Address("fd77::2")
LINK = Link("wg1", server().private_key, 51821, IPv4Interface("10.0.1.1/24"), 1420)
WAY = Forwarding("wg1", IPv4Interface("10.0.1.1/24"), "eth0", 51821, False, None)


@pytest.mark.parametrize(
    ("part", "one", "told"),
    [
        (LINKS, LINK, "wg1 10.0.1.1/24 UDP 51821 MTU 1420"),
        (QDISCS, Qdisc("eth0"), "eth0"),
        (CLASSES, Class("wg1", 0x109, 20), "wg1 1:109 20 Mbit/s"),
        (CLASSES, Class("wg1", 0x109, 1), "wg1 1:109 1 Mbit/s"),
        (CLASSES, Class("wg1", 0x109, 0), "wg1 1:109 not as it should be"),
        (FORWARDING, WAY, "wg1 10.0.1.0/24 to eth0"),
        (
            FORWARDING,
            replace(WAY, ipv6=ForwardingIPv6(IPv6Interface("fd00:1::1/64"), True)),
            "wg1 10.0.1.0/24, fd00:1::/64 to eth0",
        ),
        (FORWARDING, replace(WAY, interface=""), "rules that are damaged or nobody's"),
        (MARKS, Mark(IPv4Address("10.0.1.2"), 109), "10.0.1.2 0x6d"),
        (MARKS, Mark(IPv4Address("10.0.1.2"), 0), "rules that are damaged or nobody's"),
        (PEERS, Peer("wg1", key(2), IPv4Address("10.0.1.2")), "wg1 10.0.1.2"),
        (PEERS, Peer("wg1", key(2), None), "wg1 without an address of ours"),
        (LOGINS, LoginRow("user_2", NO_SECRET, IPv4Address("10.0.1.2")), "user_2 10.0.1.2"),
        (LOGINS, LoginRow("user_2", NO_SECRET, IPv4Address("10.0.1.2"), address_ipv6=IPV6), "user_2 10.0.1.2 fd77::2"),
        (PORTS, Port("tcp", 80, IPv4Address("10.0.1.2"), 8080, None, "eth0"), "tcp/80 to 10.0.1.2:8080"),
        (PORTS, Port("", 0, IPv4Address(0), 0, None, ""), "rules that are damaged"),
        (RESPONDER, Responder("ipsec0"), "ipsec0"),
        (RESPONDER, Responder("ipsec0", ipv6=True), "ipsec0 with IPv6"),
        (GATE, Gate("ipsec0", "0123"), "ipsec0 0123"),
        (GATE, Gate("ipsec0", "0123", ipv6=True), "ipsec0 0123 with IPv6"),
        (FILTER, Filter((NO_MAIL,), frozenset({"wg1"})), "1 rules"),
        (FILTER, DAMAGED, "rules that are damaged"),
    ],
)
def test_an_object_is_told_from_others_of_its_kind(part: Part[Any, Any], one: Any, told: str) -> None:
    assert part.detail(one) == told


@pytest.mark.parametrize("part", ACCOUNT_PARTS, ids=lambda part: part.name)
def test_whose_an_object_is_tells_its_key(part: AccountPart[Any, Any]) -> None:
    held = wanted(DESIRED, "eth0")[part]
    assert held and {key: part.owner(DESIRED, key) for key in held} == {key: one.owner for key, one in held.items()}


@pytest.mark.parametrize(
    ("part", "nobodys"),
    [
        (CLASSES, ("wg1", 0x999)),
        (CLASSES, ("wg1", 0xA)),
        (MARKS, IPv4Address("10.0.1.99")),
        (PEERS, ("wg1", key(3))),
        (PEERS, ("wg9", key(2))),
        (LOGINS, "user_3"),
        (PORTS, ("udp", 80)),
    ],
)
def test_what_is_not_an_accounts_is_nobodys(part: AccountPart[Any, Any], nobodys: Any) -> None:
    assert part.owner(DESIRED, nobodys) == 0


def test_an_object_is_on_the_device_that_its_key_names() -> None:
    want = wanted(DESIRED, "eth0")
    on = {part.name: {part.device(key) for key in want[part]} for part in PARTS}
    links, all_ = {"wg1", "wg2"}, {"wg1", "wg2", "eth0", "ipsec0"}
    assert on == {
        "links": links,
        "qdiscs": all_,
        "classes": all_,
        "filter": {""},
        "forwarding": links,
        "marks": {""},
        "peers": links,
        "responder": {"ipsec0"},
        "logins": {"ipsec0"},
        "ports": {""},
        "gate": {"ipsec0"},
    }


def test_a_filter_is_the_node_s_and_its_ports_are_of_one_protocol_each() -> None:
    ways = IPv4Network("10.0.0.0/8"), IPv4Network("0.0.0.0/0")
    ports = (7, 25), (7, 0), (0, 25)
    rules = FilterRule(True, *ways), *(FilterRule(False, *ways, "any", *two) for two in ports)
    rules = *rules, FilterRule(False, *ways, "icmp")
    servers = server(1, ikev2=IKEV2, filter=rules), server(2, filter=rules)
    both = (FilterRule(False, *ways, one, *two) for two in ports for one in ("tcp", "udp"))
    each = rules[0], *both, rules[-1]
    held = wanted(Desired.of(EPOCH, Snapshot(1, servers)), "eth0")[FILTER]
    assert held == {FILTER_KEY: Filter(each, frozenset({"wg1", "wg2", "ipsec0"}))}
    assert wanted(Desired.of(EPOCH, Snapshot(1, (server(1),))), "eth0")[FILTER] == {}


@pytest.mark.parametrize(
    ("listening", "ports"),
    [
        ((), NAT_PORTS),
        ((51_820, 9_999, 32_768, 0), NAT_PORTS),
        ((10_000,), (10_001, 32_767)),
        ((25_000, 25_001), (10_000, 24_999)),
        ((12_000, 32_767), (12_001, 32_766)),
    ],
)
def test_connections_of_accounts_come_from_ports_where_no_server_listens(
    listening: tuple[int, ...], ports: tuple[int, int]
) -> None:
    assert free_ports(listening) == ports
