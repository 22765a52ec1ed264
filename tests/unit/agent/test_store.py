from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.errors import StaleRevision, StoreError
from agent.model import EVERYWHERE, FilterRule, PortForward, Reach, Secret
from agent.objects import NO_COUNTERS, Counters
from agent.origin import Origin
from agent.store import Store, only_agent, open_store, open_store_or_new
from agent.usage import Baseline, Usage, Used
from tests.fakes.state import IKEV2, account, key, server

A = IPv4Address("10.0.1.2")
NOW = 1_700_000_000.0


def read(store: Store) -> tuple[object, object]:
    """What the agent takes from its file when it starts."""
    return store.load(), store.load_baselines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "agent.db"


def filled(path: Path) -> tuple[Store, Desired]:
    store = open_store(path)
    desired = Desired.of(store.epoch, Snapshot(5, (server(),), (account(2), account(3)), "Europe/Warsaw"))
    store.save_snapshot(desired)
    return store, desired


def test_a_new_file_holds_nothing_and_is_root_s_alone(path: Path) -> None:
    store = open_store(path)
    assert store.load() is None
    assert {os.stat(p).st_mode & 0o777 for p in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    store.close()


def test_what_was_saved_is_there_after_a_restart(path: Path) -> None:
    store, desired = filled(path)
    patch = Patch(store.epoch, 5, 6, (server(2),), (), (account(4),), (3,))
    patched = desired.patched(patch)
    store.save_patch(patched, patch)
    store.close()
    again = open_store(path)
    assert again.load() == patched
    again.close()


def test_very_much_usage_is_told_part_by_part_and_whole_samples_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.store.AT_ONCE", 5)
    store = open_store(path)
    for number in range(7):  # three rows each, of another day
        store.save_sample({}, {i: Used(number + 1, 1) for i in (2, 3, 4)}, 20260101 + number, 1.0)
    told: dict[tuple[int, int], int] = {}
    cursor, parts = 0, 0
    while True:
        after, (cursor, totals) = cursor, store.totals(cursor)
        if not totals:
            break
        assert len(totals) == 3 and cursor == after + 1, "one sample, and no half of the next"
        told |= {(total.account_id, total.day): total.used.download for total in totals}
        parts += 1
    assert parts == 7 and told == {(i, 20260101 + n): n + 1 for i in (2, 3, 4) for n in range(7)}
    store.close()


def test_an_acknowledged_change_survives_kill_9(path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tests.unit.agent.test_store import filled
store, _ = filled(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert done.returncode == -9
    store = open_store(path)
    loaded = store.load()
    assert loaded is not None and loaded.revision == 5 and set(loaded.accounts) == {2, 3}
    store.close()


def test_durability_is_not_a_matter_of_luck(path: Path) -> None:
    store = open_store(path)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


@pytest.mark.parametrize("damage", [lambda data: b"not a database " * 500, lambda data: data[:5000] + os.urandom(4000)])
def test_a_damaged_file_is_put_aside_whole_and_a_new_epoch_begins(path: Path, damage: object) -> None:
    store, _ = filled(path)
    epoch = store.epoch
    store.close()
    broken = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(broken)
    fresh, _, aside = open_store_or_new(path, read)
    assert aside is not None and aside.read_bytes() == broken
    assert fresh.load() is None and fresh.epoch != epoch
    fresh.close()


def test_a_value_that_cannot_be_right_is_damage_too(path: Path) -> None:
    store, _ = filled(path)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE accounts SET mark = 7")
    db.close()
    fresh, _, aside = open_store_or_new(path, read)
    assert aside is not None and fresh.load() is None
    fresh.close()


def test_a_file_of_a_newer_agent_is_left_alone(path: Path) -> None:
    filled(path)[0].close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer"):
        open_store_or_new(path, read)


def test_a_second_agent_is_kept_away(path: Path) -> None:
    with only_agent(path), pytest.raises(StoreError, match="another wirelane-agent"), only_agent(path):
        pass


def test_usage_goes_on_after_a_restart_and_the_cursor_tells_what_changed(path: Path) -> None:
    store, desired = filled(path)
    usage = Usage(store, lambda: NOW)
    usage.observe({}, desired.by_address, "UTC")
    usage.observe({A: Counters(1, 100, 1, 10)}, desired.by_address, "UTC")
    cursor, totals = store.totals(0)
    assert [(t.account_id, t.day, t.used) for t in totals] == [(2, 20231114, Used(100, 10))]
    store.close()
    again = open_store(path)
    usage = Usage(again, lambda: NOW)
    assert again.totals(cursor) == (cursor, [])
    usage.observe({A: Counters(2, 150, 2, 20)}, desired.by_address, "UTC")
    assert [t.used for t in again.totals(cursor)[1]] == [Used(150, 20)]
    assert again.totals(cursor, (3,))[1] == []
    again.close()


def test_the_owner_of_an_address_is_known_before_the_first_sample(path: Path) -> None:
    store, _ = filled(path)
    assert store.load_baselines()[A] == Baseline(2, NO_COUNTERS)
    usage = Usage(store, lambda: NOW)
    usage.restarted({A: 9})
    assert store.load_baselines()[A].owner == 9
    usage.forget([A])
    assert A not in store.load_baselines()
    store.close()


def test_secrets_do_not_show(path: Path) -> None:
    assert server().private_key.reveal() not in repr(server())


def test_a_day_with_a_wrong_clock_costs_no_other_day(path: Path) -> None:
    store, desired = filled(path)
    now = NOW
    usage = Usage(store, lambda: now)
    usage.observe({}, desired.by_address, "UTC")
    usage.observe({A: Counters(1, 1000, 0, 0)}, desired.by_address, "UTC")
    now = NOW + 200 * 86_400
    usage.observe({A: Counters(2, 1500, 0, 0)}, desired.by_address, "UTC")
    now = NOW
    usage.observe({A: Counters(3, 1700, 0, 0)}, desired.by_address, "UTC")
    assert sum(total.used.download for total in store.totals(0)[1]) == 1700
    store.close()


@pytest.mark.parametrize("damage", ["DELETE FROM meta WHERE key = 'epoch'", "DROP TABLE usage"])
def test_a_file_that_lacks_something_is_put_aside(path: Path, damage: str) -> None:
    filled(path)[0].close()
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    fresh, _, aside = open_store_or_new(path, read)
    assert aside is not None and fresh.load() is None
    fresh.close()


def to_version_4(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE accounts DROP COLUMN ports")
    db.execute("ALTER TABLE servers DROP COLUMN filter")
    for column in ("servers DROP COLUMN ikev2", "accounts DROP COLUMN username", "accounts DROP COLUMN password"):
        db.execute(f"ALTER TABLE {column}")
    db.execute("ALTER TABLE servers DROP COLUMN address_ipv6")
    db.execute("ALTER TABLE servers DROP COLUMN nat_ipv6")
    db.execute("ALTER TABLE accounts DROP COLUMN address_ipv6")
    db.execute("DROP TABLE baselines_ipv6")


def test_a_file_of_version_1_is_upgraded_in_place(path: Path) -> None:
    store, desired = filled(path)
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE accounts DROP COLUMN preshared_key")
        db.execute("ALTER TABLE servers DROP COLUMN reach")
        db.execute("ALTER TABLE baselines DROP COLUMN since")
        to_version_4(db)
        db.execute("PRAGMA user_version = 1")
    db.close()
    for _ in range(2):
        again, _, aside = open_store_or_new(path, read)
        assert aside is None and again.epoch == desired.epoch
        told_again = replace(desired, revision=0, origin=replace(desired.origin, mark=0))
        assert again.load() == told_again, "servers that were there reach the internet, as new ones do"
        assert {base.since for base in again.load_baselines().values()} == {0}
        again.close()


def test_a_node_that_was_upgraded_is_told_everything_once_more(path: Path) -> None:
    """A gateway that came before it may have told it of a preshared key, for which it had no room."""
    store = open_store(path)
    origin = Origin("database", 7, "n1")
    before = Desired.of(store.epoch, Snapshot(5, (server(),), (account(2),), "UTC", origin))
    store.save_snapshot(before)
    store.close()
    with sqlite3.connect(path) as db:
        to_version_4(db)
        db.execute("ALTER TABLE accounts DROP COLUMN preshared_key")
        db.execute("PRAGMA user_version = 3")
    db.close()
    store = open_store(path)
    held = store.load()
    assert held is not None and dict(held.accounts) == dict(before.accounts)  # and serves it until then
    with pytest.raises(StaleRevision):
        held.patched(Patch(store.epoch, 5, 6, origin=replace(origin, mark=8), base_mark=7))
    keyed = Snapshot(5, (server(),), (account(2, preshared_key=Secret(key(77))),), "UTC", origin)
    held.check_replaced(keyed)
    store.save_snapshot(Desired.of(store.epoch, keyed))
    store.close()
    again = open_store(path)
    assert again.load() == Desired.of(again.epoch, keyed)
    again.close()


def test_a_reach_is_kept(path: Path) -> None:
    store = open_store(path)
    reach = Reach.parse("internet,10.20.0.0/16")
    desired = Desired.of(store.epoch, Snapshot(1, (server(reach=reach),), (), "UTC"))
    store.save_snapshot(desired)
    store.close()
    again = open_store(path)
    assert again.load() == desired
    again.close()


def test_a_second_family_is_kept_with_its_baselines(path: Path) -> None:
    store = open_store(path)
    one = server(address_ipv6=IPv6Interface("fd77::1/64"), nat_ipv6=True, ikev2=IKEV2)
    own = IPv6Address("fd77::2")
    desired = Desired.of(store.epoch, Snapshot(1, (one,), (account(2, address_ipv6=own), account(3)), "UTC"))
    store.save_snapshot(desired)
    usage = Usage(store, lambda: 1_700_000_000.0)
    usage.observe({}, desired.by_address, "UTC")
    usage.observe({own: Counters(1, 1000, 0, 0)}, desired.by_address, "UTC")
    store.close()
    again = open_store(path)
    assert again.load() == desired
    assert again.load_baselines()[own] == Baseline(2, Counters(1, 1000, 0, 0))
    assert [(t.account_id, t.used.download) for t in again.totals(0)[1]] == [(2, 1000)]
    again.forget_baselines([own], 1)
    assert own not in again.load_baselines()
    again.close()


def test_a_filter_is_kept(path: Path) -> None:
    store = open_store(path)
    mail = FilterRule(False, EVERYWHERE, IPv4Network("10.0.0.0/8"), "tcp", 7, 25)
    rules = mail, FilterRule(True, IPv6Network("::/0"), IPv6Network("fd00::1/128"), "icmp")
    desired = Desired.of(store.epoch, Snapshot(1, (server(1, filter=rules), server(2)), (), "UTC"))
    store.save_snapshot(desired)
    store.close()
    again = open_store(path)
    assert again.load() == desired
    again.close()


def test_a_filter_that_came_with_one_server_is_kept_for_all(path: Path) -> None:
    store = open_store(path)
    desired = Desired.of(store.epoch, Snapshot(1, (server(1), server(2)), (), "UTC"))
    store.save_snapshot(desired)
    one = server(2, filter=(FilterRule(False, EVERYWHERE, EVERYWHERE),))
    patch = Patch(store.epoch, 1, 2, put_servers=(one,))
    desired = desired.patched(patch)
    store.save_patch(desired, patch)
    store.close()
    again = open_store(path)
    assert again.load() == desired and desired.servers["s1"].filter
    again.close()


def test_ports_are_kept(path: Path) -> None:
    store = open_store(path)
    led = account(2, ports=(PortForward("udp", 25565, 7777), PortForward("tcp", 80, 8080)))
    desired = Desired.of(store.epoch, Snapshot(1, (server(),), (led, account(3)), "UTC"))
    store.save_snapshot(desired)
    store.close()
    again = open_store(path)
    assert again.load() == desired
    again.close()
