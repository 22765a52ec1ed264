from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Address
from agent.objects import ANY_STAMP, NO_COUNTERS, Counters, Diff, Mark
from agent.usage import BOTH, Baseline, Usage, Used, advance, day_of
from tests.fakes.state import MemoryKeeper

A = IPv4Address("10.0.0.2")


def counted(download: int, upload: int = 0) -> Counters:
    return Counters(1, download, 1, upload)


def test_only_what_is_new_counts() -> None:
    moved, used = advance({A: Baseline(7, counted(100, 10))}, {A: counted(150, 10)}, {A: 7})
    assert used == {7: Used(50, 0)} and moved == {A: Baseline(7, counted(150, 10))}


def test_a_counter_that_fell_was_reset_and_all_of_it_is_new() -> None:
    _, used = advance({A: Baseline(7, counted(100, 10))}, {A: counted(30, 4)}, {A: 7})
    assert used == {7: Used(30, 4)}


MB = 1_000_000


@pytest.mark.parametrize(
    ("before", "saved"),
    [
        (counted(40 * MB, MB), counted(20 * MB, 300_000)),  # the morning's save, after as much again
        (counted(40 * MB, MB), counted(20 * MB, MB)),  # only one direction has moved since
        (counted(3 * MB, 0), counted(2 * MB, 0)),
        (counted(0, 50 * MB), counted(0, 49 * MB)),
    ],
)
def test_counters_that_are_put_back_are_not_billed_again_however_often(before: Counters, saved: Counters) -> None:
    keeper = MemoryKeeper()
    usage = Usage(keeper, lambda: 1_700_000_000.0)
    usage.observe({}, {}, "UTC")
    usage.observe({A: before}, {A: 7}, "UTC")
    for _ in range(3):
        usage.observe({A: saved}, {A: 7}, "UTC")
        assert keeper.total(7) == Used(before.download_bytes, before.upload_bytes)
        # What passes after the save was put back is new, until the next time.
        usage.observe({A: replace(saved, download_bytes=saved.download_bytes + 1000)}, {A: 7}, "UTC")
        before = replace(before, download_bytes=before.download_bytes + 1000)


def test_after_a_reset_only_what_passed_since_counts() -> None:
    _, used = advance({A: Baseline(7, counted(40 * MB, MB))}, {A: counted(900_000, 90_000)}, {A: 7})
    assert used == {7: Used(900_000, 90_000)}


@pytest.mark.parametrize(("shown", "new"), [(MB - 1, MB - 1), (MB, 0)])
def test_a_reset_shows_less_than_a_million_bytes(shown: int, new: int) -> None:
    _, used = advance({A: Baseline(7, counted(40 * MB, MB))}, {A: counted(shown - 9, 9)}, {A: 7})
    assert sum(one.download + one.upload for one in used.values()) == new


def test_what_does_not_count_hinders_no_other_address() -> None:
    nobodys, idle, put_back, last = (IPv4Address(f"10.0.0.{n}") for n in range(3, 7))
    baselines: dict[Address, Baseline] = {
        idle: Baseline(7, counted(1)),
        put_back: Baseline(7, counted(1), since=9),
        last: Baseline(8, counted(1), since=9),
    }
    old, young = replace(counted(5), made=8), replace(counted(3), made=9)
    sample: dict[Address, Counters] = {nobodys: counted(5), idle: counted(1), put_back: old, last: young}
    assert advance(baselines, sample, {}) == ({last: Baseline(8, young, 9)}, {8: Used(2, 0)})


def test_bytes_belong_to_whom_the_rules_counted_for() -> None:
    _, used = advance({A: Baseline(7, counted(100))}, {A: counted(130)}, {A: 8})
    assert used == {7: Used(30, 0)}


def test_rules_of_nobody_count_for_nobody() -> None:
    assert advance({}, {A: counted(5)}, {}) == ({}, {})


