"""What the loop says of itself: to its callers, in its status and in the log."""

from __future__ import annotations

import asyncio
import logging
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from agent import reconcile
from agent.desired import Desired, Patch, Snapshot
from agent.errors import KernelError, StaleRevision, StoreError
from agent.objects import HostNetwork
from agent.origin import NOBODY, Origin
from agent.status import Failure, Outcome
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import account, key, server
from tests.unit.agent.test_reconcile import LONG, Node, node

ORIGIN = Origin("identity", 7, "fra1")
LAN = HostNetwork(IPv4Network("192.168.1.0/24"), "eth1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.db"


def lines(told: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in told.records if record.name == "agent.reconcile"]


def snapshot(*accounts: Any, revision: int = 5, origin: Origin = NOBODY) -> Snapshot:
    return Snapshot(revision, (server(),), accounts, "Europe/Warsaw", origin)


def test_the_status_tells_what_is_held_and_what_was_found(path: Path) -> None:
    async def story() -> None:
        kernel = FakeKernel()
        kernel.refused, kernel.networks, kernel.mtu = 3, (LAN,), 1380
        async with node(path, kernel) as one:
            empty = one.reconciler.status()
            assert (empty.revision, empty.accounts, empty.servers, empty.time_zone, empty.origin) == (
                0,
                0,
                0,
                "",
                NOBODY,
            )
            assert empty.needs_snapshot and not empty.problem
            settled = await one.reconciler.accept_snapshot(snapshot(account(2), account(3), origin=ORIGIN), LONG)
            assert (settled.outcome, settled.epoch, settled.revision) == (Outcome.APPLIED, one.store.epoch, 5)
            assert (settled.failures, settled.origin) == ((), ORIGIN)
            status = one.reconciler.status()
            assert (status.revision, status.applied_revision, status.accounts, status.servers) == (5, 5, 2, 1)
            assert (status.time_zone, status.origin, status.needs_snapshot) == ("Europe/Warsaw", ORIGIN, False)
            assert (status.refused_connections, status.networks, status.tunnel_mtu) == (3, (LAN,), 1380)
            assert status.uplink == "eth0" and status.last_sample_time == status.last_resync_time > 1_700_000_000
            await one.reconciler.sample()
            assert one.reconciler.status().last_sample_time > status.last_sample_time

    asyncio.run(story())


def test_without_a_desired_state_a_patch_is_stale_and_says_so(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            with pytest.raises(StaleRevision, match=r"^this agent holds no desired state yet$"):
                await one.patch(account(2), revision=1)
            await one.reconciler.sample()
            assert one.reconciler.status().last_sample_time == 0

    asyncio.run(story())


@pytest.mark.parametrize("by", ["patch", "snapshot"])
def test_a_caller_hears_of_his_own_failures_and_of_his_servers(path: Path, by: str) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.reconciler.accept_snapshot(snapshot(account(9), revision=1), LONG)
            one.kernel.refuses["peers", "add", ("wg1", key(2))] = "no room"
            both = (account(2), account(3))
            if by == "patch":
                patch = Patch(one.store.epoch, 1, 2, put_accounts=both)
                settled = await one.reconciler.accept_patch(patch, LONG)
            else:
                settled = await one.reconciler.accept_snapshot(snapshot(*both, revision=2), LONG)
            assert (settled.outcome, settled.revision, settled.epoch) == (Outcome.FAILED, 2, one.store.epoch)
            assert settled.failures == (Failure(2, "a2", "no room"),)
            assert await one.patch(account(4), revision=3) is Outcome.APPLIED, "not his failure"
            assert one.reconciler.status().failures == (Failure(2, "a2", "no room"),)
            one.kernel.refuses["links", "change", "wg1"] = "busy"
            louder = Patch(one.store.epoch, 3, 4, (server(listen_port=50_000),))
            settled = await one.reconciler.accept_patch(louder, LONG)
            assert Failure(0, "s1", "busy") in settled.failures
            assert await one.patch(account(5), revision=5) is Outcome.FAILED, "an account needs its server"

    asyncio.run(story())


def test_a_failed_pass_is_told_once_and_tried_again_ever_more_seldom(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconcile, "FIRST_RETRY_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "agent")
    waits: list[float] = []

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            caplog.clear()
            one.reconciler._resync_seconds = 0.06

            def away() -> str:
                waits.append(asyncio.run_coroutine_threadsafe(asyncio.sleep(0, loop.time()), loop).result())
                if len(waits) < 6:
                    raise KernelError("no uplink")
                return "eth0"

            loop = asyncio.get_running_loop()
            monkeypatch.setattr(one.kernel, "uplink", away)
            before = one.reconciler.status()
            one.reconciler.request_resync()
            async with asyncio.timeout(LONG):
                while len(waits) < 3:  # noqa: ASYNC110 - no event tells this
                    await asyncio.sleep(0.002)
                status = one.reconciler.status()
                assert status.problem == "no uplink" and status.last_resync_time > before.last_resync_time
                while one.reconciler.status().problem:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)

    asyncio.run(story())
    assert lines(caplog).count("pass failed problem='no uplink'") == 1
    gaps = [after - before for before, after in pairwise(waits)]
    for gap, least in zip(gaps, (0.01, 0.02, 0.04, 0.06, 0.06), strict=False):
        assert least <= gap < least + 0.2


def test_drift_and_what_stands_beside_ours_are_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent")

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            before = one.reconciler.status()
            assert (before.drift_count, before.drift_last_time) == (0, 0)
            del one.kernel.marks.held[IPv4Address("10.0.1.2")]
            one.kernel.trouble, one.kernel.beside = "a flowtable", ("a firewall",)
            caplog.clear()
            status = await one.resync()
            assert (status.drift_count, status.problem, status.warnings) == (1, "a flowtable", ("a firewall",))
            assert status.drift_last_time > before.last_resync_time
            await one.resync()
            assert one.reconciler.status().drift_count == 1

    asyncio.run(story())
    told = lines(caplog)
    for line in ("drift repaired objects=1", "problem of the node: a flowtable", "beside ours: a firewall"):
        assert told.count(line) == 1
    assert "add part=marks key=10.0.1.2 account=2" in told and "pass failures=0 marks-add=1" in told


def test_refusals_are_told_once_with_their_names(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent")

    async def story() -> None:
        async with node(path) as one:
            one.kernel.refuses["classes", "add", ("wg1", 0x100)] = "no room"
            await one.snapshot(account(2))
            await one.resync()
            one.kernel.refuses["qdiscs", "add", "eth0"] = "somebody's root"
            one.kernel.gone("qdiscs", "eth0")
            one.kernel.qdiscs.held.pop("eth0", None)
            await one.resync()

    asyncio.run(story())
    told = lines(caplog)
    assert told.count("refused account=2 subject=a2 reason='no room'") == 1
    assert told.count('refused account=0 subject=node reason="somebody\'s root"') == 1
    assert "add part=classes key=eth0:256 account=2" in told


def test_a_pass_over_many_objects_is_only_counted(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "agent")

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(*(account(number) for number in range(2, 12)))

    asyncio.run(story())
    assert not [line for line in lines(caplog) if line.startswith("add part")]
    counts = "classes-add=20 forwarding-add=1 links-add=1 marks-add=10 peers-add=10 qdiscs-add=2"
    assert f"pass failures=0 {counts}" in lines(caplog)


def test_what_cannot_be_written_is_told_once_and_stands_in_the_status_until_it_can(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agent")

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3), account(4))
            caplog.clear()

            def full(*_: object) -> None:
                raise StoreError("disk is full")

            with monkeypatch.context() as disk:
                disk.setattr(one.store, "save_patch", full)
                disk.setattr(one.store, "save_sample", full)
                for number, revision in ((2, 6), (3, 6), (3, 6)):
                    with pytest.raises(StoreError):
                        await one.patch(account(number, enabled=False), revision=revision)
                for _ in range(2):
                    with pytest.raises(StoreError):
                        await one.reconciler.sample()
                await cut(one, {"10.0.1.4"})
                assert one.reconciler.status().problem == "disk is full"
                one.kernel.trouble = "a flowtable"
                one.reconciler.request_resync()
            await one.patch(account(2, enabled=False), revision=6)
            await one.reconciler.sample()
            await one.resync()
            assert one.reconciler.status().problem == "a flowtable"
            await cut(one, {"10.0.1.4"})  # 3 too, until the gateway says it again

    asyncio.run(story())
    told = lines(caplog)
    for line in ("change missed reason='disk is full'", "sample missed reason='disk is full'"):
        assert told.count(line) == 1
    assert told.count("change written again") == told.count("sample written again") == 1
    assert told.count("cut off before it is written accounts=1") == 2


def test_who_was_cut_off_before_it_is_written_stays_out_through_a_full_pass(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3), account(4))

            def full(*_: object) -> None:
                raise StoreError("disk is full")

            monkeypatch.setattr(one.store, "save_patch", full)
            for number in (2, 3):
                with pytest.raises(StoreError):
                    await one.patch(account(number, enabled=False), revision=6)
            await cut(one, {"10.0.1.4"})
            await one.resync()
            await cut(one, {"10.0.1.4"})

    asyncio.run(story())


@pytest.mark.parametrize("by", ["an empty patch", "a patch", "a snapshot"])
def test_a_node_that_asks_serves_nobody_until_it_hears_that_what_it_holds_stands(path: Path, by: str) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3), revision=5)
            one.reconciler.ask_first()
            await cut(one, set())
            status = one.reconciler.status()
            assert (status.asks, status.problem, status.accounts) == (True, reconcile.CUT_OFF, 2)
            assert await one.patch(revision=4) is Outcome.APPLIED
            await one.resync()
            assert one.reconciler.status().asks and not one.kernel.peers.held, "that is no word about what it holds"
            if by == "a snapshot":
                await one.snapshot(account(2), account(3), revision=6)
            else:
                await one.patch(revision=5 if by == "an empty patch" else 6)
            status = one.reconciler.status()
            assert (status.asks, status.problem) == (False, "")
            await cut(one, {"10.0.1.2", "10.0.1.3"})

    asyncio.run(story())


