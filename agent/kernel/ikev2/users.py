"""Who may log in: the file that FreeRADIUS asks, a row for each account.

It lies in the runtime folder, which a reboot empties, so no password outlives the agent's own file. FreeRADIUS sees a
commit at once; an edit costs one row.

FreeRADIUS expands a value that stands in quotes, and runs what it finds there: so it is given nothing that a customer
chose. Of a password it gets the hash that MSCHAPv2 asks for, by the query in files.py; the password is for `read`.

A row is switched off before its sessions are ended, and rewritten or deleted after that. So one whose sessions could
not be ended is found again: nobody wants it as it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import quote

from agent.errors import KernelError
from agent.kernel.ikev2.nt_hash import nt_hash
from agent.model import NO_SECRET, Secret
from agent.objects import LoginRow

SCHEMA = """
CREATE TABLE IF NOT EXISTS logins (
    id INTEGER PRIMARY KEY, username TEXT NOT NULL UNIQUE, password TEXT NOT NULL, nt_hash TEXT NOT NULL,
    address TEXT NOT NULL, dns_1 TEXT NOT NULL, dns_2 TEXT NOT NULL, enabled INTEGER NOT NULL
)
"""
PUT = """
INSERT INTO logins (username, password, nt_hash, address, dns_1, dns_2, enabled) VALUES (?, ?, ?, ?, ?, ?, 1)
ON CONFLICT (username) DO UPDATE SET password = excluded.password, nt_hash = excluded.nt_hash,
    address = excluded.address, dns_1 = excluded.dns_1, dns_2 = excluded.dns_2, enabled = 1
"""
# Of the table and of the query that FreeRADIUS was started with; 1: with passwords in the place of hashes.
VERSION = 2
LOCK_SECONDS = 5.0


class Users:
    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> None:
        """Empty: who may log in is told anew."""
        self._path.unlink(missing_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with self._transaction() as db:
            db.execute(SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def is_right(self) -> bool:
        """Is it as this version made it? Else what runs has to be started anew."""
        try:
            with self._transaction() as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                db.execute("SELECT nt_hash, dns_1, dns_2 FROM logins LIMIT 1")
        except KernelError:
            return False
        return bool(version == VERSION)

    def read(self) -> dict[str, LoginRow]:
        """{} = there is no file. One that is switched off has no password."""
        if not self._path.exists():
            return {}
        with self._transaction() as db:
            rows = db.execute("SELECT username, password, address, dns_1, dns_2, enabled FROM logins").fetchall()
        return {row[0]: _row(*row) for row in rows}

    def switch_off(self, usernames: Iterable[str]) -> None:
        self._each("UPDATE logins SET enabled = 0 WHERE username = ?", usernames)

    def delete(self, usernames: Iterable[str]) -> None:
        self._each("DELETE FROM logins WHERE username = ?", usernames)

    def _each(self, statement: str, usernames: Iterable[str]) -> None:
        if self._path.exists():
            with self._transaction() as db:
                db.executemany(statement, ((name,) for name in usernames))

    def put(self, rows: Sequence[LoginRow]) -> None:
        if rows:
            with self._transaction() as db:
                db.executemany(PUT, map(_values, rows))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            # Never made here: without a responder there is none.
            there = f"file:{quote(str(self._path))}?mode=rw"
            with closing(sqlite3.connect(there, uri=True, timeout=LOCK_SECONDS)) as db, db:
                yield db
        except sqlite3.Error as error:
            raise KernelError(f"the list of IKEv2 logins ({self._path}): {error}") from error


def _row(username: str, password: str, address: str, dns_1: str, dns_2: str, enabled: int) -> LoginRow:
    dns = tuple(IPv4Address(text) for text in (dns_1, dns_2) if text)
    return LoginRow(username, Secret(password) if enabled else NO_SECRET, IPv4Address(address), dns)


def _values(row: LoginRow) -> tuple[str, ...]:
    first, second = (*map(str, row.dns), "", "")[:2]
    password = row.password.reveal()
    return row.username, password, nt_hash(password), str(row.address), first, second
