"""Door: the agent's own SQLite file. Desired state, baselines of the counters, usage by day.

What is in it outlives everything: a change is acknowledged only when it is on the disk (WAL, synchronous=FULL). One
connection, one lock; every public method is one transaction and may be called from any thread. The file is 0600 and
holds private keys, preshared ones and passwords, so its folder should be root's alone.

A file that is damaged is put aside whole (`*.broken-<time>`), never repaired: a new one has a new epoch, by which the
gateway knows that it must send a snapshot, and until that arrives the kernel is left as it is.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

from agent.desired import Desired, Patch, Snapshot
from agent.errors import BrokenStore, InvalidValue, StoreError
from agent.model import Account, Address, Server
from agent.origin import Origin
from agent.rows import account_of, account_row, baseline_of, baseline_rows, by_version, key_of, server_of, server_row
from agent.schema import SCHEMA, SCHEMA_VERSION, TOLD_AGAIN, UPGRADES
from agent.usage import Baseline, DayTotal, Used

T = TypeVar("T")

KEPT_DAYS = 100  # of usage; a gateway that is away for longer than this loses the oldest days
RECENT_ROWS = 50_000
AT_ONCE = 100_000  # rows of usage in an answer; one sample writes 34,475 at most
ROOM = 65_536  # bytes; with less SQLite cannot even begin: its shared memory alone takes half of it

PUT_ACCOUNT = "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
PUT_SERVER = "INSERT OR REPLACE INTO servers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
BASELINES = {4: "baselines", 6: "baselines_ipv6"}  # by version of the address
EXPECT_BASELINE = """
INSERT OR IGNORE INTO {}
VALUES (?, ?, 0, 0, 0, 0, COALESCE((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'stamp'), 0))
"""
PUT_META = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
ADD_USAGE = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET download = download + excluded.download, upload = upload + excluded.upload, seq = excluded.seq
"""

# By the number of days that are there, not by the clock: while it is set wrong, no day may be lost.
FORGET_OLD_DAYS = f"""
DELETE FROM usage
WHERE day < (SELECT day FROM (SELECT DISTINCT day FROM usage) ORDER BY day DESC LIMIT 1 OFFSET {KEPT_DAYS})
"""


