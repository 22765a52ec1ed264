"""The marks by nftables on real packets: damage repaired without a loss, and moving from and to iptables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.diff import diff
from agent.kernel.iptables.marks import IptablesMarks
from agent.kernel.nftables import nft as nft_door
from agent.kernel.nftables.marks import BROKEN, NftablesMarks
from agent.objects import Counters, Diff, Mark
from tests.netns.conftest import enter
from tests.netns.crossing import ALICE, BOB, INTERNET, Crossing, build, iptables, nft, sysctl, watch, watched
from tests.netns.test_marks import ALICE_ADDRESS, BOB_ADDRESS, SCOPE, WANTED, flood

Run = Callable[..., Any]
MARKS, OTHER = NftablesMarks(), IptablesMarks()


@pytest.fixture
def crossing(make_namespace: Callable[[], str]) -> Iterator[Crossing]:
    made = build(make_namespace, "wg")
    sysctl(made.router, "ipv4/ip_forward", "1")
    yield made
    made.close()


@pytest.fixture
def run(crossing: Crossing) -> Iterator[Run]:
    """Calls on a thread in the router."""
    with enter(crossing.router) as call:
        yield call


def read(run: Run) -> dict[IPv4Address, Mark]:
    found: dict[IPv4Address, Mark] = run(MARKS.read, SCOPE)
    return found


def make(run: Run, wanted: dict[IPv4Address, Mark]) -> Diff[IPv4Address, Mark]:
    """One pass, in the writer's order: what is missing first, what is too much last."""
    difference = diff(wanted, read(run))
    assert run(MARKS.apply, Diff(difference.add, difference.change)) == {}
    assert run(MARKS.apply, Diff(remove=difference.remove)) == {}
    return difference


def tables(crossing: Crossing, *, foreign_only: bool = False) -> str:
    if not foreign_only:
        return nft(crossing.router, "-s list ruleset")
    return nft(crossing.router, "list table ip filter") + nft(crossing.router, "list table inet other")


def foreign_tables(crossing: Crossing) -> None:
    """What others have on the same host; one of them has a map of our names."""
    for line in (
        "add table ip filter",
        "add chain ip filter FORWARD { type filter hook forward priority 0; policy accept; }",
        "add rule ip filter FORWARD ip saddr 203.0.113.7 drop",
        "add table inet other",
        "add map inet other towards { type ipv4_addr : mark; }",
        "add element inet other towards { 10.66.0.10 : 0x7 }",
    ):
        nft(crossing.router, line)


# -- damage -------------------------------------------------------------------------------------------------------

