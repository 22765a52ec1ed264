"""Counters that somebody puts back, by the tools that people have: nobody pays twice, and no heir for who was before.

Marks and tools are real, and so is the agent's file; the rest of the kernel is a memory.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.kernel.iptables.marks import IptablesMarks
from agent.kernel.nftables.marks import NftablesMarks
from agent.model import Account
from agent.store import Store, open_store
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import account, server
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, INTERNET, Crossing, build, sysctl

SIZE = 1_400  # bytes of a packet
MEGA = 750  # packets: more than a reset can show
BEFORE, HEIR, OTHER = 2, 3, 4  # ids
DOORS: dict[str, type[IptablesMarks] | type[NftablesMarks]] = {"iptables": IptablesMarks, "nftables": NftablesMarks}


class Node:
    """An agent's writer over real marks. `restart` makes it anew from its file."""

    def __init__(self, crossing: Crossing, run: Callable[..., Any], backend: str, path: Path) -> None:
        self.crossing, self.run, self.backend, self.path = crossing, run, backend, path
        self.kernel = FakeKernel()
        self.kernel.marks = DOORS[backend]()  # type: ignore[assignment]
        self.restart(first=True)

    def restart(self, *, first: bool = False) -> None:
        if not first:
            self.store.close()
        self.store: Store = open_store(self.path)
        loaded = self.store.load()
        if loaded is None:
            one = server(address=IPv4Interface("10.66.0.1/24"))
            loaded = Desired.of(self.store.epoch, Snapshot(1, (one,)))
            self.store.save_snapshot(loaded)
        self.desired = loaded
        self.writer = Writer(self.kernel, Usage(self.store, lambda: 1_700_000_000.0))
        self.full()

    def full(self) -> None:
        self.run(self.writer.full, self.desired)

    def sample(self) -> None:
        self.run(self.writer.sample, self.desired)

    def change(self, *put: Account, remove: tuple[int, ...] = ()) -> None:
        """A patch that comes from the gateway: durable, and made true."""
        number = self.desired.revision + 1
        patch = Patch(self.store.epoch, number - 1, number, put_accounts=put, remove_accounts=remove)
        self.desired = self.desired.patched(patch)
        self.store.save_patch(self.desired, patch)
        self.run(self.writer.touched, self.desired, patch.account_ids, "eth0")

    def billed(self, account_id: int) -> int:
        """Bytes."""
        return sum(total.used.download + total.used.upload for total in self.store.totals(0, [account_id])[1])

    def use(self, address: str, packets: int) -> None:
        """As many in each direction."""
        self.crossing.send(address, INTERNET, packets, SIZE)
        self.crossing.send(INTERNET, address, packets, SIZE)

    def tool(self, *words: str, stdin: str = "") -> str:
        command = ["ip", "netns", "exec", self.crossing.router, *words]
        return subprocess.run(command, input=stdin, check=True, capture_output=True, text=True, timeout=60).stdout

    def save(self) -> str:
        if self.backend == "iptables":
            return self.tool("iptables-legacy-save", "-c", "-t", "mangle")
        return self.tool("nft", "list", "ruleset")

    def put_back(self, saved: str, *, counters: bool = True) -> None:
        if self.backend == "iptables":
            self.tool("iptables-legacy-restore", *(["-c"] if counters else []), stdin=saved)
        else:
            self.tool("nft", "-f", "-", stdin=f"flush ruleset\n{saved}")


def told(save: str) -> list[str]:
    """What it says of accounts. The router says something itself now and then (IGMP), which other rules count."""
    lines = [line for line in save.splitlines() if line[:1] not in "#:"]
    return [line if "set-xmark" in line else line.rpartition("] ")[2] for line in lines]


@pytest.fixture(params=list(DOORS))
def node(request: pytest.FixtureRequest, make_namespace: Callable[[], str], tmp_path: Path) -> Iterator[Node]:
    crossing = build(make_namespace, "wg")
    sysctl(crossing.router, "ipv4/ip_forward", "1")
    with enter(crossing.router) as run:
        made = Node(crossing, run, request.param, tmp_path / "agent.db")
        yield made
        made.store.close()
    crossing.close()


def at_alice(number: int, **values: Any) -> Account:
    return account(number, address=IPv4Address(ALICE), **{"mark": 100, **values})


