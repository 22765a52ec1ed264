"""Brings a database to the schema of this program, and tells whether it is there. Called at start and by `migrate`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from gateway.errors import ConfigError
from gateway.store.engine import Engine, parsed_url
from gateway.store.trouble import translated

_LOCK_NUMBER = 0x776C_6D67  # "wlmg"; PostgreSQL's advisory locks are numbers
_WAIT_SECONDS = 120  # for another gateway that is migrating


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_WAIT_SECONDS}s'"))
        connection.execute(text(f"SET LOCAL statement_timeout = '{_WAIT_SECONDS}s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_NUMBER})"))
    try:
        command.upgrade(_config(connection), "head")
    except CommandError as error:
        raise ConfigError([f"database: it was written by another version of this program ({error})"]) from None


def check(connection: Connection) -> None:
    """Raises ConfigError unless the schema is exactly ours."""
    current = MigrationContext.configure(connection).get_current_heads()
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if current != (head,):
        raise ConfigError([f"database: its schema is {current or 'empty'}, needed is {head}: run `migrate`"])


async def is_empty(url: str) -> bool:
    """Whether no version of this program has ever made its tables here: a first start may do so unasked."""
    async with _engine(url) as engine, engine.read() as connection:
        return await connection.run_sync(lambda sync: not MigrationContext.configure(sync).get_current_heads())


async def migrate(url: str) -> None:
    """One transaction on either database: all of it, or nothing. Safe to call from several gateways at once."""
    async with _engine(url) as engine, asyncio.timeout(2 * _WAIT_SECONDS), engine.change() as connection:
        await connection.run_sync(_upgrade)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[Engine]:
    engine = Engine(parsed_url(url))
    try:
        yield engine
    except Exception as error:
        if (known := translated(error)) is not None:
            raise known from error
        raise
    finally:
        await engine.close()