T = "ip wirelane"
DAMAGE = {
    "the chain is gone": [f"delete chain {T} marks"],
    "the rules are gone": [f"flush chain {T} marks"],
    "one rule is gone": [f"flush chain {T} marks", f"add rule {T} marks iifname wg* meta mark set ip saddr map @from"],
    "the wrong way round": [
        f"flush chain {T} marks",
        f"add rule {T} marks oifname wg* meta iif != 0 meta mark set ip daddr map @towards",
        f"add rule {T} marks iifname wg* meta mark set ip saddr map @from",
    ],
    "a rule is there twice": [f"add rule {T} marks iifname wg* meta mark set ip saddr map @from"],
    "a rule has a condition": [
        f"flush chain {T} marks",
        f"add rule {T} marks meta mark set ip saddr map @from",
        f"add rule {T} marks oifname wg* meta iif != 0 meta mark set ip daddr map @towards",
    ],
    "a strange rule": [f"insert rule {T} marks tcp dport 22 accept"],
    "the chain hangs elsewhere": [
        f"delete chain {T} marks",
        f"add chain {T} marks {{ type filter hook forward priority 5; policy accept; }}",
        f"add rule {T} marks iifname wg* meta mark set ip saddr map @from",
        f"add rule {T} marks oifname wg* meta iif != 0 meta mark set ip daddr map @towards",
    ],
    "as the version before had it": [
        f"delete chain {T} marks",
        f"add chain {T} marks {{ type filter hook forward priority -149; policy accept; }}",
        f"add rule {T} marks meta mark set ip saddr map @from",
        f"add rule {T} marks meta mark set ip daddr map @towards",
    ],
    "the chain hangs nowhere": [
        f"delete chain {T} marks",
        f"add chain {T} marks",
        f"add rule {T} marks iifname wg* meta mark set ip saddr map @from",
        f"add rule {T} marks oifname wg* meta iif != 0 meta mark set ip daddr map @towards",
    ],
    "the chain drops": [f"add chain {T} marks {{ policy drop; }}"],
    "another chain of the table": [
        f"add chain {T} stray {{ type filter hook forward priority 7; }}",
        f"add chain {T} second",
        f"add rule {T} second meta mark set ip daddr map @towards",
        f"add rule {T} stray goto second",
    ],
    "another map of the table": [f"add map {T} stray {{ type ipv4_addr : verdict; }}"],
    "a named counter": [f"add counter {T} stray"],
    "a guard": [f"add set {T} moved {{ type ipv4_addr . mark; }}"],
    "the table sleeps": [f"add table {T} {{ flags dormant; }}"],
    "an element is gone": [f"delete element {T} towards {{ {BOB} }}"],
    "an element has another mark": [
        f"delete element {T} towards {{ {BOB} }}",
        f"add element {T} towards {{ {BOB} : 0x6d }}",
    ],
    "half a pair is nobody's": [f"add element {T} towards {{ 10.66.0.21 : 0x7 }}"],
    "a pair is nobody's": [
        f"add element {T} towards {{ 10.66.0.21 : 0x7 }}",
        f"add element {T} from {{ 10.66.0.21 : 0x7 }}",
    ],
}
LOST = {"an element is gone", "an element has another mark"}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen_and_repaired_at_once_and_what_is_right_keeps_its_counters(
    crossing: Crossing, run: Run, name: str
) -> None:
    foreign_tables(crossing)
    make(run, WANTED)
    crossing.send(ALICE, INTERNET, 2, 100)
    crossing.send(INTERNET, BOB, 3, 100)
    right, foreign = tables(crossing), tables(crossing, foreign_only=True)
    for command in DAMAGE[name]:
        nft(crossing.router, command)

    assert read(run) != WANTED
    make(run, WANTED)

    assert read(run) == WANTED
    assert sorted(tables(crossing).split()) == sorted(right.split())
    assert tables(crossing, foreign_only=True) == foreign
    counted = run(MARKS.counters)
    assert counted[ALICE_ADDRESS] == Counters(0, 0, 2, 200)
    # A mark that nobody asked for keeps what it has counted since; a new element starts from what it is given.
    assert counted[BOB_ADDRESS] == (Counters() if name in LOST else Counters(3, 300))
    crossing.send(INTERNET, BOB, 1, 100)
    assert run(MARKS.counters)[BOB_ADDRESS].download_packets == (1 if name in LOST else 4)


@pytest.mark.parametrize("name", DAMAGE.keys() - LOST - {"half a pair is nobody's", "a pair is nobody's"})
def test_a_change_of_one_account_finds_what_was_broken_since_the_last_one(
    crossing: Crossing, run: Run, name: str
) -> None:
    alice, bob = ({address: WANTED[address]} for address in (ALICE_ADDRESS, BOB_ADDRESS))
    for wanted in (alice, bob):
        run(MARKS.apply, Diff(add=wanted))
    right = tables(crossing)
    for command in DAMAGE[name]:
        nft(crossing.router, command)
    run(MARKS.apply, Diff(add=alice))
    assert read(run) == WANTED
    assert sorted(tables(crossing).split()) == sorted(right.split())