def bytes_of(packets: int) -> int:
    return 2 * packets * SIZE


def test_a_save_that_is_put_back_again_and_again_bills_nothing_twice(node: Node) -> None:
    node.change(at_alice(BEFORE))
    node.use(ALICE, MEGA)
    node.sample()
    saved = node.save()
    node.use(ALICE, MEGA)
    node.sample()
    for _ in range(3):
        node.put_back(saved)
        node.sample()
        node.full()
    assert node.billed(BEFORE) == bytes_of(2 * MEGA)
    node.use(ALICE, 10)
    node.sample()
    assert node.billed(BEFORE) == bytes_of(2 * MEGA + 10)


@pytest.mark.parametrize("mark", [100, 101])
@pytest.mark.parametrize("own", [0, 20])
@pytest.mark.parametrize("when", ["sample", "pass", "restart", "another account comes"])
def test_an_heir_never_pays_for_who_had_the_address_before(node: Node, when: str, own: int, mark: int) -> None:
    node.change(at_alice(BEFORE))
    node.use(ALICE, MEGA)
    node.sample()
    saved = node.save()
    node.change(remove=(BEFORE,))
    node.change(at_alice(HEIR, mark=mark))
    if own:
        node.use(ALICE, own)
        node.sample()
    node.put_back(saved)
    if when == "sample":
        node.sample()
    elif when == "restart":
        node.restart()
    elif when == "another account comes":
        node.change(account(OTHER, address=IPv4Address(BOB), mark=102))
        node.sample()
    node.full()
    node.sample()
    assert node.billed(BEFORE) == bytes_of(MEGA)
    assert node.billed(HEIR) == bytes_of(own)
    node.use(ALICE, 30)
    node.sample()
    assert node.billed(HEIR) == bytes_of(own + 30)
    assert node.run(node.kernel.marks.read, None)[IPv4Address(ALICE)].mark == mark


def test_a_save_of_before_an_account_leaves_its_bill_alone(node: Node) -> None:
    node.change(at_alice(BEFORE))
    saved = node.save()
    node.change(account(OTHER, address=IPv4Address(BOB), mark=102))
    node.use(BOB, MEGA)
    node.sample()
    node.put_back(saved)
    node.sample()
    node.full()
    node.use(BOB, 10)
    node.sample()
    assert (node.billed(BEFORE), node.billed(OTHER)) == (0, bytes_of(MEGA + 10))


@pytest.mark.parametrize("node", ["iptables"], indirect=True)  # nft lists its counters always
def test_a_save_without_counters_is_a_reset(node: Node) -> None:
    node.change(at_alice(BEFORE))
    node.use(ALICE, MEGA)
    node.sample()
    saved = node.save()
    node.put_back(saved, counters=False)
    node.use(ALICE, 20)
    node.sample()
    assert node.billed(BEFORE) == bytes_of(MEGA + 20)


def test_a_restart_of_the_agent_is_no_save(node: Node) -> None:
    node.change(at_alice(BEFORE))
    node.change(account(OTHER, address=IPv4Address(BOB), mark=102))
    node.use(ALICE, 10)
    node.restart()
    node.use(ALICE, MEGA)
    node.restart()
    before = node.save()
    node.restart()
    assert told(node.save()) == told(before)
    assert node.billed(BEFORE) == bytes_of(MEGA + 10)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_database_that_was_restored_and_counts_from_below_is_no_save(node: Node, restarted: bool) -> None:
    """A node that holds nothing is given what that database has, whatever its own revision was."""
    node.desired = replace(node.desired, revision=90)
    node.change(at_alice(BEFORE))
    node.use(ALICE, MEGA)
    node.change(remove=(BEFORE,))
    lower = Desired.of(node.store.epoch, Snapshot(15, tuple(node.desired.servers.values())))
    node.store.save_snapshot(lower)
    if restarted:
        node.restart()
    else:
        node.desired = lower
        node.full()
    node.change(at_alice(HEIR))
    node.use(ALICE, 20)
    node.sample()
    node.full()
    node.use(ALICE, 10)
    node.sample()
    assert (node.billed(BEFORE), node.billed(HEIR)) == (bytes_of(MEGA), bytes_of(30))
