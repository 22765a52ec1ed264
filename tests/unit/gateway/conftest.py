"""A whole product over a database of its own, for the stories of its use cases."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.product import Product, migrated_sqlite, running_product


@pytest.fixture
def anyio_backend() -> str:
    """Coroutine tests that are marked `anyio` run on asyncio."""
    return "asyncio"


@pytest.fixture
def database(tmp_path: Path) -> str:
    return migrated_sqlite(tmp_path / "gateway.db")


@pytest.fixture
def settle_seconds() -> float:
    """How long callers wait for a node; a test that wants them impatient parametrizes it."""
    return 5.0


@pytest.fixture
async def product(database: str, settle_seconds: float, anyio_backend: str) -> AsyncIterator[Product]:
    async with running_product(database, settle_seconds=settle_seconds) as product:
        yield product
