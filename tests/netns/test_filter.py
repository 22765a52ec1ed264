"""The operator's rules for what accounts send and get: real packets beside both backends, repairs, whose it is."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, ip_network
from itertools import product
from typing import Any

import pytest

from agent.kernel.linux import backend_doors
from agent.kernel.nftables.filter import Filters
from agent.model import EVERYWHERE, FilterRule, Reach
from agent.objects import DAMAGED, FILTER_KEY, Diff, Filter, Forwarding, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, ip, nft, sysctl

SCOPE = Scope(frozenset({"wg0", "wg1"}), "up0")
LINKS = frozenset({"wg0", "wg1"})
ANY = "0.0.0.0/0"
OPEN = Reach(False, (EVERYWHERE,))
WG0 = Forwarding("wg0", IPv4Interface("10.66.0.1/24"), "up0", 51820, True, None, OPEN)
WG1 = Forwarding("wg1", IPv4Interface("10.67.0.1/24"), "up0", 51821, False, None, OPEN)


def rule(accepts: bool, source: str, destination: str, protocol: str = "any", *ports: int) -> FilterRule:
    return FilterRule(accepts, ip_network(source), ip_network(destination), protocol, *ports)


NO_MAIL = rule(False, ANY, ANY, "udp", 0, 25)


@dataclass
class Box:
    crossing: Crossing
    call: Callable[..., Any]
    part: Filters

    def make(self, *rules: FilterRule, devices: frozenset[str] = LINKS) -> None:
        assert self.call(self.part.apply, Diff(add={FILTER_KEY: Filter(rules, devices)})) == {}
        assert self.read() == Filter(rules, devices)

    def read(self) -> Filter | None:
        found: Filter | None = self.call(self.part.read, SCOPE).get(FILTER_KEY)
        return found

    def nft(self, line: str) -> str:
        return nft(self.crossing.router, line)


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    crossing = build(make_namespace, "wg")
    with enter(crossing.router) as call:
        forwarding = backend_doors()[request.param].forwarding
        assert call(forwarding.apply, Diff(add={"wg0": WG0, "wg1": WG1})) == {}
        yield Box(crossing, call, Filters())
        assert set(call(forwarding.read, SCOPE)) == {"wg0", "wg1"}
    crossing.close()


def test_what_is_dropped_does_not_pass_and_all_else_does(box: Box) -> None:
    assert box.read() is None
    assert box.crossing.passes(ALICE, INTERNET, 25) and box.crossing.passes(ALICE, BOB, 25)
    box.make(NO_MAIL)
    assert not box.crossing.passes(ALICE, INTERNET, 25) and not box.crossing.passes(ALICE, BOB, 25)
    assert box.crossing.passes(ALICE, INTERNET, 26) and box.crossing.passes(CAROL, INTERNET, 26)
    assert box.call(box.part.apply, Diff(remove={FILTER_KEY: Filter((NO_MAIL,), LINKS)})) == {}
    assert box.read() is None and box.crossing.passes(ALICE, INTERNET, 25)


def test_the_first_rule_that_fits_decides(box: Box) -> None:
    box.make(rule(True, f"{ALICE}/32", ANY), rule(False, "10.66.0.0/24", f"{INTERNET}/32"), rule(True, ANY, ANY))
    assert box.crossing.passes(ALICE, INTERNET) and not box.crossing.passes(BOB, INTERNET)
    assert box.crossing.passes(BOB, ALICE) and box.crossing.passes(CAROL, INTERNET)
    box.make(rule(False, "10.66.0.0/24", f"{INTERNET}/32"), rule(True, f"{ALICE}/32", ANY))
    assert not box.crossing.passes(ALICE, INTERNET)


def test_answers_are_met_by_rules_for_where_they_come_from(box: Box) -> None:
    box.make(rule(False, f"{INTERNET}/32", "10.66.0.0/24"))
    asking, asked = box.crossing.udp(ALICE), box.crossing.udp(INTERNET)
    asking.settimeout(0.3)
    asking.sendto(b"question", asked.getsockname())
    question, asker = asked.recvfrom(100)
    asked.sendto(question, asker)
    with pytest.raises(TimeoutError):
        asking.recv(100)
    assert box.crossing.passes(CAROL, INTERNET)


def test_what_is_accepted_opens_nothing_that_a_server_closes(box: Box) -> None:
    box.make(rule(True, ANY, ANY))
    assert not box.crossing.passes(ALICE, CAROL) and not box.crossing.passes(INTERNET, ALICE)


def test_what_is_not_for_accounts_is_left_alone(box: Box) -> None:
    box.make(rule(False, ANY, ANY), devices=frozenset({"wg0"}))
    assert not box.crossing.passes(ALICE, INTERNET)
    assert box.crossing.passes(CAROL, INTERNET), "another's link, although it is called like ours"
    router = box.crossing.udp("10.66.0.1"), box.crossing.udp(ALICE)
    router[0].sendto(b"hello", router[1].getsockname())
    assert router[1].recv(100) == b"hello", "what the host itself sends is its own"


RULES = [
    rule(accepts, source, destination, protocol, *ports)
    for ends in (("10.0.0.0/8", "192.0.2.7/32", ANY), ("2001:db8::/32", "2001:db8::1/128", "::/0"))
    for accepts, source, destination in product((True, False), ends, ends)
    for protocol, ports in (
        ("any", (0, 0)),
        ("icmp", (0, 0)),
        *((protocol, ports) for protocol in ("tcp", "udp") for ports in ((0, 0), (7, 0), (0, 25), (65_535, 1))),
    )
]


def test_every_kind_of_rule_reads_back_as_it_was_written(box: Box) -> None:
    box.make(*RULES)
    for one in RULES:
        box.make(one, devices=frozenset({"wg0", "ipsec0"}))


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet wirelane_filter rules",
        "flush chain inet wirelane_filter forward",
        "insert rule inet wirelane_filter rules accept",
        "add rule inet wirelane_filter rules tcp dport 1-3 drop",
        "add rule inet wirelane_filter rules ip saddr != 10.0.0.1 drop",
        "add rule inet wirelane_filter rules ip saddr { 10.0.0.1, 10.0.0.2 } accept",
        "add rule inet wirelane_filter rules meta l4proto sctp drop",
        "insert rule inet wirelane_filter rules meta l4proto esp accept",
        "add rule inet wirelane_filter rules meta l4proto { tcp, udp } drop",
        "add rule inet wirelane_filter rules meta l4proto { tcp, udp } th dport 25 drop",
        "add rule inet wirelane_filter rules sctp dport 25 drop",
        "add rule inet wirelane_filter rules icmp type echo-request drop",
        "add rule inet wirelane_filter rules ip saddr . ip daddr { 10.0.0.1 . 10.0.0.2 } drop",
        "add rule inet wirelane_filter rules ct state new accept",
        "add rule inet wirelane_filter rules meta mark and 1 == 1 drop",
        "add rule inet wirelane_filter rules ip saddr 10.0.0.1-10.0.0.9 drop",
        "add rule inet wirelane_filter rules jump rules2",
        "insert rule inet wirelane_filter forward iifname != wg0 goto rules",
        "add rule inet wirelane_filter rules counter",
        "insert rule inet wirelane_filter forward accept",
        "add rule inet wirelane_filter forward drop",
        "add chain inet wirelane_filter forward { policy drop; }",
        "add chain inet wirelane_filter other",
        "add set inet wirelane_filter other { type ipv4_addr; }",
        "add table inet wirelane_filter { flags dormant; }",
        "delete table inet wirelane_filter",
    ],
)
def test_what_others_do_to_it_is_seen_and_mended(box: Box, damage: str) -> None:
    box.make(NO_MAIL)
    if "rules2" in damage:
        box.nft("add chain inet wirelane_filter rules2")
    box.nft(damage)
    assert box.read() == (None if damage.startswith("delete") else DAMAGED)
    box.make(NO_MAIL)
    assert not box.crossing.passes(ALICE, INTERNET, 25) and box.crossing.passes(ALICE, INTERNET, 26)


def test_a_rule_that_others_add_in_our_words_is_drift_as_any_other(box: Box) -> None:
    box.make(NO_MAIL)
    box.nft("add rule inet wirelane_filter rules ip saddr 10.66.0.0/24 accept")
    assert box.read() == Filter((NO_MAIL, rule(True, "10.66.0.0/24", ANY)), LINKS)


def test_a_table_of_that_name_in_another_family_is_not_ours(box: Box) -> None:
    box.nft("add table ip wirelane_filter")
    assert box.read() is None
    box.make(NO_MAIL)
    assert box.call(box.part.apply, Diff(remove={FILTER_KEY: Filter((NO_MAIL,), LINKS)})) == {}
    assert "table ip wirelane_filter" in box.nft("list tables")


def arrives(box: Box, family: int, ends: tuple[str, str], port: int, size: int = 5) -> bool:
    """Whether a datagram out of the blue, whole or in fragments, gets from one host to the other."""
    hosts = box.crossing.hosts[ALICE], box.crossing.hosts[INTERNET]

    def make(address: str, at: int) -> socket.socket:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(0.5)
        made.bind((address, at))
        box.crossing.sockets.append(made)
        return made

    with enter(hosts[0]) as run:
        sender = run(make, ends[0], 0)
    with enter(hosts[1]) as run:
        receiver = run(make, ends[1], port)
    sender.sendto(b"x" * size, (ends[1], port))
    try:
        return len(receiver.recv(65_535)) == size
    except TimeoutError:
        return False
    finally:
        sender.close()
        receiver.close()


ALICE_6, INTERNET_6 = "fd66::10", "2001:db8::2"


@pytest.fixture
def with_ipv6(box: Box) -> Box:
    router, alice, internet = box.crossing.router, box.crossing.hosts[ALICE], box.crossing.hosts[INTERNET]
    for namespace, device, address in (
        (router, "wg0", "fd66::1/64"),
        (router, "up0", "2001:db8::1/64"),
        (alice, "eth0", f"{ALICE_6}/64"),
        (internet, "eth0", f"{INTERNET_6}/64"),
    ):
        ip(namespace, "-6", "address", "add", address, "dev", device, "nodad")
    ip(alice, "-6", "route", "add", "2001:db8::/64", "via", "fd66::1")
    ip(internet, "-6", "route", "add", "fd66::/64", "via", "2001:db8::1")
    sysctl(router, "ipv6/conf/all/forwarding", "1")
    # A router asks for its neighbours once its own addresses are known to be nobody else's.
    assert any(arrives(box, socket.AF_INET6, (ALICE_6, INTERNET_6), 25) for _ in range(20))
    return box


def test_each_family_has_rules_of_its_own(with_ipv6: Box) -> None:
    ends = ALICE_6, INTERNET_6
    assert arrives(with_ipv6, socket.AF_INET6, ends, 25)
    with_ipv6.make(NO_MAIL)
    assert arrives(with_ipv6, socket.AF_INET6, ends, 25) and not with_ipv6.crossing.passes(ALICE, INTERNET, 25)
    with_ipv6.make(rule(False, "::/0", "::/0", "udp", 0, 25))
    assert not arrives(with_ipv6, socket.AF_INET6, ends, 25) and with_ipv6.crossing.passes(ALICE, INTERNET, 25)
    assert arrives(with_ipv6, socket.AF_INET6, ends, 26)
    with_ipv6.make(rule(False, "fd66::/64", f"{INTERNET_6}/128"))
    assert not arrives(with_ipv6, socket.AF_INET6, ends, 26)


def test_fragments_are_met_as_the_packet_that_they_are(with_ipv6: Box) -> None:
    of = (socket.AF_INET, (ALICE, INTERNET)), (socket.AF_INET6, (ALICE_6, INTERNET_6))
    for family, ends in of:
        assert arrives(with_ipv6, family, ends, 25, 4000)
    with_ipv6.make(NO_MAIL, rule(False, "::/0", "::/0", "udp", 0, 25))
    for family, ends in of:
        assert not arrives(with_ipv6, family, ends, 25, 4000)
        assert arrives(with_ipv6, family, ends, 26, 4000)
