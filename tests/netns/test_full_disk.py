"""The agent's disk is full: a real one, small, filled to the last byte. Linux is the fake with a memory."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from agent.desired import Patch
from agent.errors import StoreError
from agent.status import Outcome
from agent.store import open_store
from tests.fakes.state import account, key
from tests.unit.agent.test_reconcile import LONG, Node, node

CUSTOMERS = [account(n) for n in range(2, 6)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", path], check=True, timeout=10)
    yield path
    subprocess.run(["umount", "-l", path], check=True, timeout=10)


def fill(disk: Path) -> None:
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not true():  # noqa: ASYNC110 - the loop's own timers bring it about
            await asyncio.sleep(0.01)


async def fill_up(one: Node, disk: Path) -> None:
    """To where the next sample cannot be written either: SQLite has some room in the files that it has."""
    fill(disk)
    for _ in range(2000):
        one.kernel.pass_traffic("10.0.1.5", 1000, 10)
        try:
            await one.reconciler.sample()
        except StoreError:
            return
    raise AssertionError("the disk never was full")


def peers(one: Node) -> set[str]:
    return {peer for _, peer in one.kernel.peers.held}


async def told(one: Node) -> str:
    await until(lambda: bool(one.reconciler.status().problem))
    return one.reconciler.status().problem


SWITCHES: list[Callable[[Node, int], Awaitable[Outcome]]] = [
    lambda one, revision: one.patch(account(2, enabled=False), revision=revision),
    lambda one, revision: one.patch(revision=revision, remove=(2,)),
    lambda one, revision: one.patch(account(2, public_key=key(99)), account(9), revision=revision),
    lambda one, revision: one.snapshot(*CUSTOMERS[1:], account(9), revision=revision),
]
IDS = ["disabled", "deleted", "another key", "snapshot"]


@pytest.mark.parametrize("switch", SWITCHES, ids=IDS)
def test_who_is_switched_off_is_cut_off_and_nobody_new_is_let_in(
    disk: Path, switch: Callable[[Node, int], Awaitable[Outcome]]
) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            problem = one.reconciler.status().problem
            assert "is full" in problem and str(disk) in problem  # before the first change
            for _ in range(3):  # the gateway sends it again
                with pytest.raises(StoreError, match="is full"):
                    await switch(one, 6)
                await until(lambda: peers(one) == {key(n) for n in (3, 4, 5)})
            one.kernel.pass_traffic("10.0.1.3", 5000, 500)
            assert one.reconciler.status().revision == 5 and "is full" in one.reconciler.status().problem
            (disk / "ballast").unlink()
            assert await switch(one, 6) is Outcome.APPLIED
            await one.reconciler.sample()
            await until(lambda: not one.reconciler.status().problem)
            used = {total.account_id: total.used.download for total in one.store.totals(0)[1]}
            assert used[3] == 5000
            assert (await one.resync()).drift_count == 0
            kept = peers(one)
        with_file = open_store(disk / "agent.db")
        after = with_file.load()
        with_file.close()
        assert after is not None and after.revision == 6
        assert kept == {one.public_key for one in after.accounts.values() if one.enabled}

    asyncio.run(story())


def test_a_cut_off_customer_is_let_in_again_by_what_is_written_only(disk: Path) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            for change in (account(2, enabled=False), account(2)):
                with pytest.raises(StoreError):
                    await one.patch(change, revision=6)
                await until(lambda: key(2) not in peers(one))
            await one.reconciler.first_pass(LONG)
            assert key(2) not in peers(one)
            (disk / "ballast").unlink()
            assert await one.patch(account(2), revision=7) is Outcome.APPLIED
            assert key(2) in peers(one)

    asyncio.run(story())


def test_a_snapshot_equal_to_the_file_lets_those_in_who_were_cut_off(disk: Path) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            with pytest.raises(StoreError):
                await one.patch(revision=6, remove=(2,))
            await until(lambda: key(2) not in peers(one))
            (disk / "ballast").unlink()
            assert await one.snapshot(*CUSTOMERS, revision=7) is Outcome.APPLIED
            assert key(2) in peers(one)

    asyncio.run(story())


def test_after_a_restart_with_a_full_disk_the_gateways_next_call_cuts_off_again(disk: Path) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            with pytest.raises(StoreError):
                await one.patch(revision=6, remove=(2,))
            await until(lambda: key(2) not in peers(one))
            kernel = one.kernel
        fill(disk)
        async with node(disk / "agent.db", kernel) as again:
            await until(lambda: key(2) in peers(again))  # the file knows no better
            assert "is full" in await told(again)
            with pytest.raises(StoreError):
                await again.patch(revision=6, remove=(2,))
            await until(lambda: key(2) not in peers(again))
            (disk / "ballast").unlink()
            assert await again.patch(revision=6, remove=(2,)) is Outcome.APPLIED
            assert len(peers(again)) == 3

    asyncio.run(story())


def test_what_cannot_be_right_cuts_nobody_off(disk: Path) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            stale = Patch("another", 0, 6, remove_accounts=(2,))
            with pytest.raises(Exception, match="epoch"):
                await one.reconciler.accept_patch(stale, LONG)
            with pytest.raises(StoreError):
                await one.patch(account(9), revision=6)
            await asyncio.sleep(0.1)
            assert peers(one) == {key(n) for n in range(2, 6)}

    asyncio.run(story())


def test_missed_samples_are_one_line_in_the_log(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with node(disk / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            await fill_up(one, disk)
            for _ in range(20):
                one.kernel.pass_traffic("10.0.1.2", 1000, 10)
                with pytest.raises(StoreError):
                    await one.reconciler.sample()
            assert sum("sample missed" in line for line in caplog.messages) == 1
            (disk / "ballast").unlink()
            await one.reconciler.sample()
            used = {total.account_id: total.used.download for total in one.store.totals(0)[1]}
            assert used[2] == 20_000

    asyncio.run(story())


def test_a_slow_disk_does_not_keep_anybody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with node(tmp_path / "agent.db") as one:
            await one.snapshot(*CUSTOMERS)
            real, go = one.store.save_patch, Event()
            monkeypatch.setattr("agent.reconcile.LATE_SECONDS", 0.05)
            monkeypatch.setattr(one.store, "save_patch", lambda *a: (go.wait(LONG), real(*a)))
            switching = asyncio.create_task(one.patch(account(2, enabled=False), account(9), revision=6))
            await until(lambda: peers(one) == {key(n) for n in (3, 4, 5)})
            go.set()
            assert await switching is Outcome.APPLIED and key(9) in peers(one)

    asyncio.run(story())
