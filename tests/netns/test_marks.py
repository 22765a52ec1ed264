"""The marks on real packets, by both backends: exact counters, the right mark, and damage repaired without a loss.

What only iptables can be damaged with is here too; test_nft_marks.py has the same for nftables.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.diff import diff
from agent.kernel.iptables import tables, xtables
from agent.kernel.iptables.entries import Image
from agent.kernel.iptables.marks import BROKEN, IptablesMarks
from agent.kernel.nftables.marks import NftablesMarks
from agent.objects import Counters, Diff, Mark, Scope
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, INTERNET, Crossing, build, iptables, nft, saved, sysctl, watch, watched

SCOPE = Scope(frozenset(), "up0")
ALICE_ADDRESS, BOB_ADDRESS = IPv4Address(ALICE), IPv4Address(BOB)
WANTED = {ALICE_ADDRESS: Mark(ALICE_ADDRESS, 109), BOB_ADDRESS: Mark(BOB_ADDRESS, 40960)}
DOORS: dict[str, type[IptablesMarks] | type[NftablesMarks]] = {"iptables": IptablesMarks, "nftables": NftablesMarks}
BOTH = pytest.mark.parametrize("run", list(DOORS), indirect=True)


@dataclass
class Run:
    """Calls on a thread in the router."""

    call: Callable[..., Any]
    marks: IptablesMarks | NftablesMarks

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.call(function, *args)


@pytest.fixture
def crossing(make_namespace: Callable[[], str]) -> Iterator[Crossing]:
    made = build(make_namespace, "wg")
    sysctl(made.router, "ipv4/ip_forward", "1")
    yield made
    made.close()


@pytest.fixture
def run(crossing: Crossing, request: pytest.FixtureRequest) -> Iterator[Run]:
    with enter(crossing.router) as call:
        yield Run(call, DOORS[getattr(request, "param", "iptables")]())


def read(run: Run) -> dict[IPv4Address, Mark]:
    found: dict[IPv4Address, Mark] = run(run.marks.read, SCOPE)
    return found


def make(run: Run, wanted: dict[IPv4Address, Mark]) -> Diff[IPv4Address, Mark]:
    """One pass: read, compare, apply. Returns what it changed."""
    difference = diff(wanted, read(run))
    assert run(run.marks.apply, difference) == {}
    return difference


def counters(run: Run, address: IPv4Address) -> Counters:
    found: dict[IPv4Address, Counters] = run(run.marks.counters)
    return found[address]


def packets_of(namespace: str, chain: str, words: str) -> int:
    """Packets counted by the one rule of mangle whose saved text holds these words."""
    (line,) = [x for x in saved(namespace, "mangle") if f"-A {chain} " in x and words in x]
    return int(line[1 : line.index(":")])


def everything(crossing: Crossing) -> list[str]:
    """The mangle table of iptables, and all of nftables."""
    return [*saved(crossing.router, "mangle"), *nft(crossing.router, "-s list ruleset").splitlines()]


# -- counting and marking -----------------------------------------------------------------------------------------


@BOTH
def test_every_byte_is_counted_for_its_account_and_direction(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    crossing.send(ALICE, INTERNET, 5, 1000)
    crossing.send(INTERNET, ALICE, 7, 500)
    assert counters(run, ALICE_ADDRESS) == Counters(7, 3500, 5, 5000)
    assert counters(run, BOB_ADDRESS) == Counters()
    assert read(run)[ALICE_ADDRESS].counters == Counters(7, 3500, 5, 5000)
    crossing.send(BOB, ALICE, 1, 100)
    assert counters(run, ALICE_ADDRESS) == Counters(8, 3600, 5, 5000)
    assert counters(run, BOB_ADDRESS) == Counters(0, 0, 1, 100)


@BOTH
def test_between_two_accounts_the_mark_of_the_receiver_wins(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    watch(crossing.router, "meta mark 0x6d", "meta mark 0xa000")
    crossing.send(ALICE, BOB, 3, 100)
    assert watched(crossing.router) == [0, 3]
    crossing.send(ALICE, INTERNET, 5, 100)
    assert watched(crossing.router) == [5, 3]


# -- starting, changing, removing ---------------------------------------------------------------------------------


@BOTH
def test_new_rules_start_from_the_counters_they_are_given(crossing: Crossing, run: Run) -> None:
    start = Counters(1 << 33, 1 << 45, 3, 4)
    make(run, {ALICE_ADDRESS: Mark(ALICE_ADDRESS, 109, counters=start)})
    assert counters(run, ALICE_ADDRESS) == start
    crossing.send(ALICE, INTERNET, 2, 100)
    assert counters(run, ALICE_ADDRESS) == Counters(1 << 33, 1 << 45, 5, 204)


@BOTH
def test_rules_that_exist_keep_their_counters_unless_they_shall_restart(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    crossing.send(ALICE, INTERNET, 2, 100)
    again = Mark(ALICE_ADDRESS, 109, counters=Counters(9, 9, 9, 9))
    run(run.marks.apply, Diff(add={ALICE_ADDRESS: again}))
    assert counters(run, ALICE_ADDRESS) == Counters(0, 0, 2, 200)
    restarted = Mark(ALICE_ADDRESS, 110, counters=Counters(9, 90, 8, 80), restart=True)
    run(run.marks.apply, Diff(change={ALICE_ADDRESS: restarted}))
    assert read(run) == WANTED | {ALICE_ADDRESS: Mark(ALICE_ADDRESS, 110)}
    assert counters(run, ALICE_ADDRESS) == Counters(9, 90, 8, 80)


@contextmanager
def flood(crossing: Crossing, source: str, destination: str, port: int = 0) -> Iterator[None]:
    """Sends packets of 100 bytes all the time, not too fast for two cores."""
    sender, receiver, over = crossing.udp(source), crossing.udp(destination, port), threading.Event()

    def send() -> None:
        while not over.wait(0.0002):
            sender.sendto(bytes(72), receiver.getsockname())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_no_packet_is_lost_or_passes_unmarked_while_rules_change_and_are_repaired(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    watch(crossing.router, f"ip daddr {ALICE} meta mark 0", f"ip daddr {ALICE} meta mark != 0")
    with flood(crossing, INTERNET, ALICE):
        for number in range(100, 115):
            make(run, WANTED | {ALICE_ADDRESS: Mark(ALICE_ADDRESS, number)})
            others = {a: Mark(a, 7000) for i in range(number) if (a := IPv4Address(0x0A440000 + i * 77))}
            make(run, WANTED | others | {ALICE_ADDRESS: Mark(ALICE_ADDRESS, number)})
            iptables(crossing.router, "-t mangle -I WL_TO_10.66.0.0/28")  # a rule that does nothing but count
            assert make(run, WANTED).remove
    unmarked, seen = watched(crossing.router)
    assert seen > 500 and unmarked == 0
    assert counters(run, ALICE_ADDRESS).download_packets == seen


@BOTH
def test_two_thousand_accounts_read_back_equal_and_go_without_a_trace(crossing: Crossing, run: Run) -> None:
    iptables(crossing.router, "-t mangle -A FORWARD -s 203.0.113.7 -j DROP")
    before = everything(crossing)
    wanted = {a: Mark(a, 100 + i) for i in range(2000) if (a := IPv4Address(0x0A400000 + i * 3))}
    make(run, wanted)
    assert read(run) == wanted
    assert make(run, wanted) == Diff()
    half = dict(list(wanted.items())[::2])
    make(run, half)
    assert read(run) == half
    make(run, {})
    assert everything(crossing) == before


@BOTH
def test_applying_the_same_twice_changes_nothing(crossing: Crossing, run: Run) -> None:
    add: Diff[IPv4Address, Mark] = Diff(add=WANTED)
    run(run.marks.apply, add)
    before = everything(crossing)
    run(run.marks.apply, add)
    assert everything(crossing) == before
    run(run.marks.apply, Diff(remove=WANTED))
    run(run.marks.apply, Diff(remove=WANTED))
    assert read(run) == {}


# -- damage -------------------------------------------------------------------------------------------------------

DAMAGE = {
    "the hook is gone": ["-D POSTROUTING -j WL_MARK"],
    "the hook is not the first": ["-I POSTROUTING -s 203.0.113.9 -j RETURN"],
    "the hook is there twice": ["-A POSTROUTING -j WL_MARK"],
    "the hook has a condition": ["-R POSTROUTING 1 -o wg0 -j WL_MARK"],
    "another chain leads to ours": ["-N other", "-A other -j WL_TO", "-I other -p tcp -g WL_MARK"],
    "the top is empty": ["-F WL_MARK"],
    "the top has lost one way": ["-D WL_MARK 2"],
    "the top is the wrong way round": ["-D WL_MARK 1", "-A WL_MARK -i wg+ -j WL_FROM"],
    "the top leads everything": ["-R WL_MARK 1 -j WL_FROM"],
    "the box's own packets are not told apart": ["-F WL_OWN"],
    "the box's own packets are not led": ["-D OUTPUT -j WL_OWN"],
    "as the version before had it": [
        "-D POSTROUTING -j WL_MARK",
        "-I FORWARD -j WL_MARK",
        "-F WL_MARK",
        "-A WL_MARK -j WL_FROM",
        "-A WL_MARK -j WL_TO",
        "-D OUTPUT -j WL_OWN",
        "-F WL_OWN",
        "-X WL_OWN",
    ],
    "a strange rule is at the root": ["-I WL_FROM -j RETURN"],
    "the root is empty": ["-F WL_TO"],
    "a way down is gone": ["-F WL_TO_10.66.0.0/20"],
    "a way down is a jump": ["-R WL_TO 1 -d 10.66.0.0/20 -j WL_TO_10.66.0.0/20"],
    "a way down is there twice": ["-A WL_FROM -s 10.66.0.0/20 -g WL_FROM_10.66.0.0/20"],
    "a branch is gone": ["-F WL_TO_10.66.0.0/24", "-F WL_TO_10.66.0.0/20", "-X WL_TO_10.66.0.0/24"],
    "a strange rule is in a leaf": ["-I WL_FROM_10.66.0.0/28 -p tcp -m tcp --dport 22 -j ACCEPT"],
    "a strange rule is in a leaf, of our size": ["-A WL_FROM_10.66.0.0/28 -s 10.66.0.10 -j DROP"],
    "a rule is in the wrong leaf": ["-A WL_FROM_10.66.0.0/28 -s 10.66.0.20 -j MARK --set-xmark 0xa000"],
    "a rule is there twice": ["-I WL_FROM_10.66.0.0/28 -s 10.66.0.10 -j MARK --set-xmark 0x6d"],
    "a rule has another mark": ["-R WL_TO_10.66.0.16/28 1 -d 10.66.0.20 -j MARK --set-xmark 0x6d"],
    "a rule has another mask": ["-R WL_TO_10.66.0.16/28 1 -d 10.66.0.20 -j MARK --set-xmark 0xa000/0xffff"],
    "a rule has a condition": ["-R WL_TO_10.66.0.16/28 1 -i wg0 -d 10.66.0.20 -j MARK --set-xmark 0xa000"],
    "a rule is gone": ["-D WL_TO_10.66.0.16/28 1"],
    "half a pair is nobody's": ["-A WL_TO_10.66.0.16/28 -d 10.66.0.21 -j MARK --set-xmark 0x7"],
    "a strange chain has our prefix": ["-N WL_FROM_stray", "-A WL_FROM_stray -j WL_TO"],
    "an empty leaf": ["-N WL_FROM_10.66.9.0/28"],
}


@pytest.mark.parametrize("commands", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_seen_and_repaired_at_once_and_surviving_rules_keep_counters(
    crossing: Crossing, run: Run, commands: list[str]
) -> None:
    iptables(crossing.router, "-t mangle -A FORWARD -s 203.0.113.7 -j DROP")
    iptables(crossing.router, "-t mangle -A PREROUTING -p tcp -m tcp --dport 25")
    make(run, WANTED)
    crossing.send(ALICE, INTERNET, 2, 100)
    crossing.send(INTERNET, BOB, 3, 100)
    for command in commands:
        iptables(crossing.router, f"-t mangle {command}")
    foreign = saved(crossing.router, "mangle", foreign_only=True)
    lost = any(command.startswith(("-R WL_TO_10.66.0.16", "-D WL_TO_10.66.0.16")) for command in commands)

    assert read(run) != WANTED
    make(run, WANTED)

    assert read(run) == WANTED
    assert saved(crossing.router, "mangle", foreign_only=True) == foreign
    assert counters(run, ALICE_ADDRESS) == Counters(0, 0, 2, 200)
    assert counters(run, BOB_ADDRESS) == (Counters() if lost else Counters(3, 300))
    crossing.send(INTERNET, BOB, 1, 100)
    assert packets_of(crossing.router, "WL_TO_10.66.0.16/28", "10.66.0.20") == (1 if lost else 4)


def test_a_flushed_table_is_rebuilt(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    for command in ("-F", "-X"):
        iptables(crossing.router, f"-t mangle {command}")
        assert read(run) != WANTED
    start = Counters(1, 2, 3, 4)
    make(run, {address: Mark(address, mark.mark, counters=start) for address, mark in WANTED.items()})
    assert read(run) == WANTED
    assert counters(run, BOB_ADDRESS) == start


def test_a_change_of_one_account_leaves_damage_elsewhere_for_the_full_pass(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    iptables(crossing.router, "-t mangle -D WL_TO_10.66.0.16/28 1")
    run(run.marks.apply, Diff(remove={ALICE_ADDRESS: WANTED[ALICE_ADDRESS]}))
    found = read(run)
    assert found.keys() == {BROKEN}
    assert "-A WL_FROM_10.66.0.16/28 -s 10.66.0.20/32" in "\n".join(saved(crossing.router, "mangle", counters=False))


# -- others at the same table -------------------------------------------------------------------------------------


def test_two_programs_at_the_same_table_lose_nothing(crossing: Crossing, run: Run) -> None:
    rules = [f"198.51.100.{i}" for i in range(1, 241)]
    script = "".join(f"iptables-legacy -w 10 -t mangle -A FORWARD -s {a} -j DROP\n" for a in rules)
    script += "".join(f"iptables-legacy -w 10 -t mangle -D FORWARD -s {a} -j DROP\n" for a in rules[::2])
    other = subprocess.Popen(["ip", "netns", "exec", crossing.router, "sh", "-ec", script])
    wanted: dict[IPv4Address, Mark] = {}
    deadline = time.monotonic() + 60
    passes = 0
    while other.poll() is None and time.monotonic() < deadline:
        passes += 1
        address = IPv4Address(0x0A420000 + passes % 90)
        wanted = {a: m for a, m in wanted.items() if a != address} if address in wanted else wanted
        wanted |= {address: Mark(address, 100 + passes % 9000)}
        make(run, wanted)
        time.sleep(0.01)
    assert other.wait(1) == 0
    assert passes > 5
    assert read(run) == wanted
    left = [line.split()[3] for line in saved(crossing.router, "mangle", counters=False) if "198.51.100." in line]
    assert left == [f"{address}/32" for address in rules[1::2]]


def test_a_transaction_sees_what_the_kernel_shows(run: Run) -> None:
    """Where libiptc's own reading is used (xtables._trusts_handle), it is the kernel's."""
    make(run, WANTED)

    def both() -> tuple[bool, Image, Image]:
        seen = xtables.transact("mangle", lambda transaction: transaction.image)
        return xtables._is_layout_known(), seen, tables.read("mangle")

    trusted, seen, read_back = run(both)
    assert trusted, "this libiptc has another layout: transactions read the table twice"
    assert seen.chains == read_back.chains and seen.rules("WL_MARK") == read_back.rules("WL_MARK")
    assert all(seen.rules(chain) == read_back.rules(chain) for chain in seen.chains)
