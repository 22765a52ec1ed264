"""A node that no gateway has called for longer than its operator allows serves nobody until one has spoken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent.desired import Patch
from gateway import placement
from gateway.model import AccountEdit, NewAccount, ServerValues
from gateway.store import Store, open_store
from tests.contract.test_moves import Gateway, until
from tests.fakes import direct
from tests.fakes.agent_core import running_core
from tests.fakes.kernel import FakeKernel
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

LIMIT = 1.0


@asynccontextmanager
async def a_gateway(store: Store) -> AsyncIterator[Gateway]:
    gateway = Gateway(store)
    gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop()


@pytest.fixture
async def store(sqlite_url: str, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Store]:
    async with await open_store(sqlite_url, KEY) as store:
        await direct.add_node(store, "fra", f"unix:{tmp_path}/fra.sock", "fra.example.com")
        yield store


async def sold(gateway: Gateway, count: int) -> None:
    await gateway.servers.create(ServerValues(name="s"))
    for _ in range(count):
        await gateway.accounts.create(NewAccount(server="s"))


async def test_it_stops_and_goes_on_where_it_was_when_a_gateway_says_that_it_stands(
    store: Store, tmp_path: Path
) -> None:
    async with running_core(tmp_path / "fra.sock", tmp_path / "fra.db", cut_off_seconds=LIMIT) as core:
        async with a_gateway(store) as gateway:
            await sold(gateway, 3)
            await asyncio.sleep(2 * LIMIT)
            assert len(core.kernel.peers.held) == 3, "a gateway looks every now and then, and that is enough"
            core.kernel.pass_traffic("10.0.0.2", 5_000, 100)
        await until(lambda: not core.kernel.peers.held)
        assert "cut off" in core.reconciler.status().problem
        assert core.reconciler.status().drift_count == 0
        async with a_gateway(store) as gateway:
            await until(lambda: len(core.kernel.peers.held) == 3)
            assert core.reconciler.status().problem == ""
            counters = {str(a): mark.counters.download_bytes for a, mark in core.kernel.marks.held.items()}
            assert counters["10.0.0.2"] == 5_000, "its numbers went on"
            assert (await gateway.accounts.edit("peer_1", AccountEdit(download=4))).pending == ""


async def test_what_was_changed_meanwhile_is_known_before_anybody_is_served(store: Store, tmp_path: Path) -> None:
    kernel = FakeKernel()
    async with (
        running_core(tmp_path / "fra.sock", tmp_path / "fra.db", kernel=kernel, cut_off_seconds=LIMIT),
        a_gateway(store) as gateway,
    ):
        await sold(gateway, 2)
    kernel.reboot()
    await asyncio.sleep(LIMIT + 0.5)
    nobody = Gateway(store, settle_seconds=0.01)  # its sync does not run: the change is decided, and nobody is told
    await nobody.accounts.delete("peer_1")
    await nobody.stop()
    kernel.writes.clear()
    async with running_core(tmp_path / "fra.sock", tmp_path / "fra.db", kernel=kernel, cut_off_seconds=LIMIT) as core:
        await core.reconciler.first_pass(5)
        await asyncio.sleep(0.5)
        assert kernel.links.held and not kernel.peers.held, "it asks first"
        async with a_gateway(store):
            await until(lambda: len(kernel.peers.held) == 1)
        assert sum(line.startswith("add peers") for line in kernel.writes) == 1, "peer_1 was never let in"


async def test_a_server_that_was_moved_away_by_force_is_never_served_again(store: Store, tmp_path: Path) -> None:
    await direct.add_node(store, "ams", f"unix:{tmp_path}/ams.sock", "ams.example.com")
    kernel = FakeKernel()
    async with running_core(tmp_path / "ams.sock", tmp_path / "ams.db") as ams, AsyncExitStack() as stack:
        fra = await stack.enter_async_context(
            running_core(tmp_path / "fra.sock", tmp_path / "fra.db", kernel=kernel, cut_off_seconds=LIMIT)
        )
        async with a_gateway(store) as gateway:
            await gateway.servers.create(ServerValues(name="s", node="fra"))
            await gateway.accounts.create(NewAccount(server="s"))
            await fra.stop()  # cut off: it runs, and nobody reaches it
            await until(lambda: not kernel.peers.held)  # from here on --force is safe
            await store.change(lambda tx: placement.begin(tx, "s", "ams", force=True))
            await until(lambda: len(ams.kernel.peers.held) == 1)
            kernel.writes.clear()
            await fra.start()
            await until(lambda: not kernel.links.held)
            assert not any(line.startswith("add peers") for line in kernel.writes)
            assert fra.reconciler.status().problem == ""


async def test_a_short_outage_and_a_restart_within_it_drop_nobody(store: Store, tmp_path: Path) -> None:
    kernel = FakeKernel()
    async with (
        running_core(tmp_path / "fra.sock", tmp_path / "fra.db", kernel=kernel, cut_off_seconds=5.0),
        a_gateway(store) as gateway,
    ):
        await sold(gateway, 2)
        await asyncio.sleep(2.5)  # until the last call is written down
    kernel.writes.clear()
    async with running_core(tmp_path / "fra.sock", tmp_path / "fra.db", kernel=kernel, cut_off_seconds=5.0) as core:
        await core.reconciler.first_pass(5)
        assert core.reconciler.status().last_resync_time > 0 and kernel.writes == []


async def test_an_older_word_is_none_about_what_the_node_holds(store: Store, tmp_path: Path) -> None:
    async with running_core(tmp_path / "fra.sock", tmp_path / "fra.db", cut_off_seconds=LIMIT) as core:
        async with a_gateway(store) as gateway:
            await sold(gateway, 1)
        await until(lambda: not core.kernel.peers.held)
        held = core.reconciler.desired
        assert held is not None
        for revision, asks in ((held.revision - 1, True), (held.revision, False)):
            mark = held.origin.mark if revision == held.revision else 7
            word = Patch(held.epoch, revision, revision, origin=replace(held.origin, mark=mark), base_mark=mark)
            await core.reconciler.accept_patch(word, 2.0)
            assert core.reconciler.status().asks is asks
            assert bool(core.kernel.peers.held) is not asks
