"""From a join token to calls: a real gateway over HTTP, a real agent that listens to other hosts, real TLS between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent import joining
from agent.identity import SERIES_FILE, load
from gateway.agents import Agents
from gateway.authority import Credentials
from gateway.credentials import OwnCredentials
from gateway.errors import AgentUnreachable
from gateway.store import Store, open_store, settings
from tests.contract.served import Served, served
from tests.fakes import direct
from tests.fakes.agent_core import AgentCore, running_core
from tests.fakes.certificates import free_port
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

NODE = "fra1"
DEADLINE = 30


@dataclass
class Story:
    """A gateway and a host. `core`: the agent there, which listens once it is enrolled."""

    gateway: Served
    store: Store
    core: AgentCore
    folder: Path
    own: OwnCredentials

    async def join(self, folder: Path | None = None) -> None:
        """The host becomes the node, or, with another folder, another host does."""
        folder = folder or self.folder
        folder.mkdir(exist_ok=True)
        token = await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(
                self.gateway.product.enrolment.new_token(NODE, 3600, self.gateway.url), self.gateway.loop
            )
        )
        (folder / "token").write_text(token.reveal())
        arguments = (str(folder / "token"), "", folder / "identity", datetime.now(UTC))
        await asyncio.to_thread(joining.join, *arguments)

    async def begin(self) -> None:
        """The agent listens: the node is enrolled."""
        async with asyncio.timeout(DEADLINE):
            listens = asyncio.create_task(self.core.start())
            await self.join()
            await listens
        await self.own.look()

    async def called(self, credentials: Credentials | None = None) -> str:
        """ "OK", or why not."""
        agents = Agents(lambda: credentials or self.own.current)
        try:
            async with asyncio.timeout(DEADLINE):
                await agents.status(await direct.node(self.store, NODE))
        except AgentUnreachable as error:
            return str(error)
        finally:
            await agents.close()
        return "OK"

    async def calls(self, credentials: Credentials | None = None) -> None:
        """Returns once it may."""
        async with asyncio.timeout(DEADLINE):
            while await self.called(credentials) != "OK":  # noqa: ASYNC110 - files tell nobody
                await asyncio.sleep(0.2)


@pytest.fixture
def gateway(sqlite_url: str) -> Iterator[Served]:
    with served(sqlite_url) as gateway:
        yield gateway


@pytest.fixture
async def story(gateway: Served, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Story]:
    folder, listen = tmp_path / "host", f"127.0.0.1:{free_port()}"
    folder.mkdir()
    async with await open_store(gateway.database, KEY) as store, stopped_core(folder) as core:
        core.fleet = (listen, folder / "identity")
        await direct.add_node(store, NODE, listen)
        yield Story(gateway, store, core, folder, OwnCredentials(store))


@asynccontextmanager
async def stopped_core(folder: Path) -> AsyncIterator[AgentCore]:
    async with running_core(folder / "agent.sock", folder / "agent.db") as core:
        await core.stop()
        yield core


async def test_a_running_agent_is_called_as_soon_as_its_host_is_enrolled(story: Story) -> None:
    assert "not enrolled yet" in await story.called()
    await story.begin()
    assert await story.called() == "OK"
    agents = Agents(lambda: story.own.current)
    ends = (await agents.status(await direct.node(story.store, NODE))).certificate_expires
    await agents.close()
    identity = load(story.folder / "identity")
    assert identity is not None and ends == int(identity.expires.timestamp())


async def test_who_was_enrolled_before_is_refused_once_another_host_is_the_node(story: Story, tmp_path: Path) -> None:
    await story.begin()
    await story.join(tmp_path / "other")
    assert "is another node, or was enrolled anew since" in await story.called()
    await story.join()
    await story.calls()


async def test_what_was_revoked_is_refused_from_the_first_call_of_the_next_series(story: Story) -> None:
    await story.begin()
    stolen = story.own.current
    assert stolen is not None and await story.called(stolen) == "OK"
    await story.store.change(settings.begin_series)
    await story.own.look()
    assert await story.called() == "OK"
    assert "your certificate was revoked: it is of series 1" in await story.called(stolen)
    # The agent remembers it.
    await story.core.stop()
    await story.core.start()
    assert "revoked" in await story.called(stolen)
    assert await story.called() == "OK"


async def test_a_new_enrolment_forgets_the_series(story: Story) -> None:
    """The host goes to another installation, or its gateway's database was begun anew."""
    await story.begin()
    first = story.own.current
    await story.store.change(settings.begin_series)
    await story.own.look()
    assert await story.called() == "OK"
    assert (story.folder / "identity" / SERIES_FILE).read_text() == "2\n"
    await story.join()
    await story.calls(first)
