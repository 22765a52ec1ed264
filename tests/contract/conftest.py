"""The database that the store suites run on: SQLite, and a real PostgreSQL 15 of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.store import Store, migrate, open_store
from tests.fakes.cluster import Cluster, why_missing
from tests.fakes.product import KEY, migrated_sqlite


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests that are marked `anyio` run on asyncio."""
    return "asyncio"


def _running() -> Iterator[Cluster]:
    if reason := why_missing():
        pytest.skip(reason)
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


cluster = pytest.fixture(scope="session", name="cluster")(_running)
own_cluster = pytest.fixture(name="own_cluster")(_running)  # one that a test may kill


@pytest.fixture(scope="session")
def postgres_template(cluster: Cluster) -> str:
    """The name of a database that is migrated and empty."""
    name = cluster.create()
    asyncio.run(migrate(cluster.url(name)))
    return name


@pytest.fixture
def postgres_url(cluster: Cluster, postgres_template: str) -> Iterator[str]:
    name = cluster.create(postgres_template)
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return migrated_sqlite(tmp_path / "gateway.db")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
async def store(database_url: str, anyio_backend: str) -> AsyncIterator[Store]:
    store = await open_store(database_url, KEY)
    yield store
    await store.close()