def test_who_has_seen_damage_is_believed_whatever_was_listed_before(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    whole = run(MARKS._of.read)
    nft(crossing.router, f"flush chain {T} marks")
    MARKS._known = run(nft_door.state), whole  # as if that commit had not been noticed
    make(run, WANTED)
    assert read(run) == WANTED


def test_a_map_of_another_kind_is_made_anew_and_the_other_keeps_its_counters(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    crossing.send(ALICE, INTERNET, 2, 100)
    for command in (
        f"flush chain {T} marks",
        f"delete map {T} towards",
        f"add map {T} towards {{ type ipv4_addr : mark; flags interval; }}",
        f"add element {T} towards {{ 10.66.0.0/24 : 0x7 }}",
    ):
        nft(crossing.router, command)
    assert read(run).keys() == {BROKEN}
    make(run, {address: Mark(address, mark.mark, counters=Counters(1, 2, 3, 4)) for address, mark in WANTED.items()})
    assert read(run) == WANTED
    assert run(MARKS.counters)[ALICE_ADDRESS] == Counters(1, 2, 2, 200)


def test_a_table_that_is_gone_is_rebuilt_from_the_counters_it_is_given(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    nft(crossing.router, "flush ruleset")
    assert read(run) == {}
    start = Counters(1, 2, 3, 4)
    make(run, {address: Mark(address, mark.mark, counters=start) for address, mark in WANTED.items()})
    assert read(run) == WANTED
    assert run(MARKS.counters) == dict.fromkeys(WANTED, start)


def test_a_change_of_one_account_leaves_damaged_elements_elsewhere_for_the_full_pass(
    crossing: Crossing, run: Run
) -> None:
    make(run, WANTED)
    nft(crossing.router, f"delete element {T} towards {{ {BOB} }}")
    run(MARKS.apply, Diff(remove={ALICE_ADDRESS: WANTED[ALICE_ADDRESS]}))
    assert read(run).keys() == {BROKEN}
    assert BOB in nft(crossing.router, f"list map {T} from")


def test_the_last_account_takes_the_table_with_it(crossing: Crossing, run: Run) -> None:
    foreign_tables(crossing)
    before = tables(crossing)
    many = {a: Mark(a, 100 + i) for i in range(500) if (a := IPv4Address(0x0A400000 + i))}
    make(run, WANTED | many)
    run(MARKS.apply, Diff(remove=many))
    assert read(run) == WANTED
    for address in WANTED:
        run(MARKS.apply, Diff(remove={address: WANTED[address]}))
    assert tables(crossing) == before


# -- packets while things change ----------------------------------------------------------------------------------


def watch_alice(crossing: Crossing) -> None:
    watch(crossing.router, f"ip daddr {ALICE} meta mark 0", f"ip daddr {ALICE} meta mark != 0")


def unmarked(crossing: Crossing) -> int:
    return watched(crossing.router)[0]


def marked(crossing: Crossing) -> int:
    return watched(crossing.router)[1]


def test_no_packet_passes_unmarked_or_uncounted_while_others_change_and_damage_is_repaired(
    crossing: Crossing, run: Run
) -> None:
    make(run, WANTED)
    watch_alice(crossing)
    with flood(crossing, INTERNET, ALICE):
        for number in range(100, 125):
            others = {a: Mark(a, 7000) for i in range(number) if (a := IPv4Address(0x0A440000 + i * 77))}
            make(run, WANTED | others)
            nft(crossing.router, f"insert rule {T} marks ip saddr 203.0.113.9 counter")
            nft(crossing.router, f"add set {T} stray {{ type ipv4_addr; }}")
            assert make(run, WANTED).remove
    assert marked(crossing) > 500
    assert unmarked(crossing) == 0
    assert run(MARKS.counters)[ALICE_ADDRESS].download_packets == marked(crossing)


def test_a_changed_mark_never_leaves_a_packet_unmarked_and_loses_next_to_no_count(crossing: Crossing, run: Run) -> None:
    make(run, WANTED)
    watch_alice(crossing)
    changes = range(100, 150)
    with flood(crossing, INTERNET, ALICE):
        for number in changes:
            make(run, WANTED | {ALICE_ADDRESS: Mark(ALICE_ADDRESS, number)})
    assert unmarked(crossing) == 0
    lost = marked(crossing) - run(MARKS.counters)[ALICE_ADDRESS].download_packets
    assert 0 <= lost <= 5 * len(changes)  # a packet comes every 0.2 ms, and a change takes about 1 ms


# -- from one backend to the other --------------------------------------------------------------------------------


def counted(run: Run) -> int:
    """Packets towards alice, in both backends."""
    return sum(c[ALICE_ADDRESS].download_packets for m in (MARKS, OTHER) if ALICE_ADDRESS in (c := run(m.counters)))


def test_a_host_moves_to_nftables_without_losing_or_doubling_a_packet(crossing: Crossing, run: Run) -> None:
    run(OTHER.apply, Diff(add=WANTED))
    watch_alice(crossing)
    assert run(OTHER.is_there) and not run(MARKS.is_there)
    with flood(crossing, INTERNET, ALICE):
        time.sleep(0.05)
        run(MARKS.defer, WANTED)
        run(MARKS.defer, WANTED)
        run(MARKS.apply, Diff(add=WANTED))
        assert run(MARKS.is_there)
        assert run(MARKS.counters)[ALICE_ADDRESS] == Counters()
        assert BROKEN in read(run)
        run(OTHER.unhook)
        time.sleep(0.05)
        run(OTHER.unhook)
        run(MARKS.undefer)
        run(MARKS.undefer)
    assert read(run) == WANTED
    assert marked(crossing) > 50 and unmarked(crossing) == 0
    assert run(OTHER.counters)[ALICE_ADDRESS].download_packets > 0
    assert counted(run) == marked(crossing)
    run(OTHER.clear)
    run(OTHER.clear)
    assert not run(OTHER.is_there) and run(OTHER.counters) == {}
    assert "WL_" not in iptables(crossing.router, "-t mangle -S")


def test_a_host_moves_to_iptables_without_losing_or_doubling_a_packet(crossing: Crossing, run: Run) -> None:
    run(MARKS.apply, Diff(add=WANTED))
    watch_alice(crossing)
    with flood(crossing, INTERNET, ALICE):
        time.sleep(0.05)
        run(MARKS.defer, WANTED)
        run(OTHER.apply, Diff(add=WANTED))
        time.sleep(0.05)
        run(MARKS.unhook)
        run(MARKS.unhook)
    assert run(OTHER.read, SCOPE) == WANTED
    assert run(MARKS.is_there)
    assert marked(crossing) > 50 and unmarked(crossing) == 0
    assert run(MARKS.counters)[ALICE_ADDRESS].download_packets > 0
    assert counted(run) == marked(crossing)
    run(MARKS.clear)
    run(MARKS.clear)
    assert not run(MARKS.is_there) and run(MARKS.counters) == {}


def test_between_two_accounts_a_guard_leaves_both_counts_to_iptables(crossing: Crossing, run: Run) -> None:
    run(OTHER.apply, Diff(add=WANTED))
    run(MARKS.defer, WANTED)
    run(MARKS.apply, Diff(add=WANTED))
    crossing.send(ALICE, BOB, 3, 100)
    assert run(MARKS.counters) == dict.fromkeys(WANTED, Counters())
    assert run(OTHER.counters) == {ALICE_ADDRESS: Counters(0, 0, 3, 300), BOB_ADDRESS: Counters(3, 300)}


def test_a_forgotten_guard_is_damage_and_goes(crossing: Crossing, run: Run) -> None:
    run(MARKS.defer, WANTED)
    run(MARKS.apply, Diff(add=WANTED))
    assert read(run).keys() == {*WANTED, BROKEN}
    make(run, WANTED)
    assert read(run) == WANTED
    assert "moved" not in tables(crossing)


def test_the_verbs_of_moving_do_nothing_where_nothing_stands(crossing: Crossing, run: Run) -> None:
    before = tables(crossing), iptables(crossing.router, "-t mangle -S")
    for door in (MARKS, OTHER):
        assert not run(door.is_there)
        run(door.unhook)
        run(door.clear)
    run(MARKS.undefer)
    assert (tables(crossing), iptables(crossing.router, "-t mangle -S")) == before
