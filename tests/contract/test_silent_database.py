"""A PostgreSQL that takes connections and says nothing: who waits for it, and how it is found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from gateway.errors import DatabaseUnavailable
from gateway.store import engine, open_store
from tests.fakes import direct
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

PATIENCE = 1.0


@dataclass
class Between:
    """A relay to the database that can fall silent."""

    port: int
    silent: bool = False
    came: int = 0
    _ends: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        self._ends.append(writer)
        if self.silent:
            return
        there, to = await asyncio.open_connection("127.0.0.1", self.port)
        self._ends.append(to)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pump(reader, to))
            group.create_task(_pump(there, writer))

    def drop(self) -> None:
        for end in self._ends:
            end.transport.abort()
        self._ends.clear()


async def _pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    try:
        while block := await source.read(65536):
            to.write(block)
    except ConnectionError:
        pass
    to.close()


@asynccontextmanager
async def between(url: str) -> AsyncIterator[tuple[Between, str]]:
    """It, and the URL that leads through it."""
    target = sa.make_url(url)
    assert target.port is not None
    it = Between(target.port)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield it, target.set(port=port).render_as_string(hide_password=False)
    finally:
        server.close()
        it.drop()


async def test_one_looks_for_it_and_nobody_else_waits(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", PATIENCE)
    clock = asyncio.get_running_loop().time
    async with between(postgres_url) as (it, url), await open_store(url, KEY) as store:
        await direct.add_node(store, "fra", "unix:/run/agent.sock")
        it.silent = True
        it.drop()
        began = clock()
        answers = await asyncio.gather(*(direct.nodes(store) for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [DatabaseUnavailable] * 5
        assert PATIENCE * 0.5 < clock() - began < PATIENCE * 2
        came, began = it.came, clock()
        for _ in range(100):
            with pytest.raises(DatabaseUnavailable):
                await direct.nodes(store)
        assert clock() - began < PATIENCE, "they are told at once"
        assert it.came <= came + 1, "and knock at no door"
        it.silent = False
        it.drop()  # whoever looks for it at this moment
        while True:
            try:
                assert [node.name for node in await direct.nodes(store)] == ["fra"]
                break
            except DatabaseUnavailable:
                assert clock() - began < 10 * PATIENCE
                await asyncio.sleep(0.05)


async def test_a_store_is_closed_while_the_database_is_looked_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", PATIENCE)
    async with between(postgres_url) as (it, url):
        store = await open_store(url, KEY)
        it.silent = True
        it.drop()
        with pytest.raises(DatabaseUnavailable):
            await direct.nodes(store)
        async with asyncio.timeout(PATIENCE):
            await store.close()
