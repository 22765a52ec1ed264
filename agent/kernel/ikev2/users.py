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
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import quote

from agent.errors import KernelError
from agent.kernel.ikev2.nt_hash import nt_hash
from agent.model import NO_SECRET, Secret
from agent.objects import LoginRow

SCHEMA = """
CREATE TABLE IF NOT EXISTS logins (
    id INTEGER PRIMARY KEY, username TEXT NOT NULL UNIQUE, password TEXT NOT NULL, nt_hash TEXT NOT NULL,
    address TEXT NOT NULL, dns_1 TEXT NOT NULL, dns_2 TEXT NOT NULL,
    address_ipv6 TEXT NOT NULL, dns_1_ipv6 TEXT NOT NULL, dns_2_ipv6 TEXT NOT NULL, enabled INTEGER NOT NULL
)
"""
GIVEN = ("address", "dns_1", "dns_2", "address_ipv6", "dns_1_ipv6", "dns_2_ipv6")  # to the client; "" = none
SAID = ("password", "nt_hash", *GIVEN)
PUT = f"""
INSERT INTO logins (username, {", ".join(SAID)}, enabled) VALUES (?, {", ".join("?" * len(SAID))}, 1)
ON CONFLICT (username) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in SAID)}, enabled = 1
"""
ROWS = f"SELECT username, password, enabled, nt_hash, {', '.join(GIVEN)} FROM logins"
# Of the table and of the query that FreeRADIUS was started with. 1: passwords in the place of hashes, 2: IPv4 only.
VERSION = 3
LOCK_SECONDS = 5.0
NOWHERE = IPv4Address("0.0.0.0")


class Users:
    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> None:
        """Empty: who may log in is told anew."""
        remove(self._path)
        os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        with self._transaction() as db:
            db.execute(SCHEMA)
            db.execute(f"PRAGMA user_version = {VERSION}")

    def is_right(self) -> bool:
        """Is it as this version made it, and readable to its end? Else what runs has to be started anew."""
        try:
            with self._transaction() as db:
                (version,) = db.execute("PRAGMA user_version").fetchone()
                named = all(isinstance(row[0], str) for row in db.execute(ROWS))
                (sound,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        except KernelError:
            return False
        return bool(version == VERSION and named and sound == "ok")

    def read(self) -> dict[str, LoginRow]:
        """{} = there is no file. One that is switched off has no password, and one that makes no sense nothing."""
        if not self._path.exists():
            return {}
        with self._transaction() as db:
            rows = db.execute(ROWS).fetchall()
        return {row[0]: _row(*row) for row in rows if isinstance(row[0], str)}

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
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise KernelError(f"the list of IKEv2 logins ({self._path}): {error}") from error


def remove(path: Path) -> None:
    """Whatever it is. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _row(username: str, password: str, enabled: int, said: str, *given: str) -> LoginRow:
    """What is none of ours, or damaged, is a row that nobody wants: so it is rewritten, or goes."""
    if not all(isinstance(text, str) for text in (password, said, *given)) or enabled not in (0, 1):
        return LoginRow(username, NO_SECRET, NOWHERE)
    address, dns_1, dns_2, ipv6, dns_1_ipv6, dns_2_ipv6 = given
    secret = Secret(password) if enabled else NO_SECRET
    try:
        dns = tuple(ip_address(text) for text in (dns_1, dns_2, dns_1_ipv6, dns_2_ipv6) if text)
        return LoginRow(username, secret, IPv4Address(address), dns, address_ipv6=IPv6Address(ipv6) if ipv6 else None)
    except ValueError:
        return LoginRow(username, NO_SECRET, NOWHERE)


def _values(row: LoginRow) -> tuple[str, ...]:
    ipv4, ipv6 = ((*(str(one) for one in row.dns if one.version == version), "", "")[:2] for version in (4, 6))
    password = row.password.reveal()
    return row.username, password, nt_hash(password), str(row.address), *ipv4, str(row.address_ipv6 or ""), *ipv6
