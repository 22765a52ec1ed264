"""How many connections an account may have: real packets by both backends, repairs, and what is told of it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from agent.diff import diff
from agent.errors import KernelError
from agent.kernel.host import conntrack
from agent.kernel.linux import backend_doors
from agent.kernel.nftables import bounded, nft
from agent.kernel.nftables.bounded import BROKEN, Bounded, wanted_rules
from agent.objects import Diff, Forwarding, Scope
from tests.netns import crossing as networks
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, iptables

SCOPE = Scope(frozenset({"wg0", "wg1"}), "up0")
FIRST = Forwarding("wg0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None)
SECOND = Forwarding("wg1", IPv4Interface("10.67.0.1/24"), "up0", 51821, False, None)
WANTED = {"wg0": FIRST, "wg1": SECOND}


@dataclass
class Box:
    crossing: Crossing
    call: Callable[..., Any]
    part: Bounded

    def make(self, wanted: dict[str, Forwarding]) -> Diff[str, Forwarding]:
        difference: Diff[str, Forwarding] = diff(wanted, self.call(self.part.read, SCOPE))
        assert self.call(self.part.apply, Diff(difference.add, difference.change)) == {}
        assert self.call(self.part.apply, Diff(remove=difference.remove)) == {}
        return difference

    def connections(self) -> int:
        def count() -> int:
            with open("/proc/sys/net/netfilter/nf_conntrack_count") as file:
                return int(file.read())

        number: int = self.call(count)
        return number

    def nft(self, line: str) -> str:
        return networks.nft(self.crossing.router, line)


@pytest.fixture
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    backend, limit = getattr(request, "param", ("iptables", 1000))
    crossing = networks.build(make_namespace, "wg")
    for host in crossing.hosts.values():  # nobody answers, or the first packet would not be the only one
        iptables(host, "-A OUTPUT -p icmp -j DROP")
    # Which groups it listens to, the box tells late and by itself: to Linux one connection more, of no account.
    iptables(crossing.router, "-t raw -A OUTPUT -p igmp -j DROP")
    with enter(crossing.router) as call:
        yield Box(crossing, call, Bounded(backend_doors()[backend].forwarding, limit))
    crossing.close()


def limits(*numbers: int) -> pytest.MarkDecorator:
    cases = [(backend, number) for backend in ("iptables", "nftables") for number in numbers]
    return pytest.mark.parametrize("box", cases, indirect=True, ids=[f"{b}-{n}" for b, n in cases])


def flood(crossing: Crossing, source: str, destination: str, first: int, count: int) -> None:
    """One byte to each of so many ports."""
    sender = crossing.udp(source)
    for port in range(first, first + count):
        sender.sendto(b"x", (destination, port))


@limits(100, 1000, 4000)
def test_one_account_gets_no_more_connections_than_its_bound(box: Box) -> None:
    limit = box.part._limit
    assert set(box.make(WANTED).add) == set(WANTED)
    flood(box.crossing, ALICE, INTERNET, 2000, 6000)
    first = box.connections()
    assert 0.8 * limit <= first <= limit
    assert box.call(bounded.refused) == 6000 - first
    # Nobody else notices, and what was there goes on.
    assert box.crossing.passes(BOB, INTERNET) and box.crossing.passes(CAROL, INTERNET)
    flood(box.crossing, ALICE, INTERNET, 2000, 20)
    assert box.connections() <= limit + 2


@limits(100, 1000)
def test_what_has_no_ports_is_a_connection_as_well(box: Box) -> None:
    box.make(WANTED)
    networks.ip(box.crossing.router, "route", "add", "default", "via", INTERNET)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 253) as sender:  # for experiments: RFC 3692
            for number in range(3000):
                sender.sendto(b"", (f"198.51.{number // 250}.{number % 250 + 1}", 0))

    with enter(box.crossing.hosts[ALICE]) as run:
        run(send)
    assert 0 < box.connections() <= box.part._limit
    assert box.call(bounded.refused) >= 3000 - box.part._limit


@limits(200)
def test_who_was_refused_may_go_on_once_older_ones_are_gone(box: Box) -> None:
    box.make(WANTED)
    flood(box.crossing, ALICE, INTERNET, 2000, 500)
    assert not box.crossing.passes(ALICE, INTERNET)
    assert box.call(conntrack.forget, [IPv4Address(ALICE)]) == 200
    time.sleep(2.5)
    assert box.crossing.passes(ALICE, INTERNET)


@limits(100)
def test_many_packets_of_one_connection_are_one_connection(box: Box) -> None:
    """A stream that nobody answers stays "new" to Linux, packet for packet."""
    box.make(WANTED)
    sender, receiver = box.crossing.udp(ALICE), box.crossing.udp(INTERNET)
    for _ in range(1000):
        sender.sendto(b"x", receiver.getsockname())
        receiver.recv(10)
    assert box.call(bounded.refused) == 0
    assert box.crossing.passes(ALICE, INTERNET)


@limits(100)
def test_the_box_itself_is_no_way_around_and_what_isolation_drops_does_not_count(box: Box) -> None:
    box.make(WANTED)
    for address in (BOB, CAROL):
        flood(box.crossing, ALICE, address, 2000, 300)
    assert box.connections() == 0
    iptables(box.crossing.router, "-I INPUT -i wg0 -j ACCEPT")
    flood(box.crossing, ALICE, "10.66.0.1", 2000, 300)
    flood(box.crossing, ALICE, INTERNET, 2000, 300)
    assert 0 < box.connections() <= 101


DAMAGE = {
    "a rule is gone": ["flush chain ip wirelane_connections bound"],
    "a rule too many": ["insert rule ip wirelane_connections bound ip saddr 10.66.0.10 return"],
    "a way in is gone": ["flush chain ip wirelane_connections forwarded"],
    "another bound": [
        "flush chain ip wirelane_connections share0",
        "add rule ip wirelane_connections share0 add @held0 { ip saddr ct count over 9 } goto refuse",
    ],
    "a stray chain": ["add chain ip wirelane_connections stray"],
    "a stray set": ["add set ip wirelane_connections stray { type ipv4_addr; }"],
    "it sleeps": ["add table ip wirelane_connections { flags dormant; }"],
    "all is gone": ["delete table ip wirelane_connections"],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen_and_repaired(box: Box, name: str) -> None:
    box.make(WANTED)
    right = box.nft("-s list table ip wirelane_connections")
    assert box.call(box.part.read, SCOPE) == WANTED
    for line in DAMAGE[name]:
        box.nft(line)
    assert box.call(box.part.read, SCOPE).keys() == {*WANTED, BROKEN}
    box.make(WANTED)
    assert box.call(box.part.read, SCOPE) == WANTED
    assert sorted(box.nft("-s list table ip wirelane_connections").split()) == sorted(right.split())


def test_what_is_right_is_not_written_again_and_the_last_server_takes_it_along(box: Box) -> None:
    box.make(WANTED)
    before = box.nft("-a list table ip wirelane_connections")
    assert box.make(WANTED) == Diff()
    box.make({"wg0": FIRST})
    assert box.nft("-a list table ip wirelane_connections") == before
    box.make({})
    assert "wirelane_connections" not in box.nft("list tables")


@pytest.mark.parametrize("box", [("nftables", 0)], indirect=True)
def test_no_bound_means_no_table(box: Box) -> None:
    box.make(WANTED)
    assert "wirelane_connections" not in box.nft("list tables")
    box.part = Bounded(box.part._inner, 500)
    assert box.make(WANTED).remove.keys() == {BROKEN}
    box.part = Bounded(box.part._inner, 0)
    assert box.make(WANTED).remove.keys() == {BROKEN}
    assert "wirelane_connections" not in box.nft("list tables")


def test_a_host_without_nftables_is_told_and_serves_all_the_same(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise KernelError("nftables: not here", retry=False)

    monkeypatch.setattr(nft, "check", refuse)
    box.make(WANTED)
    assert box.call(box.part.read, SCOPE) == WANTED
    assert box.crossing.passes(ALICE, INTERNET)
    assert box.call(bounded.refused) == 0
    (said,) = box.call(lambda: list(bounded.warnings(SCOPE)))
    assert "libnftables1" in said
    assert box.call(lambda: list(bounded.warnings(Scope(frozenset(), "up0")))) == []


def test_a_table_of_connections_that_is_nearly_full_is_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.make(WANTED)
    flood(box.crossing, ALICE, INTERNET, 2000, 50)
    assert box.call(lambda: list(conntrack.warnings(SCOPE))) == []
    monkeypatch.setattr(conntrack, "FULL_SHARE", 1e-5)
    (said,) = box.call(lambda: list(conntrack.warnings(SCOPE)))
    assert "nf_conntrack_max" in said


@pytest.mark.parametrize("limit", [1, 249, 250, 499, 500, 4000, 10_000, 16_000, 1_000_000])
def test_the_shares_never_hold_more_than_the_bound(limit: int) -> None:
    rules = wanted_rules(limit)
    shares = [rule for name, (rule, *_) in rules.items() if name.startswith("share")]
    most = [rule[0].listed["set"]["stmt"][0]["ct count"]["val"] for rule in shares]
    assert 0.9 * limit <= sum(most) <= limit and len(set(most)) == 1
