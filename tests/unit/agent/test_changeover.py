"""The move from one backend to the other: packets between any two steps, broken off at any step and gone on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from agent.changeover import Changeover
from agent.desired import Desired, Snapshot
from agent.doors import Doors
from agent.errors import KernelError
from agent.model import Address
from agent.objects import Counters, Diff, Forwarding, Mark, Scope
from agent.usage import Usage, Used
from tests.fakes.state import EPOCH, MemoryKeeper, account, server

ADDRESSES = [IPv4Address("10.0.1.2"), IPv4Address("10.0.1.3")]
DESIRED = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2), account(3), account(4, enabled=False))))
SEEN = 300  # bytes that the last sample before the move has shown
FORWARDING = Forwarding("wg1", IPv4Interface("10.0.1.1/24"), "eth0", 51821, False, None)


class Crash(Exception):
    """The agent is killed."""


class Host:
    """Two backends, one after the other on the way of each packet. Packets pass before every single call."""

    def __init__(self, standing: str) -> None:
        self.calls_left: int | None = None
        self.fail: type[Exception] = Crash
        self.passed = dict.fromkeys(ADDRESSES, 0)
        self.sides = {name: Side(self) for name in ("iptables", "nftables")}
        self.guard: set[tuple[Address, int]] = set()
        old = self.sides[standing]
        old.hooked = True
        old.held = {a: Mark(a, DESIRED.accounts[DESIRED.by_address[a]].mark) for a in ADDRESSES}
        old.forwarded = {"wg1": FORWARDING}

    def called(self) -> None:
        self.packets()
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise self.fail("at this step")

    def packets(self) -> None:
        for address in ADDRESSES:
            self.passed[address] += 100
            iptables, nftables = self.sides["iptables"], self.sides["nftables"]
            first = iptables.count(address)
            mark = iptables.held[address].mark if first else 0
            second = nftables.count(address) if (address, mark) not in self.guard else False
            assert first + second == 1, f"{address} was counted {first + second} times"
            assert any(side.forwarded for side in self.sides.values()), "nothing lets the packet through"

    def move(self, keeper: MemoryKeeper, chosen: str, desired: Desired | None = DESIRED) -> str:
        doors = {
            "iptables": Doors(self.sides["iptables"], Gate(self.sides["iptables"])),
            "nftables": Doors(self.sides["nftables"], Gate(self.sides["nftables"]), self),
        }
        return Changeover(Usage(keeper, lambda: 1_700_000_000.0), doors).to(chosen, desired)

    def defer(self, marks: Mapping[Address, Mark]) -> None:
        self.called()
        self.guard = {(address, mark.mark) for address, mark in marks.items()}
        self.sides["nftables"].hooked = True

    def undefer(self) -> None:
        self.called()
        self.guard = set()


class Side:
    def __init__(self, host: Host) -> None:
        self.host = host
        self.held: dict[Address, Mark] = {}
        self.hooked = False
        self.forwarded: dict[str, Forwarding] = {}

    def count(self, address: IPv4Address) -> bool:
        mark = self.held.get(address)
        if not self.hooked or mark is None:
            return False
        c = mark.counters
        self.held[address] = replace(mark, counters=replace(c, download_bytes=c.download_bytes + 100))
        return True

    def read(self, scope: Scope) -> dict[Address, Mark]:
        self.host.called()
        return dict(self.held) if self.hooked else {}

    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        self.host.called()
        return {address: mark.counters for address, mark in self.held.items()}

    def apply(self, diff: Diff[Address, Mark]) -> dict[Address, KernelError]:
        self.host.called()
        assert not diff.remove
        self.held.update({a: mark for a, mark in diff.add.items() if a not in self.held})
        self.hooked = self.hooked or bool(diff)
        return {}

    def is_there(self) -> bool:
        self.host.called()
        return bool(self.held) or (self.host.guard != set() and self is self.host.sides["nftables"])

    def unhook(self) -> None:
        self.host.called()
        self.hooked = False

    def clear(self) -> None:
        self.host.called()
        self.hooked, self.held = False, {}
        if self is self.host.sides["nftables"]:
            self.host.guard = set()


class Gate:
    def __init__(self, side: Side) -> None:
        self.side = side

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        self.side.host.called()
        return dict(self.side.forwarded)

    def apply(self, diff: Diff[str, Forwarding]) -> dict[str, KernelError]:
        self.side.host.called()
        assert not diff.remove
        self.side.forwarded |= dict(diff.add)
        return {}

    def is_there(self) -> bool:
        self.side.host.called()
        return bool(self.side.forwarded)

    def clear(self) -> None:
        self.side.host.called()
        self.side.forwarded = {}


def settled(host: Host, keeper: MemoryKeeper, chosen: str) -> None:
    """The move is over, and all that ever passed is counted."""
    other = ({"iptables", "nftables"} - {chosen}).pop()
    assert not host.sides[other].held and not host.sides[other].forwarded and not host.guard
    assert host.sides[chosen].forwarded == {"wg1": FORWARDING} and keeper.counted_by == chosen
    counters = host.sides[chosen].counters()
    Usage(keeper, lambda: 1_700_000_000.0).observe(counters, DESIRED.by_address, "UTC")
    for address in ADDRESSES:
        assert keeper.total(DESIRED.by_address[address]) == Used(host.passed[address], 0)
        assert counters[address].download_bytes >= SEEN, "the numbers that people see went on"


def started(standing: str) -> tuple[Host, MemoryKeeper]:
    """A host on which the agent has run and sampled."""
    host, keeper = Host(standing), MemoryKeeper()
    keeper.expect(DESIRED.accounts.values())
    usage = Usage(keeper, lambda: 1_700_000_000.0)
    usage.observe({}, DESIRED.by_address, "UTC")
    usage.counts_by(standing)
    host.packets()
    usage.observe(host.sides[standing].counters(), DESIRED.by_address, "UTC")
    return host, keeper


DIRECTIONS = [("iptables", "nftables"), ("nftables", "iptables")]


@pytest.mark.parametrize(("old", "new"), DIRECTIONS)
def test_every_packet_is_marked_and_counted_once(old: str, new: str) -> None:
    host, keeper = started(old)
    assert host.move(keeper, new) == new
    settled(host, keeper, new)


@pytest.mark.parametrize("then", ["goes on", "is called off"])
@pytest.mark.parametrize(("old", "new"), DIRECTIONS)
def test_a_move_that_breaks_off_anywhere(old: str, new: str, then: str) -> None:
    """At each of its calls in turn, until one is not reached any more."""
    for step in range(40):
        host, keeper = started(old)
        host.calls_left = step
        try:
            host.move(keeper, new)
        except Crash:
            host.calls_left = None
            chosen = new if then == "goes on" else old
            host.move(keeper, chosen)
            settled(host, keeper, chosen)
            continue
        assert step > 10, "a move makes more calls than that"
        return
    raise AssertionError("the move never came to its end")


def test_what_stands_is_kept_while_nothing_is_desired() -> None:
    host, keeper = started("iptables")
    before: Any = dict(host.sides["iptables"].held)
    assert host.move(keeper, "nftables", None) == "iptables"
    assert host.sides["iptables"].held.keys() == before.keys() and not host.sides["nftables"].held


@pytest.mark.parametrize(("other", "only"), DIRECTIONS)
def test_a_host_that_cannot_have_the_other_backend_is_no_trouble(other: str, only: str) -> None:
    host, keeper = started(only)
    absent = host.sides[other]

    def refuse(*_: object) -> Any:
        raise KernelError("this kernel has nothing of the kind", retry=False)

    gate = Gate(absent)
    for door, verbs in ((absent, ("read", "counters", "apply", "unhook", "clear")), (gate, ("read", "apply", "clear"))):
        for verb in verbs:
            setattr(door, verb, refuse)
    both = {other: Doors(absent, gate), only: Doors(host.sides[only], Gate(host.sides[only]))}
    assert Changeover(Usage(keeper, lambda: 1_700_000_000.0), both).to(only, DESIRED) == only


def test_a_host_with_nothing_of_ours_takes_what_is_chosen() -> None:
    host, keeper = started("iptables")
    host.sides["iptables"].held.clear()
    host.called = lambda: None  # type: ignore[method-assign]
    assert host.move(keeper, "nftables") == "nftables" and keeper.counted_by == "nftables"
