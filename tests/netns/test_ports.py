"""Ports of the node that lead to accounts: real packets by both backends, repairs, and what is cut off."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from agent.diff import diff
from agent.kernel.linux import backend_doors
from agent.kernel.nftables import ports
from agent.kernel.nftables.ports import BROKEN, Ports
from agent.model import Reach
from agent.objects import Diff, Forwarding, Port, PortKey, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, ip, nft

SCOPE = Scope(frozenset({"wg0", "wg1"}), "up0")
ROUTER, SECOND = "192.0.2.1", "192.0.2.77"
NOWHERE = Reach(False, Reach.parse("10.20.0.0/16").networks)  # not even back to who asks
WG0 = Forwarding("wg0", IPv4Interface("10.66.0.1/24"), "up0", 51820, False, None, NOWHERE)
WG1 = Forwarding("wg1", IPv4Interface("10.67.0.1/24"), "up0", 51821, False, IPv4Address(SECOND))


def port(protocol: str, number: int, address: str, to_port: int, external: str = "") -> Port:
    at = IPv4Address(external) if external else None
    return Port(protocol, number, IPv4Address(address), to_port, at, "up0")


GAME = port("udp", 25565, ALICE, 7777)
WEB = port("tcp", 8080, ALICE, 80)
FAR = port("udp", 9000, CAROL, 9001, SECOND)
WANTED = {one.key: one for one in (GAME, WEB, FAR)}


@dataclass
class Box:
    crossing: Crossing
    call: Callable[..., Any]
    part: Ports

    def make(self, wanted: dict[PortKey, Port]) -> Diff[PortKey, Port]:
        """As a pass does: what goes first, then the rest."""
        difference: Diff[PortKey, Port] = diff(wanted, self.read())
        assert self.call(self.part.apply, Diff(remove=difference.remove)) == {}
        assert self.call(self.part.apply, Diff(difference.add, difference.change)) == {}
        return difference

    def read(self) -> dict[PortKey, Port]:
        found: dict[PortKey, Port] = self.call(self.part.read, SCOPE)
        return found

    def nft(self, line: str) -> str:
        return nft(self.crossing.router, line)

    def asks(self, source: str, one: Port, at: str = ROUTER) -> str:
        """Whom the target saw asking; "" = nothing came. Its answer comes from where the question went."""
        sender, target = self.crossing.udp(source), self.crossing.udp(str(one.address), one.to_port)
        sender.settimeout(0.5)
        target.settimeout(0.5)
        try:
            sender.sendto(b"question", (at, one.port))
            question, asker = target.recvfrom(100)
            target.sendto(b"answer to " + question, asker)
            assert sender.recvfrom(100) == (b"answer to question", (at, one.port))
            return str(asker[0])
        except TimeoutError:
            return ""
        finally:
            sender.close()
            target.close()


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    crossing = build(make_namespace, "wg")
    ip(crossing.router, "address", "add", f"{SECOND}/32", "dev", "up0")
    with enter(crossing.router) as call:
        forwarding = backend_doors()[request.param].forwarding
        assert call(forwarding.apply, Diff(add={"wg0": WG0, "wg1": WG1})) == {}
        made = Box(crossing, call, Ports())
        yield made
        assert set(call(forwarding.read, SCOPE)) == {"wg0", "wg1"}
    crossing.close()


def test_the_internet_reaches_what_a_port_leads_to_and_nothing_else(box: Box) -> None:
    assert box.read() == {}
    assert box.asks(INTERNET, GAME) == ""
    assert set(box.make(WANTED).add) == set(WANTED)
    assert box.read() == WANTED
    assert box.make(WANTED) == Diff()
    assert box.asks(INTERNET, GAME) == box.asks(INTERNET, GAME, SECOND) == INTERNET
    assert box.asks(INTERNET, FAR, SECOND) == INTERNET
    assert box.asks(INTERNET, FAR) == ""  # not its server's address
    assert box.asks(INTERNET, replace(GAME, port=25566)) == ""
    assert not box.crossing.passes(INTERNET, ALICE) and not box.crossing.passes(ALICE, BOB)


def test_a_tcp_service_answers(box: Box) -> None:
    box.make(WANTED)
    service, client = box.crossing.tcp(ALICE, 80), box.crossing.tcp(INTERNET)
    service.listen()
    client.connect((ROUTER, 8080))
    served, who = service.accept()
    box.crossing.sockets.append(served)
    assert who == client.getsockname()
    served.sendall(b"page")
    assert client.recv(10) == b"page"


def test_other_accounts_come_by_the_same_way(box: Box) -> None:
    """Also where accounts of a server do not reach one another; nobody sees an address in the tunnel."""
    box.make(WANTED)
    for source in (BOB, CAROL):
        assert box.asks(source, GAME) == "10.66.0.1"
    assert box.asks(ALICE, FAR, SECOND) == "10.67.0.1"


def test_what_came_in_by_a_port_that_goes_is_cut_off_and_all_else_goes_on(box: Box) -> None:
    other = port("udp", 26000, ALICE, 8888)
    box.make(WANTED | {other.key: other})
    stranger, game = box.crossing.udp(INTERNET), box.crossing.udp(ALICE, 7777)
    beside, second = box.crossing.udp(INTERNET), box.crossing.udp(ALICE, 8888)
    stranger.sendto(b"x", (ROUTER, 25565))
    beside.sendto(b"x", (ROUTER, 26000))
    _, asker = game.recvfrom(10)
    _, near = second.recvfrom(10)
    box.make({FAR.key: FAR, other.key: other})
    assert box.read() == {FAR.key: FAR, other.key: other}
    stranger.sendto(b"y", (ROUTER, 25565))
    game.sendto(b"late", asker)
    second.sendto(b"on", near)
    assert beside.recv(10) == b"on"
    game.settimeout(0.5)
    stranger.settimeout(0.5)
    for one in (game, stranger):
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            one.recv(10)


def test_a_port_that_leads_elsewhere_leads_those_elsewhere_who_are_in(box: Box) -> None:
    box.make(WANTED)
    stranger, first, then = box.crossing.udp(INTERNET), box.crossing.udp(ALICE, 7777), box.crossing.udp(BOB, 7777)
    stranger.sendto(b"x", (ROUTER, 25565))
    assert first.recv(10) == b"x"
    moved = replace(GAME, address=IPv4Address(BOB))
    assert set(box.make(WANTED | {GAME.key: moved}).change) == {GAME.key}
    stranger.sendto(b"y", (ROUTER, 25565))
    assert then.recv(10) == b"y"


def test_strangers_have_a_bound_that_is_not_the_accounts_own(box: Box) -> None:
    box.make(WANTED)
    target = box.crossing.udp(ALICE, 7777)
    target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    for hundred in range(12):
        for number in range(100):
            box.crossing.udp(INTERNET, 20_000 + 100 * hundred + number).sendto(b"x", (ROUTER, 25565))
        for one in box.crossing.sockets[-100:]:
            one.close()
    target.settimeout(0.3)
    came = 0
    with suppress(TimeoutError):
        while target.recv(10):
            came += 1
    assert ports.STRANGERS * 0.9 <= came <= ports.STRANGERS
    assert box.asks(INTERNET, FAR, SECOND) == INTERNET  # nobody else notices


T = f"ip {ports.TABLE}"
DAMAGE = {
    "the table is gone": [f"delete table {T}"],
    "all rules are gone": [f"flush table {T}"],
    "the table sleeps": [f"add table {T} {{ flags dormant; }}"],
    "a strange rule": [f"insert rule {T} arriving tcp dport 22 accept"],
    "a strange chain": [f"add chain {T} stray"],
    "no elements": [f"flush map {T} own"],
    "an element less": [f"delete element {T} own {{ udp . 25565 }}"],
    "an element leads elsewhere": [
        f"delete element {T} own {{ udp . 25565 }}",
        f"add element {T} own {{ udp . 25565 : {BOB} . 7777 }}",
    ],
    "an element that nobody wants": [f"add element {T} own {{ tcp . 22 : {BOB} . 22 }}"],
    "a port in both maps": [f"add element {T} external {{ {ROUTER} . udp . 25565 : {BOB} . 7777 }}"],
    "another uplink": [f"flush chain {T} arriving", f'add rule {T} arriving iifname "up9" accept'],
}


@pytest.mark.parametrize("box", ["nftables"], indirect=True)
@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_and_repaired_in_one_pass(box: Box, commands: list[str]) -> None:
    box.make(WANTED)
    for command in commands:
        box.nft(command)
    assert box.read() != WANTED
    box.make(WANTED)
    assert box.read() == WANTED
    assert box.asks(INTERNET, GAME) == box.asks(INTERNET, FAR, SECOND) == INTERNET


@pytest.mark.parametrize("box", ["nftables"], indirect=True)
def test_another_uplink_and_the_last_port(box: Box) -> None:
    box.make(WANTED)
    moved = {key: replace(one, uplink="up1") for key, one in WANTED.items()}
    assert set(box.make(moved).change) == set(WANTED)
    assert box.read() == moved
    box.nft(f"insert rule {T} arriving tcp dport 22 accept")
    assert box.read() == moved | {BROKEN: ports.NOTHING}
    box.make({})
    assert box.read() == {} and ports.TABLE not in box.nft("list ruleset")