def test_an_idle_address_costs_nothing() -> None:
    assert advance({A: Baseline(7, counted(1))}, {A: counted(1)}, {A: 7}) == ({}, {})


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans(), st.booleans()), max_size=30))
def test_totals_are_exact_through_resets_and_restarts(steps: list[tuple[int, bool, bool]]) -> None:
    """Each step: some bytes pass; perhaps the counter is zeroed right after a sample; perhaps the agent restarts."""
    keeper, now = MemoryKeeper(), 1_700_000_000.0
    usage = Usage(keeper, lambda: now)
    usage.observe({}, {}, "UTC")
    counter = passed = 0
    for octets, zeroed, restarted in steps:
        counter, passed = counter + octets, passed + octets
        usage.observe({A: Counters(0, counter, 0, 0)}, {A: 7}, "UTC")
        if zeroed:
            counter = 0
            usage.observe({A: NO_COUNTERS}, {A: 7}, "UTC")
        if restarted:
            usage = Usage(keeper, lambda: now)
    assert keeper.total(7) == Used(passed, 0)


def at(zone: str, *when: int) -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[misc,arg-type]


def test_a_day_is_one_of_the_time_zone() -> None:
    moment = at("UTC", 2026, 12, 31, 23, 30)
    assert (day_of(moment, "UTC"), day_of(moment, "Europe/Warsaw")) == (20261231, 20270101)
    assert day_of(at("Asia/Kathmandu", 2028, 2, 29, 23, 59), "Asia/Kathmandu") == 20280229


def days_of(samples: list[tuple[float, int]]) -> dict[int, int]:
    keeper = MemoryKeeper()
    clock = iter([moment for moment, _ in samples])
    usage = Usage(keeper, lambda: next(clock))
    for _, total in samples:
        usage.observe({A: Counters(0, total, 0, 0)} if total else {}, {A: 7}, "Europe/Warsaw")
    return {day: used.download for (_, day), used in keeper.days.items()}


def test_a_sample_at_midnight_closes_the_old_day() -> None:
    before, edge, after = (at("Europe/Warsaw", 2026, 2, 28, 23, 59, 50), at("Europe/Warsaw", 2026, 3, 1), 10.0)
    assert days_of([(before, 0), (edge + 0.02, 500), (edge + after, 600)]) == {20260228: 500, 20260301: 100}


def test_half_a_second_around_midnight_belongs_to_the_old_day_and_a_day_later_to_the_new() -> None:
    edge = at("Europe/Warsaw", 2026, 3, 1)
    assert days_of([(edge - 0.25, 0), (edge + 0.25, 500)]) == {20260228: 500}
    assert days_of([(edge, 0), (edge + 86_399, 500)]) == {20260301: 500}
    assert days_of([(edge, 0), (edge + 86_400, 500)]) == {20260302: 500}


def test_a_clock_that_is_set_back_counts_on() -> None:
    noon = at("Europe/Warsaw", 2026, 5, 5, 12)
    assert days_of([(noon, 0), (noon - 3 * 86_400, 100), (noon - 3 * 86_400 + 10, 150)]) == {20260502: 150}


def test_after_a_long_stop_bytes_belong_to_now() -> None:
    noon = at("Europe/Warsaw", 2026, 5, 5, 12)
    assert days_of([(noon, 0), (noon + 7 * 86_400, 100)]) == {20260512: 100}


def test_a_sample_of_some_addresses_leaves_the_others_time_alone() -> None:
    """A removal right after midnight, before the midnight sample: the rest still counts for the old day."""
    b, edge = IPv4Address("10.0.0.3"), at("UTC", 2026, 3, 1)
    owners: dict[Address, int] = {A: 7, b: 8}
    keeper, times = MemoryKeeper(), iter([edge - 5, edge + 0.01, edge + 0.02])
    usage = Usage(keeper, lambda: next(times))
    usage.observe({}, owners, "UTC")
    usage.observe({A: counted(100)}, owners, "UTC", whole=False)
    usage.observe({A: counted(100), b: counted(50)}, owners, "UTC")
    assert keeper.days == {(7, 20260228): Used(100, 0), (8, 20260228): Used(50, 0)}