def test_who_was_cut_off_is_let_in_by_a_snapshot_that_has_him(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3))

            def full(*_: object) -> None:
                raise StoreError("disk is full")

            with monkeypatch.context() as disk:
                disk.setattr(one.store, "save_patch", full)
                with pytest.raises(StoreError):
                    await one.patch(account(2, enabled=False), revision=6)
                await cut(one, {"10.0.1.3"})
            assert await one.snapshot(account(2), account(3), revision=6) is Outcome.APPLIED
            await cut(one, {"10.0.1.2", "10.0.1.3"})

    asyncio.run(story())


def test_a_caller_hears_of_a_server_of_his_snapshot_that_cannot_be_made(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            one.kernel.refuses["links", "add", "wg1"] = "the name is taken"
            settled = await one.reconciler.accept_snapshot(snapshot(), LONG)
            assert (settled.outcome, settled.failures) == (Outcome.FAILED, (Failure(0, "s1", "the name is taken"),))

    asyncio.run(story())


def test_the_status_tells_what_was_counted_when_it_is_and_until_when_the_certificate_holds(path: Path) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            one.reconciler.certified(1_800_000_000)
            one.kernel.pass_traffic("10.0.1.2", 1000, 10)
            await one.reconciler.sample()
            status = one.reconciler.status()
            assert (status.certificate_expires, status.applied_revision, status.uplink) == (1_800_000_000, 5, "eth0")
            assert (status.counted_download, status.counted_upload) == (1000, 10)
            assert one.reconciler.status().time > status.time > status.last_sample_time > 1_700_000_000

    asyncio.run(story())


def test_of_several_problems_the_status_tells_each_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2))
            one.kernel.trouble = "a flowtable"
            await one.resync()

            def full(*_: object) -> None:
                raise StoreError("disk is full")

            for name in ("save_patch", "save_sample"):
                monkeypatch.setattr(one.store, name, full)
            with pytest.raises(StoreError):
                await one.patch(account(3), revision=6)
            with pytest.raises(StoreError):
                await one.reconciler.sample()
            assert one.reconciler.status().problem == "a flowtable; disk is full"

    asyncio.run(story())


