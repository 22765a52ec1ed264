"""Who decides what a node holds: a database that was begun anew, and one that was restored, before a live agent.

The agent is the real one, over a kernel with a memory; gateway, databases and command line are real.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest

from gateway.accounts import Accounts
from gateway.agents import Agents
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.model import AccountEdit, NewAccount, ServerValues
from gateway.servers import Servers
from gateway.store import Store, migrate, open_store
from gateway.sync import Sync
from tests.contract.commands import command
from tests.fakes import direct
from tests.fakes.agent_core import AgentCore, running_core
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

NODE = "local"
DIFFERENT = 2


class Gateway:
    def __init__(self, store: Store, agents: Agents) -> None:
        self.store = store
        self.sync = Sync(store, agents, 5.0, poll_seconds=0.1)
        self.accounts = Accounts(store, Creation(store), self.sync, Collect(store, agents), agents)
        self.servers = Servers(store, self.sync, agents)

    async def problem(self) -> str:
        """Of the node, once there is one."""
        async with asyncio.timeout(5):
            while not ((status := self.sync.statuses().get(NODE)) and status.problem):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            return status.problem


@asynccontextmanager
async def running_gateway(database: Path, target: str) -> AsyncIterator[Gateway]:
    """With the node, if the database is new."""
    url = f"sqlite:///{database}"
    await migrate(url)
    store, agents = await open_store(url, KEY), Agents()
    if not await direct.nodes(store):
        await direct.add_node(store, NODE, target, "vpn.example.com")
    gateway = Gateway(store, agents)
    loops = asyncio.create_task(gateway.sync.run())
    try:
        yield gateway
    finally:
        loops.cancel()
        with suppress(asyncio.CancelledError):
            await loops
        await agents.close()
        await store.close()


class Site:
    """An agent, and a place for databases and the command line."""

    def __init__(self, folder: Path, agent: AgentCore) -> None:
        self.folder = folder
        self.agent = agent
        self.database = folder / "gateway.db"
        self.target = f"unix:{folder}/agent.sock"
        (folder / "secret.key").write_text(KEY.hex())
        (folder / "secret.key").chmod(0o600)
        (folder / "gateway.toml").write_text(
            f'database = "sqlite:///{self.database}"\nkey_file = "{folder}/secret.key"\n'
        )

    def gateway(self) -> AbstractAsyncContextManager[Gateway]:
        return running_gateway(self.database, self.target)

    def names(self) -> set[str]:
        """Of the accounts that the agent serves."""
        desired = self.agent.reconciler.desired
        return {account.name for account in desired.accounts.values() if account.enabled} if desired else set()

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        return await command(self.folder / "gateway.toml", *arguments)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_core(tmp_path / "agent.sock", tmp_path / "agent.db") as agent:
        yield Site(tmp_path, agent)


async def sold(gateway: Gateway, count: int) -> None:
    await gateway.servers.create(ServerValues(name="s"))
    for _ in range(count):
        await gateway.accounts.create(NewAccount(server="s"))


async def test_a_database_that_was_begun_anew_takes_no_customer_away(site: Site) -> None:
    async with site.gateway() as gateway:
        await sold(gateway, 5)
    customers = site.names()
    assert len(customers) == 5
    site.database.rename(site.folder / "away.db")
    async with site.gateway() as gateway:
        assert "it holds 5 accounts of another database" in await gateway.problem()
        await asyncio.sleep(0.5)
        assert site.names() == customers

        status, out, _ = await site.command("node", "list")
        assert status == 0 and "contested: it holds 5 accounts of another database" in out.splitlines()[1]
        status, out, err = await site.command("node", "resync", NODE, "--show-difference")
        assert status == DIFFERENT
        assert out.splitlines()[-1] == "only on the node: server s 10.0.0.1/24"
        assert sorted(line.split()[5] for line in out.splitlines()[:-1]) == sorted(customers)
        assert "6 only on the node, 0 only in the database, 0 different" in err
        assert site.names() == customers  # it was a look

    (site.folder / "gateway.db").unlink()
    (site.folder / "away.db").rename(site.database)
    async with site.gateway() as gateway:  # the right one is back, and nobody had to say anything
        await gateway.accounts.delete("peer_1")
        assert site.names() == customers - {"peer_1"}


async def test_the_operator_may_say_that_the_new_database_is_right(site: Site) -> None:
    async with site.gateway() as gateway:
        await sold(gateway, 2)
    site.database.unlink()
    async with site.gateway() as gateway:
        await gateway.problem()
        assert len(site.names()) == 2
        status, out, err = await site.command("node", "resync", NODE, "--from-database")
        assert (status, out) == (0, "") and "gets everything anew" in err
        await sold(gateway, 1)
        assert site.names() == {"peer_1"}
        status, out, _ = await site.command("node", "resync", NODE, "--show-difference")
        assert (status, out) == (0, "")
        assert (await site.command("node", "list"))[1].splitlines()[1].endswith("  OK")


async def test_a_restored_database_whose_numbers_meet_again_changes_nothing_unasked(site: Site) -> None:
    backup = site.folder / "backup.db"
    async with site.gateway() as gateway:
        await sold(gateway, 3)
    shutil.copy(site.database, backup)
    async with site.gateway() as gateway:  # what the backup does not know: one deleted, one sold, one slower
        await gateway.accounts.delete("peer_1")
        await gateway.accounts.create(NewAccount(server="s", name="sold-later"))
        await gateway.accounts.edit("peer_2", AccountEdit(download=5))
        lost = (await direct.node(gateway.store, NODE)).revision
    served = site.names()
    shutil.copy(backup, site.database)
    store = await open_store(f"sqlite:///{site.database}", KEY)  # changes come in before the agent is asked
    while (await direct.node(store, NODE)).revision < lost:
        await direct.set_time_zone(store, "Europe/Warsaw" if await direct.time_zone(store) == "UTC" else "UTC")
    await store.close()

    async with site.gateway() as gateway:
        assert "another history of this database" in await gateway.problem()
        await asyncio.sleep(0.5)
        assert site.names() == served == {"peer_2", "peer_3", "sold-later"}
        status, out, err = await site.command("node", "resync", NODE, "--show-difference")
        assert status == DIFFERENT
        assert sorted(out.splitlines()) == [
            "different: account peer_2 10.0.0.3: download 5 on the node, 0 here",
            "only in the database: account peer_1 10.0.0.2",
            "only on the node: account sold-later 10.0.0.5",
        ], out
        assert "1 only on the node, 1 only in the database, 1 different" in err
        assert (await site.command("node", "resync", NODE, "--from-database"))[0] == 0
        await gateway.accounts.create(NewAccount(server="s"))
        assert site.names() == {"peer_1", "peer_2", "peer_3", "peer_4"}


async def test_a_node_that_is_away_cannot_be_spoken_about(site: Site) -> None:
    async with site.gateway() as gateway:
        await sold(gateway, 1)
    await site.agent.stop()
    for option in ("--show-difference", "--from-database"):
        status, out, err = await site.command("node", "resync", NODE, option)
        assert (status, out) == (1, "") and "node local: " in err and "UNAVAILABLE" in err
    assert "away: " in (await site.command("node", "list"))[1]
    status, _, err = await site.command("node", "resync", NODE)
    assert status == DIFFERENT and "--show-difference --from-database" in err
