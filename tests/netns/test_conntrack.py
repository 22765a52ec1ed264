"""What Linux remembers of connections, forgotten: real streams through NAT, between accounts, and many of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from agent.errors import KernelError
from agent.kernel.host import conntrack
from agent.kernel.linux import backend_doors
from agent.objects import Diff, Forwarding, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, CAROL, INTERNET, Crossing, build, iptables, nft

SCOPE = Scope(frozenset(), "up0")
ELSEWHERE = [IPv4Address(f"10.99.0.{i}") for i in range(10)]
# What is forgotten beside alice: nothing, or so much that all entries are read.
BESIDE = pytest.mark.parametrize("beside", [[], ELSEWHERE], ids=["alone", "with others"])


@pytest.fixture(params=["iptables", "nftables"])
def crossing(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Crossing]:
    made = build(make_namespace)
    rules = {
        "wl0": Forwarding("wl0", IPv4Interface("10.66.0.1/24"), "up0", 51820, True, None),
        "wl1": Forwarding("wl1", IPv4Interface("10.67.0.1/24"), "up0", 51821, False, None),
    }
    with enter(made.router) as run:
        run(backend_doors()[request.param].forwarding.apply, Diff(add=rules))
    yield made
    made.close()


def forget(crossing: Crossing, *addresses: IPv4Address) -> int:
    with enter(crossing.router) as run:
        number: int = run(conntrack.forget, set(addresses))
        return number


class Stream:
    """The internet answers an account, again and again."""

    def __init__(self, crossing: Crossing, account: str, port: int, other: str = INTERNET) -> None:
        self.asking, self.answering = crossing.udp(account), crossing.udp(other, port)
        self.asking.settimeout(0.3)
        self.asking.sendto(b"question", (other, port))
        _, self.peer = self.answering.recvfrom(100)

    def arrives(self) -> bool:
        self.answering.sendto(b"answer", self.peer)
        try:
            return self.asking.recv(100) == b"answer"
        except (TimeoutError, ConnectionRefusedError):
            return False


@BESIDE
def test_an_old_stream_does_not_reach_who_gets_its_address(crossing: Crossing, beside: list[IPv4Address]) -> None:
    old, others, neighbour = Stream(crossing, ALICE, 7000), Stream(crossing, BOB, 7001), Stream(crossing, CAROL, 7002)
    assert old.arrives() and others.arrives() and neighbour.arrives()
    assert forget(crossing, IPv4Address(ALICE), *beside) == 1
    assert not old.arrives()
    assert others.arrives() and neighbour.arrives()
    again = Stream(crossing, ALICE, 7003)
    assert again.arrives() and not old.arrives()


@BESIDE
def test_a_connection_is_forgotten_too(crossing: Crossing, beside: list[IPv4Address]) -> None:
    listening, asking = crossing.tcp(INTERNET, 8000), crossing.tcp(ALICE)
    listening.listen(1)
    asking.connect((INTERNET, 8000))
    accepted, _ = listening.accept()
    accepted.sendall(b"before")
    assert asking.recv(100) == b"before"
    assert forget(crossing, IPv4Address(ALICE), *beside) == 1
    asking.settimeout(0.5)
    accepted.sendall(b"after")
    with pytest.raises(TimeoutError):
        asking.recv(100)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    accepted.close()


@BESIDE
def test_what_others_began_is_forgotten_too(crossing: Crossing, beside: list[IPv4Address]) -> None:
    """From another account, and from the internet where a port leads to the account."""
    within = Stream(crossing, BOB, 7000, other=ALICE)
    assert within.arrives()
    iptables(crossing.router, f"-t nat -A PREROUTING -i up0 -p udp --dport 7100 -j DNAT --to-destination {ALICE}:7100")
    if "wirelane_forwarding" in nft(crossing.router, "list tables"):
        nft(crossing.router, "insert rule ip wirelane_forwarding forward accept")
    else:
        iptables(crossing.router, "-I FORWARD -j ACCEPT")
    led, asking = crossing.udp(ALICE, 7100), crossing.udp(INTERNET)
    asking.sendto(b"in", ("192.0.2.1", 7100))
    assert led.recv(100) == b"in"
    assert forget(crossing, IPv4Address(ALICE), *beside) == 2


def test_nothing_to_forget_is_no_trouble(crossing: Crossing) -> None:
    assert forget(crossing) == 0
    assert forget(crossing, IPv4Address(ALICE)) == 0
    Stream(crossing, BOB, 7000)
    assert forget(crossing, IPv4Address(ALICE)) == 0
    with enter(crossing.router) as run:
        assert run(lambda: list(conntrack.warnings(SCOPE))) == []


def test_a_kernel_that_cannot_be_asked_is_named(crossing: Crossing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_GET_STATS", 0x7F << 8)  # a family that no kernel has
    with pytest.raises(KernelError) as got:
        forget(crossing, IPv4Address(ALICE))
    assert not got.value.retry

    def warned() -> Any:
        with enter(crossing.router) as run:
            return run(lambda: list(conntrack.warnings(SCOPE)))

    (said,) = warned()
    assert "nf_conntrack_netlink" in said