class Store:
    """An open file. Make it with `open_store`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path
        self._lock = threading.Lock()
        self._pruned_on = 0
        epoch = self._meta().get("epoch")
        if not epoch:
            raise BrokenStore("the state file has lost its epoch")
        self.epoch = epoch

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(self._path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _meta(self) -> dict[str, str]:
        with self._lock, _translated(self._path):
            return dict(self._db.execute("SELECT key, value FROM meta"))

    # -- desired --

    def load(self) -> Desired | None:
        """What was last accepted; None = nothing yet. Raises BrokenStore where it makes no sense."""
        meta = self._meta()
        if "revision" not in meta:
            return None
        with self._lock, _translated(self._path):
            servers = self._db.execute("SELECT * FROM servers").fetchall()
            accounts = self._db.execute("SELECT * FROM accounts").fetchall()
        try:
            snapshot = Snapshot(
                int(meta["revision"]),
                tuple(server_of(row) for row in servers),
                tuple(map(account_of, accounts)),
                meta["time_zone"],
                Origin(meta.get("identity", ""), int(meta.get("revision_mark", 0)), meta.get("node", "")),
            )
            return Desired.of(self.epoch, snapshot)
        except (InvalidValue, ValueError, KeyError) as error:
            raise BrokenStore(f"the state file holds a value that cannot be right: {error}") from error

    def save_snapshot(self, desired: Desired) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM servers")
            db.execute("DELETE FROM accounts")
            self._put(db, desired, desired.servers.values(), tuple(desired.accounts.values()))

    def save_patch(self, desired: Desired, patch: Patch) -> None:
        with self._transaction() as db:
            db.executemany("DELETE FROM servers WHERE name = ?", ((name,) for name in patch.remove_servers))
            db.executemany("DELETE FROM accounts WHERE id = ?", ((i,) for i in patch.remove_accounts))
            # A change of one may be one of all: see desired.py.
            self._put(db, desired, desired.servers.values() if patch.put_servers else (), patch.put_accounts)

    @staticmethod
    def _put(
        db: sqlite3.Connection, desired: Desired, servers: Iterable[Server], accounts: Collection[Account]
    ) -> None:
        db.executemany(PUT_SERVER, map(server_row, servers))
        db.executemany(PUT_ACCOUNT, map(account_row, accounts))
        # Whose bytes the rules will count must be known even if the account is gone again before the first sample.
        db.executemany(EXPECT_BASELINE.format(BASELINES[4]), ((int(a.address), a.id) for a in accounts))
        second = [(a.address_ipv6.packed, a.id) for a in accounts if a.address_ipv6]
        db.executemany(EXPECT_BASELINE.format(BASELINES[6]), second)
        origin = desired.origin
        said = {"identity": origin.identity, "revision_mark": str(origin.mark), "node": origin.node}
        said |= {"revision": str(desired.revision), "time_zone": desired.time_zone}
        db.executemany(PUT_META, said.items())

    # -- contact: what agent/contact.py needs --

    def load_contact(self) -> float | None:
        at = self._meta().get("contact")
        return float(at) if at else None

    def save_contact(self, at: float) -> None:
        with self._transaction() as db:
            db.execute(PUT_META, ("contact", repr(at)))

    # -- usage: what agent/usage.py needs --

    def load_baselines(self) -> dict[Address, Baseline]:
        with self._lock, _translated(self._path):
            rows = self._db.execute("SELECT * FROM baselines").fetchall()
            second = self._db.execute("SELECT * FROM baselines_ipv6").fetchall()
        try:
            found: dict[Address, Baseline] = {IPv4Address(row[0]): baseline_of(row) for row in rows}
            return found | {IPv6Address(row[0]): baseline_of(row) for row in second}
        except ValueError as error:
            raise BrokenStore(f"the state file holds a value that cannot be right: {error}") from error

    def load_sampled_at(self) -> float | None:
        at = self._meta().get("sampled_at")
        return float(at) if at else None

    def load_counted_by(self) -> str:
        return self._meta().get("counted_by", "")

    def load_stamp(self) -> int:
        return int(self._meta().get("stamp", 0))

    def save_counted_by(self, backend: str) -> None:
        with self._transaction() as db:
            db.execute(PUT_META, ("counted_by", backend))

    def load_recent(self) -> list[int]:
        """Accounts by their latest usage, the last first: by the index, hence a bound on rows and not on accounts."""
        with self._lock, _translated(self._path):
            rows = self._db.execute("SELECT account_id FROM usage ORDER BY seq DESC LIMIT ?", (RECENT_ROWS,)).fetchall()
        return list(dict.fromkeys(row[0] for row in rows))

    def save_sample(
        self,
        baselines: Mapping[Address, Baseline],
        used: Mapping[int, Used],
        day: int,
        at: float,
        counted_by: str = "",
    ) -> None:
        with self._transaction() as db:
            _put_baselines(db, baselines)
            seq = _seq(db) + 1
            db.executemany(
                ADD_USAGE, ((i, day, u.download, u.upload, seq) for i, u in used.items() if u.download or u.upload)
            )
            said = [("sampled_at", repr(at)), ("seq", str(seq)), ("counted_by", counted_by)]
            db.executemany(PUT_META, said if counted_by else said[:2])
            if day != self._pruned_on:
                db.execute(FORGET_OLD_DAYS)
        self._pruned_on = day

    def save_baselines(self, baselines: Mapping[Address, Baseline]) -> None:
        with self._transaction() as db:
            _put_baselines(db, baselines)

    def forget_baselines(self, addresses: Iterable[Address], stamp: int) -> None:
        """`stamp`: what the table of marks says now. Whoever gets such an address is told apart by it."""
        with self._transaction() as db:
            db.execute(PUT_META, ("stamp", str(stamp)))
            for version, gone in by_version(addresses).items():
                db.executemany(f"DELETE FROM {BASELINES[version]} WHERE address = ?", ((key_of(a),) for a in gone))

    # -- usage: what the gateway asks --

    def totals(self, after: int, account_ids: Iterable[int] = ()) -> tuple[int, list[DayTotal]]:
        """The rows that changed after a cursor, only these accounts' if any are named; and the new cursor.

        Not more than AT_ONCE: what changed first, and the cursor of that. A gateway that begins anew asks again.
        """
        ids = tuple(account_ids)
        with self._lock, _translated(self._path), self._db:
            self._db.execute("BEGIN")
            cursor = _seq(self._db)
            query = "SELECT account_id, day, download, upload, seq FROM usage WHERE seq > ?"
            if ids:
                query += f" AND account_id IN ({','.join('?' * len(ids))})"
            rows = self._db.execute(f"{query} ORDER BY seq LIMIT ?", (after, *ids, AT_ONCE + 1)).fetchall()
        if len(rows) > AT_ONCE:  # a sample is told whole or not yet
            cursor = rows[-1][4] - 1
            rows = [row for row in rows if row[4] <= cursor]
        return cursor, [DayTotal(row[0], row[1], Used(row[2], row[3])) for row in rows]

    def close(self) -> None:
        with self._lock:
            self._db.close()


def open_store(path: Path) -> Store:
    """Opens the file, makes it if there is none. Raises BrokenStore if it is damaged, StoreError otherwise."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    with _translated(path):
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            version = _check(db, path)
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                _make(db)
            elif not {"meta", "servers", "accounts", "baselines", "usage"} <= tables:
                raise BrokenStore(f"{path}: it is not the file of an agent, or parts of it are missing")
            else:
                _upgrade(db, version)
            return Store(db, path)
        except BaseException:
            db.close()
            raise


