"""The loop: what callers are told, what is retried, what counts as drift. On the fake kernel, in real asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.errors import InvalidValue, KernelError, StaleRevision, StoreError
from agent.objects import Diff
from agent.reconcile import Reconciler
from agent.report import Report
from agent.status import Outcome, Status
from agent.store import Store, open_store
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import account, key, server

LONG = 10.0  # seconds; a wait that is expected to end well before


class Node:
    def __init__(self, kernel: FakeKernel, store: Store, reconciler: Reconciler) -> None:
        self.kernel, self.store, self.reconciler = kernel, store, reconciler

    async def snapshot(self, *accounts: object, revision: int = 5) -> Outcome:
        snapshot = Snapshot(revision, (server(),), accounts)  # type: ignore[arg-type]
        return (await self.reconciler.accept_snapshot(snapshot, LONG)).outcome

    async def patch(self, *put: object, revision: int, remove: tuple[int, ...] = (), wait: float = LONG) -> Outcome:
        patch = Patch(self.store.epoch, 0, revision, put_accounts=put, remove_accounts=remove)  # type: ignore[arg-type]
        return (await self.reconciler.accept_patch(patch, wait)).outcome

    async def resync(self) -> Status:
        before = self.reconciler.status().last_resync_time
        self.reconciler.request_resync()
        async with asyncio.timeout(LONG):
            while self.reconciler.status().last_resync_time == before:  # noqa: ASYNC110 - the fake clock ticks per call
                await asyncio.sleep(0.005)
        return self.reconciler.status()


@asynccontextmanager
async def node(path: Path, kernel: FakeKernel | None = None) -> AsyncIterator[Node]:
    kernel, store, ticks = kernel or FakeKernel(), open_store(path), iter(range(1_700_000_000, 1_800_000_000))
    with ThreadPoolExecutor(1) as thread:
        reconciler = Reconciler(
            Writer(kernel, Usage(store, lambda: next(ticks))),
            store,
            thread,
            desired=store.load(),
            resync_seconds=0.05,
            clock=lambda: next(ticks),
            about=Status(store.epoch),
        )
        loop = asyncio.create_task(reconciler.run())
        try:
            await reconciler.first_pass(LONG)
            yield Node(kernel, store, reconciler)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def test_without_a_desired_state_the_kernel_is_left_alone(path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        kernel.peers.held["wg1", key(2)] = object()
        async with node(path, kernel) as one:
            one.reconciler.request_resync()
            await asyncio.sleep(0.05)
            assert kernel.writes == [] and one.reconciler.status().needs_snapshot
            with pytest.raises(StaleRevision):
                await one.patch(account(2), revision=1)

    asyncio.run(story())


def test_a_change_is_applied_when_the_call_answers_and_durable(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            assert await one.snapshot(account(2)) is Outcome.APPLIED
            assert await one.patch(account(3), revision=6) is Outcome.APPLIED
            assert len(one.kernel.peers.held) == 2 and one.reconciler.status().applied_revision == 6
            kernel = one.kernel
        kernel.writes.clear()
        async with node(path, kernel) as again:
            assert again.reconciler.status().revision == 6 and kernel.writes == []

    asyncio.run(story())


def test_a_slow_kernel_makes_it_pending_and_nothing_is_lost(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot()
            one.kernel.fail_at = 0
            one.reconciler._resync_seconds = 60.0
            talkative = Patch(one.store.epoch, 5, 6, (server(internal_traffic=True),), put_accounts=(account(2),))
            assert (await one.reconciler.accept_patch(talkative, 0.2)).outcome is Outcome.PENDING
            assert one.reconciler.status().problem
            assert await one.patch(account(3), revision=7, wait=LONG) is Outcome.APPLIED
            assert len(one.kernel.peers.held) == 2 and not one.reconciler.status().problem

    asyncio.run(story())


def test_a_refusal_is_told_kept_in_the_status_and_tried_again(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot()
            one.kernel.refuses["classes", "add", ("wg1", 0x100)] = "no room"
            assert await one.patch(account(2), account(3), revision=6) is Outcome.FAILED
            assert await one.patch(account(4), revision=7) is Outcome.APPLIED  # others do not suffer
            assert [f.subject for f in one.reconciler.status().failures] == ["a2"]
            one.kernel.refuses.clear()
            async with asyncio.timeout(LONG):
                while one.reconciler.status().failures:  # noqa: ASYNC110 - retried by the loop's own timer
                    await asyncio.sleep(0.01)
            assert len(one.kernel.peers.held) == 3
            assert one.reconciler.status().drift_count == 0  # what was asked for is no drift when it comes late

    asyncio.run(story())


def test_drift_is_repaired_and_counted_and_a_restore_is_no_drift(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3))
            assert (await one.resync()).drift_count == 0
            del one.kernel.marks.held[IPv4Address("10.0.1.2")]
            one.kernel.peers.held.clear()
            assert (await one.resync()).drift_count == 3
            assert (await one.resync()).drift_count == 3
            kernel = one.kernel
        kernel.reboot()
        async with node(path, kernel) as again:
            assert again.reconciler.status().drift_count == 0 and len(kernel.peers.held) == 2

    asyncio.run(story())


def test_a_change_of_an_account_is_no_reason_to_look_at_everything(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            looked = one.reconciler.status().last_resync_time
            assert await one.patch(account(3), revision=6) is Outcome.APPLIED
            assert await one.patch(account(3, download=77), revision=7) is Outcome.APPLIED
            assert one.reconciler.status().last_resync_time == looked

    asyncio.run(story())


def test_a_change_of_a_server_is_no_drift(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            for revision, changed in ((6, server(internal_traffic=True)), (7, server(mtu=1300))):
                settled = await one.reconciler.accept_patch(Patch(one.store.epoch, 5, revision, (changed,)), LONG)
                assert settled.outcome is Outcome.APPLIED
            assert one.kernel.links.held["wg1"].mtu == 1300 and one.reconciler.status().drift_count == 0

    asyncio.run(story())


def test_what_was_refused_is_forgotten_when_the_next_change_of_that_account_is_taken(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot()
            one.reconciler._resync_seconds = 60.0
            one.kernel.refuses["classes", "add", ("wg1", 0x100)] = "no room"
            assert await one.patch(account(2), revision=6) is Outcome.FAILED
            one.kernel.refuses.clear()
            assert await one.patch(account(2, download=30), revision=7) is Outcome.APPLIED
            assert one.reconciler.status().failures == ()

    asyncio.run(story())


def test_a_hundred_changes_at_once_take_a_few_passes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot()
            passes, made = 0, one.kernel.marks.apply

            def count(diff: Diff[Any, Any]) -> Mapping[Any, KernelError]:
                nonlocal passes
                passes += 1
                time.sleep(0.03)  # so that the others come meanwhile
                return made(diff)

            monkeypatch.setattr(one.kernel.marks, "apply", count)
            calls = [one.patch(account(n), revision=4 + n) for n in range(2, 90)]
            assert set(await asyncio.gather(*calls)) == {Outcome.APPLIED}
            assert passes < 30 and len(one.kernel.peers.held) == 88

    asyncio.run(story())


def test_nothing_is_built_before_its_patch_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            real, before = one.store.save_patch, one.kernel.shown()

            def slow(desired: Desired, patch: Patch) -> None:
                time.sleep(0.1)
                assert one.kernel.shown() == before
                real(desired, patch)

            monkeypatch.setattr(one.store, "save_patch", slow)
            assert await one.patch(account(3), revision=6) is Outcome.APPLIED
            assert len(one.kernel.peers.held) == 2

    asyncio.run(story())


@pytest.mark.parametrize("error", [StoreError("no space left on device"), RuntimeError("a bug")])
def test_a_patch_that_cannot_be_saved_leaves_nothing_in_the_kernel_and_is_no_drift(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            before = one.kernel.shown()

            def full(desired: Desired, patch: Patch) -> None:
                raise error

            with monkeypatch.context() as disk:
                disk.setattr(one.store, "save_patch", full)
                with pytest.raises(type(error)):
                    await one.patch(account(3), revision=6)
            assert (await one.resync()).drift_count == 0 and one.kernel.shown() == before
            del one.kernel.marks.held[IPv4Address("10.0.1.2")]
            assert (await one.resync()).drift_count == 1
            assert await one.patch(account(3), revision=6) is Outcome.APPLIED

    asyncio.run(story())


def test_an_impossible_patch_changes_nothing(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            with pytest.raises(InvalidValue):
                await one.patch(account(3, mark=100), revision=6)
            assert one.reconciler.status().revision == 5

    asyncio.run(story())


def test_a_snapshot_may_go_back_in_revision(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3), revision=9)
            assert await one.snapshot(account(2), revision=4) is Outcome.APPLIED
            assert len(one.kernel.peers.held) == 1 and one.reconciler.status().applied_revision == 4

    asyncio.run(story())


@pytest.mark.parametrize("revision", [4, 12])
def test_what_was_applied_of_a_state_that_is_gone_is_not_taken_for_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, revision: int
) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3), revision=9)
            monkeypatch.setattr(one.kernel, "watch", lambda *_: time.sleep(0.3))  # a slow kernel
            settled = await one.reconciler.accept_snapshot(Snapshot(revision, (server(),), (account(2),)), 0.05)
            status = one.reconciler.status()
            assert (settled.outcome, status.revision, status.applied_revision) == (Outcome.PENDING, revision, 0)
            assert (await one.resync()).applied_revision == revision

    asyncio.run(story())


def test_samples_asked_for_together_share_the_next_one(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            one.kernel.pass_traffic("10.0.1.2", 1000, 10)
            await asyncio.gather(*(one.reconciler.sample() for _ in range(50)))
            (total,) = one.store.totals(0)[1]
            assert total.used.download == 1000

    asyncio.run(story())


def test_what_stands_beside_ours_is_in_the_status_until_a_full_pass_finds_it_gone(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            one.kernel.beside = ("chain inet filter forward drops packets: accept them there",)
            assert (await one.resync()).warnings == one.kernel.beside
            await one.patch(account(2), account(3), revision=6)
            assert one.reconciler.status().warnings == one.kernel.beside
            one.kernel.beside = ()
            assert (await one.resync()).warnings == ()

    asyncio.run(story())


def test_a_problem_that_others_make_is_the_node_s_until_it_is_gone_and_hinders_no_change(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            one.kernel.trouble = "a flowtable takes wg1"
            assert (await one.resync()).problem == one.kernel.trouble
            await one.patch(account(2), account(3), revision=6)
            status = one.reconciler.status()
            assert (status.problem, status.applied_revision, status.failures) == (one.kernel.trouble, 6, ())
            one.kernel.trouble = ""
            status = await one.resync()
            assert (status.problem, status.drift_count) == ("", 0)

    asyncio.run(story())


def test_a_failure_always_has_a_name() -> None:
    report = Report()
    report.fail(7, "", KernelError("no room"))
    report.fail(8, "a8", KernelError("no room"))
    report.fail(0, "", KernelError("no uplink"))  # of the node: whoever shows it says so
    assert [f.subject for f in report.failures.values()] == ["account 7", "a8", ""]
