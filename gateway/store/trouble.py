"""What a failure of the database means to people, and what helps. Called by store.py, schema.py and engine.py."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator

import asyncpg  # type: ignore[import-untyped]
import sqlalchemy.exc

from gateway.errors import ConfigError, DatabaseUnavailable, GatewayError

_UNAVAILABLE = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
    asyncpg.PostgresError,  # raised bare while connecting
    OSError,
    TimeoutError,
)
# Classes of SQLSTATE: connection lost, rolled back, out of something, not in that state (lock timeout), by an operator.
_BUSY = ("08", "40", "53", "55", "57")
_TRY_AGAIN = frozenset({"40001", "40P01"})  # serialization_failure, deadlock_detected
_READ_ONLY = "25006"  # read_only_sql_transaction: the server has become a standby, its connections live on
# What a prepared statement meets whose server connection went to somebody else meanwhile.
_POOLED = frozenset({"42P05", "26000"})  # duplicate_prepared_statement, invalid_sql_statement_name

# What the caller is told of it, by SQLSTATE and by SQLite's primary code.
_STATES = {_READ_ONLY: "is read-only", "53100": "has no room left on its disk", "55P03": "is locked by somebody else"}
_CODES = {
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_FULL: "has no room left on its disk",
    sqlite3.SQLITE_BUSY: "is locked by somebody else",
}

POOLER = (
    "a pooler stands before the database that gives each transaction another connection (PgBouncer: pool_mode = "
    "transaction): set pool_mode = session for it, or connect to PostgreSQL itself"
)


def try_again_helps(error: Exception) -> bool:
    """Two changes were in each other's way, and this one was rolled back as a whole."""
    return _state(error) in _TRY_AGAIN


def is_read_only(error: Exception) -> bool:
    """Nothing was done. The connection leads to a server that is no longer the one to write to; a new one may not."""
    return _state(error) == _READ_ONLY


def translated(error: Exception) -> ConfigError | DatabaseUnavailable | None:
    """None = it is a bug of ours, or an error that is explained already: of what is done with the rows meanwhile."""
    if isinstance(error, GatewayError):
        return None
    original = getattr(error, "orig", None) or error
    reason = str(original.__cause__ or original) or type(error).__name__  # the cause: the driver's own words
    if type(error) is sqlalchemy.exc.DatabaseError:  # SQLite: "file is not a database", "... is malformed"
        return ConfigError([f"database: {reason}: put it aside and restore your backup"])
    state = _state(error)
    if state in _POOLED:
        return DatabaseUnavailable(POOLER)
    lost = isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated
    known = _meaning(error, state)
    if known or lost or isinstance(error, _UNAVAILABLE) or state.startswith(_BUSY):
        return DatabaseUnavailable(reason, known)
    return None


def _meaning(error: Exception, state: str) -> str:
    """What is wrong with the database, in words that follow "The database"; "" = it just does not answer."""
    if state in _STATES:
        return _STATES[state]
    for each in _causes(error):
        code = getattr(each, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _CODES:  # the low byte of an extended code is the primary one
            return _CODES[code & 0xFF]
        if isinstance(each, OSError) and each.errno == errno.ENOSPC:
            return _STATES["53100"]
    return ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        original = getattr(error, "orig", None)
        if isinstance(original, BaseException):
            yield original
        error = error.__cause__


def _state(error: Exception) -> str:
    """PostgreSQL's SQLSTATE; "" where there is none."""
    for each in (getattr(error, "orig", None), error):
        if state := getattr(each, "sqlstate", None):
            return str(state)
    return ""
