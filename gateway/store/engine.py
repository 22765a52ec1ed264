"""The connections: SQLite through aiosqlite, PostgreSQL through postgresql.py. Every wait in here is bounded.

Owns: how a transaction begins, and the pool of SQLite. Never knows a table. Called by store.py and schema.py.

A *change* holds its locks until the commit. On SQLite it starts with BEGIN IMMEDIATE on the only writing connection,
so there is one change at a time; on PostgreSQL it locks rows (Transaction.lock and nodes.py). A *read* sees one moment
of the whole database: a WAL snapshot, or REPEATABLE READ.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from sqlalchemy import Connection, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import ConfigError
from gateway.store import onetrip, postgresql
from gateway.store.trouble import POOLER

WAIT_SECONDS = 5.0  # for a connection, and for those who hold what is to be changed
READERS = 4  # SQLite: connections that read beside the one that writes
POOLER_LOOKS = 3
OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port")  # of a PostgreSQL URL, as libpq spells them
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# How long the change that begins now may still wait for its turn; one that has waited for a connection has less left.
_left: ContextVar[float] = ContextVar("left")


def parsed_url(text: str) -> URL:
    """Raises ConfigError. The password is never part of a message."""
    try:
        url = make_url(text)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(["database: must be sqlite:////path/to/file or postgresql://user@host/name"]) from None
    if url.drivername == "sqlite" and url.database and Path(url.database).is_absolute():
        return url.set(drivername="sqlite+aiosqlite")
    if url.drivername in ("postgresql", "postgres") and url.database:
        _check_options(url)
        return url.set(drivername="postgresql+asyncpg")
    raise ConfigError(["database: must be sqlite:////path/to/file or postgresql://user@host/name"])


def _check_options(url: URL) -> None:
    """What stands after the "?": the driver takes what it does not know for a setting of the server."""
    for name, value in url.query.items():
        if name not in OPTIONS:
            raise ConfigError([f"database: {name!r} is not understood after the '?', only {', '.join(OPTIONS)}"])
        if name == "sslmode" and value not in SSL_MODES:
            raise ConfigError([f"database: sslmode must be one of {', '.join(SSL_MODES)}"])
        if name.startswith("ssl") and name != "sslmode" and not os.access(str(value), os.R_OK):
            raise ConfigError([f"database: {name}: {value} is not there, or cannot be read by this user"])


class Engine:
    """Two ways into one database."""

    def __init__(self, url: URL) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            assert url.database is not None
            _make_private_file(Path(url.database))
            self._writer = _sqlite(url, size=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite(url, size=READERS, begin="BEGIN", read_only=True)
        else:
            self._door = postgresql.Door()
            engine = postgresql.pool(url, self._door, WAIT_SECONDS)
            self._writer = engine.execution_options(isolation_level="READ COMMITTED")
            self._reader = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @asynccontextmanager
    async def change(self) -> AsyncIterator[AsyncConnection]:
        clock = asyncio.get_running_loop().time
        give_up = clock() + WAIT_SECONDS
        postgresql.give_up.set(give_up)
        async with self._writer.connect() as connection:
            _left.set(max(give_up - clock(), 0.0))
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        postgresql.give_up.set(asyncio.get_running_loop().time() + WAIT_SECONDS)
        async with self._reader.begin() as connection:
            yield connection

    async def renew(self) -> None:
        """New connections from now on; those in use go when they are given back."""
        if not self.is_sqlite:
            await self._writer.dispose()  # readers have the same pool

    async def check_pooler(self) -> None:
        """Raises ConfigError where two of our connections can be one and the same: no lock would hold, no setting."""
        if self.is_sqlite:
            return
        async with self._reader.connect() as one, self._reader.connect() as other:
            for _ in range(POOLER_LOOKS):
                behind = []
                for connection in (one, other):
                    behind.append((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())
                    await connection.rollback()  # a pooler takes its server connection back here
                if behind[0] == behind[1]:
                    raise ConfigError([f"database: {POOLER}"])

    async def close(self) -> None:
        await self._writer.dispose()
        await self._reader.dispose()
        if not self.is_sqlite:
            await self._door.close()


def _make_private_file(path: Path) -> None:
    """The file holds (sealed) secrets: nobody else reads it. SQLite gives its -wal and -shm the same mode."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"database: {path} cannot be opened: {error.strerror}"]) from None
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            os.fchmod(descriptor, 0o600)
    except PermissionError:
        raise ConfigError([f"database: {path} can be read by others and belongs to somebody else"]) from None
    finally:
        os.close(descriptor)


def _sqlite(url: URL, *, size: int, begin: str, read_only: bool = False) -> AsyncEngine:
    path = url.database
    assert path is not None
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=WAIT_SECONDS,
        async_creator=lambda *_, **__: onetrip.connect(path, WAIT_SECONDS),
    )

    # In WAL mode only FULL survives a power cut; NORMAL may forget the last commits.
    pragmas = ["journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"]
    if read_only:
        pragmas.append("query_only = ON")

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 begins transactions when it sees fit, and never for a read: we say BEGIN ourselves.
        connection.isolation_level = None
        try:
            cursor = connection.cursor()
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
            cursor.close()
        except BaseException:
            connection.close()  # the pool forgets a connection that failed in here, and its thread would live on
            raise

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        if not read_only:
            _bound_wait(connection)
        connection.exec_driver_sql(begin)

    return engine


def _bound_wait(connection: Connection) -> None:
    """SQLite's own wait for a writer in another process is only what is left. Told in steps, so that it is rare."""
    milliseconds = int(_left.get(WAIT_SECONDS) * 4) * 250
    if connection.info.get("busy_timeout", int(WAIT_SECONDS * 4) * 250) != milliseconds:
        connection.info["busy_timeout"] = milliseconds
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds}")