def test_the_sum_of_an_account_is_over_both_families() -> None:
    keeper, second = MemoryKeeper(), IPv6Address("fd00::2")
    usage = Usage(keeper, lambda: at("UTC", 2026, 3, 1))
    owners: dict[Address, int] = {A: 7, second: 7}
    usage.observe({}, owners, "UTC")
    usage.observe({A: counted(100), second: counted(1000)}, owners, "UTC")
    assert [used.download for used in keeper.days.values()] == [1100]
    # The table of IPv6 has no stamp: it is believed whatever that of IPv4 said.
    usage.begin(9)
    usage.wrote(Diff(remove={A: Mark(A, 100, at=9)}), is_there=True)
    usage.restarted({second: 8})
    usage.observe({second: counted(1)}, {second: 8}, "UTC")
    assert sorted(used.download for used in keeper.days.values()) == [1, 1100]


def test_the_last_reading_of_a_backend_is_counted_and_what_has_moved_goes_on_with_the_other() -> None:
    b, c, edge = IPv4Address("10.0.0.3"), IPv4Address("10.0.0.4"), at("UTC", 2026, 3, 1)
    keeper, times = MemoryKeeper(), iter([edge - 9, edge - 5, edge + 1])
    usage = Usage(keeper, lambda: next(times))
    usage.counts_by("iptables")
    usage.observe({}, {}, "UTC")
    usage.observe({A: counted(100)}, {A: 7}, "UTC")
    usage.end_changeover({A: counted(150, 4), b: counted(20), c: counted(9)}, {A: 7, b: 8}, "UTC", "nftables", {b})
    assert keeper.days == {(7, 20260228): Used(150, 4), (8, 20260228): Used(20, 0)}
    assert usage.counted == Used(170, 4)
    assert (usage.counted_by, usage.sampled_at) == ("nftables", edge + 1) == (keeper.counted_by, keeper.sampled_at)
    assert usage.addresses() == {A} == keeper.baselines.keys()
    assert keeper.baselines[A].counters == counted(150, 4) == usage.start_of(A, 7)
    assert usage.start_of(A, 8) == usage.start_of(b, 8) == NO_COUNTERS


def test_who_counts_is_written_down_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, written = MemoryKeeper(), list[str]()
    monkeypatch.setattr(keeper, "save_counted_by", written.append)
    usage = Usage(keeper, lambda: 1_700_000_000.0)
    for backend in ("iptables", "iptables", BOTH):
        usage.counts_by(backend)
        assert usage.counted_by == backend
    assert written == ["iptables", BOTH]


def test_what_a_new_file_finds_is_whose_the_address_is() -> None:
    keeper = MemoryKeeper()
    Usage(keeper, lambda: 1_700_000_000.0).observe({A: counted(100)}, {A: 7}, "UTC")
    assert (keeper.baselines, keeper.days) == ({A: Baseline(7, counted(100))}, {})


@pytest.mark.parametrize("said", [0, 5])
def test_rules_that_are_made_before_the_first_pass_are_as_old_as_the_table_ever_was(said: int) -> None:
    """A move to another backend is."""
    keeper = MemoryKeeper()
    keeper.stamp, keeper.baselines = said, {A: Baseline(7, counted(100))}
    usage = Usage(keeper, lambda: 1_700_000_000.0)
    (mark,) = usage.start({A: Mark(A, 100, 8)}, whoever=True).values()
    assert (mark.counters, mark.at, mark.after, mark.restart) == (counted(100), said, ANY_STAMP, False)
    (mark,) = usage.start({A: Mark(A, 100, 8)}).values()
    assert mark.counters == NO_COUNTERS
