"""The order of a pass: one story in which every step has something to do, and what happens to it in another order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, ip_network

import pytest

from agent import steps
from agent.desired import Desired, Snapshot
from agent.model import Address, FilterRule, PortForward
from agent.objects import Counters
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, IKEV2, MemoryKeeper, account, login, server

GAME, WEB = PortForward("udp", 25565, 7777), PortForward("tcp", 80, 8080)
NO_MAIL = (FilterRule(False, ip_network("0.0.0.0/0"), ip_network("0.0.0.0/0"), "tcp", 0, 25),)
LED = account(2, ports=(GAME,)), account(3, ports=(WEB,))
S2 = {"server": "s2", "address": IPv4Address("10.0.2.9")}
BEFORE = Snapshot(
    1,
    (server(1), server(2)),
    (*LED, account(4), account(6), account(9, **S2)),
)
AFTER = Snapshot(
    2,
    (server(1, listen_port=50001, ikev2=IKEV2, filter=NO_MAIL), server(3, filter=NO_MAIL)),
    (
        account(4, address=IPv4Address("10.0.1.44")),  # moves
        account(5, login=login(5), ports=(GAME,)),  # comes, and has now what led to 2
        account(6),  # its class will be refused on the new uplink
        account(7, address=IPv4Address("10.0.1.3"), mark=101),  # inherits the address of one who goes
    ),
)
LAST = Snapshot(3, (server(1, listen_port=50001),), (account(4, address=IPv4Address("10.0.1.44")),))
TRACE = [
    "remove ports",  # of 3: no stranger comes in any more
    "remove peers",  # 2, 3 and 9: nobody passes any more whose rules will go
    "remove links",  # wg2: its port is free
    "forget connections",  # of the freed addresses
    "forget connections",  # of the inherited one
    "sample",  # the last byte of its former owner
    "change marks",  # it starts from zero
    "change links",
    "add links",
    "add responder",  # it makes its device
    "add qdiscs",  # also on the new uplink
    "add filter",  # before anybody gets through
    "add forwarding",  # of wg3, where nobody is yet
    "add classes",
    "add marks",
    "change peers",
    "add peers",
    "add logins",
    "change ports",
    "remove peers",  # 6, whom nothing would limit
    "change forwarding",  # wg1 to the new uplink, when its classes are there
    "add gate",  # now that all stands by which those are held who come in
    "forget connections",  # of the address that was left
    "sample",  # the last byte of those who go
    "remove marks",
    "remove forwarding",
    "remove classes",
    "remove qdiscs",
    "close accounts",
    "-- IKEv2 goes --",
    "remove gate",  # nobody comes in any more
    "remove ports",
    "remove logins",  # nobody is in any more
    "remove peers",
    "remove links",
    "forget connections",
    "change forwarding",
    "sample",
    "remove marks",
    "remove forwarding",
    "remove filter",
    "remove classes",
    "remove qdiscs",
    "remove responder",
    "close accounts",
]


class Tracing(MemoryKeeper):
    def __init__(self, trace: list[str]) -> None:
        super().__init__()
        self.trace = trace

    def forget_baselines(self, addresses: Iterable[Address], stamp: int) -> None:
        self.trace.append("close accounts")
        super().forget_baselines(addresses, stamp)


def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a full pass does, kind by kind."""
    kernel, found = FakeKernel(), list[str]()
    keeper = Tracing(found)
    writer = Writer(kernel, Usage(keeper, lambda: 1_700_000_000.0))
    writer.full(Desired.of(EPOCH, BEFORE))
    kernel.uplink_name = "ppp0"
    kernel.refuses["classes", "add", ("ppp0", 0x104)] = "no buffer space"
    counters = kernel.marks.counters

    def sampled(some: Collection[Address] | None = None) -> dict[Address, Counters]:
        found.append("sample")
        return counters(some)

    def forget(some: Collection[Address]) -> None:
        found.extend(["forget connections"] if some else [])

    monkeypatch.setattr(kernel.marks, "counters", sampled)
    monkeypatch.setattr(kernel, "watch", lambda part, verb, key: found.append(f"{verb} {part}"))
    monkeypatch.setattr(kernel, "forget_connections", forget)
    writer.full(Desired.of(EPOCH, AFTER))
    found.append("-- IKEv2 goes --")
    writer.full(Desired.of(EPOCH, LAST))
    return [line for line, before in zip(found, ["", *found], strict=False) if line != before or line[:6] == "forget"]


def test_the_order_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trace(monkeypatch) == TRACE


@pytest.mark.parametrize("first", range(len(steps.ORDER) - 1))
def test_no_two_steps_can_change_places_unnoticed(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    order = list(steps.ORDER)
    order[first : first + 2] = reversed(order[first : first + 2])
    monkeypatch.setattr(steps, "ORDER", tuple(order))
    assert trace(monkeypatch) != TRACE