async def cut(one: Node, left: set[str]) -> None:
    """Waits until only these addresses have a peer."""
    async with asyncio.timeout(LONG):
        while {str(peer.address) for peer in one.kernel.peers.held.values()} != left:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("by", ["patch", "snapshot"])
def test_who_is_switched_off_does_not_wait_for_a_slow_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(reconcile, "LATE_SECONDS", 0.02)

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3))
            loop, written = asyncio.get_running_loop(), asyncio.Event()
            for name in ("save_patch", "save_snapshot"):
                real = getattr(one.store, name)

                def slow(*change: object, real: Any = real) -> None:
                    asyncio.run_coroutine_threadsafe(written.wait(), loop).result(LONG)
                    real(*change)

                monkeypatch.setattr(one.store, name, slow)
            if by == "patch":
                change = asyncio.create_task(one.patch(account(2, enabled=False), revision=6))
            else:
                change = asyncio.create_task(one.snapshot(account(3), revision=6))
            await cut(one, {"10.0.1.3"})
            assert not change.done()
            written.set()
            assert await change is Outcome.APPLIED

    asyncio.run(story())


def test_a_snapshot_costs_what_it_changes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass that follows knows whom it has touched: a full one may fail, and they are still to do."""

    async def story() -> None:
        async with node(path) as one:
            await one.snapshot(account(2), account(3))
            kernel = one.kernel
            kernel.fail_at = 0
            one.reconciler._resync_seconds = 0.02
            settled = await one.reconciler.accept_snapshot(
                Snapshot(6, (server(),), (account(2, download=77), account(4))), LONG
            )
            assert settled.outcome is Outcome.APPLIED
            held: Desired | None = one.reconciler.desired
            assert held is not None and set(held.accounts) == {2, 4}
            assert kernel.classes.held["wg1", 0x100].rate == 77
            assert {peer.address for peer in kernel.peers.held.values()} == {
                IPv4Address("10.0.1.2"),
                IPv4Address("10.0.1.4"),
            }

    asyncio.run(story())