def open_store_or_new(path: Path, read: Callable[[Store], T]) -> tuple[Store, T, Path | None]:
    """Like `open_store`, with what `read` makes of it; a damaged file is put aside, and the last value says where."""
    try:
        store = open_store(path)
        try:
            return store, read(store), None
        except BaseException:
            store.close()  # the file that is put aside shall not stay open
            raise
    except BrokenStore:
        aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        for suffix in ("", "-wal", "-shm"):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        store = open_store(path)
        return store, read(store), aside


@contextmanager
def only_agent(state: Path) -> Iterator[None]:
    """Holds the lock that keeps a second agent away from the same state. Raises StoreError."""
    path = state.with_name(state.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreError(f"another wirelane-agent is running with {state}; stop it first") from None
    finally:
        os.close(handle)


def _check(db: sqlite3.Connection, path: Path) -> int:
    """The version of its schema, at most ours. Raises BrokenStore, StoreError."""
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise BrokenStore(f"{path}: {verdict}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path} was written by a newer wirelane-agent (schema {version}); install that one again")
    return int(version)


def _make(db: sqlite3.Connection) -> None:
    db.executescript(
        f"BEGIN IMMEDIATE; {SCHEMA} INSERT INTO meta VALUES ('epoch', '{uuid.uuid4().hex}');"
        f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    """In place, a version in one transaction."""
    for old in range(version, SCHEMA_VERSION):
        db.executescript(f"BEGIN IMMEDIATE; {UPGRADES[old]} {TOLD_AGAIN} PRAGMA user_version = {old + 1}; COMMIT;")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, disk full, read-only: not the file's own fault
        if _is_full(error, path):
            raise StoreError(
                f"the disk of {path} is full: free space there; nothing new is taken until then"
            ) from error
        raise StoreError(f"the state file {path} cannot be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise BrokenStore(f"the state file is damaged: {error}") from error


def _is_full(error: sqlite3.OperationalError, path: Path) -> bool:
    """A full disk is "disk I/O error" or "unable to open" too, by which of its files does not grow."""
    if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return False
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return error.sqlite_errorcode == sqlite3.SQLITE_FULL or disk.f_bfree * disk.f_frsize < ROOM


def _seq(db: sqlite3.Connection) -> int:
    """The number of the last sample."""
    row = db.execute("SELECT value FROM meta WHERE key = 'seq'").fetchone()
    return int(row[0]) if row else 0


def _put_baselines(db: sqlite3.Connection, baselines: Mapping[Address, Baseline]) -> None:
    for version, addresses in by_version(baselines).items():
        put = f"INSERT OR REPLACE INTO {BASELINES[version]} VALUES (?, ?, ?, ?, ?, ?, ?)"
        db.executemany(put, baseline_rows(addresses, baselines))
