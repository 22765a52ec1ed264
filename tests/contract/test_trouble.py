"""A database that takes no changes: what callers are told, how long they wait, and that nothing is done afterwards."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.errors import ConfigError, DatabaseUnavailable
from gateway.store import engine, open_store
from gateway.store import store as store_room
from tests.fakes import direct
from tests.fakes.cluster import Cluster
from tests.fakes.product import KEY, migrated_sqlite

pytestmark = pytest.mark.anyio

NODE = "local"
NO_ROOM = "The database has no room left on its disk, try again"
PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/sbin:/bin")


@pytest.fixture(autouse=True)
def every_ping_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_room, "PING_SECONDS", 0.0)


async def as_superuser(url: str, *statements: str) -> None:
    other = create_async_engine(sa.make_url(url).set(drivername="postgresql+asyncpg"))
    async with other.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await autocommit.exec_driver_sql(statement)
    await other.dispose()


async def test_a_server_that_became_a_standby_is_told_and_left_as_soon_as_it_can_be(
    cluster: Cluster, postgres_url: str
) -> None:
    store = await open_store(postgres_url, KEY)
    database = sa.make_url(postgres_url).database
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    await as_superuser(
        cluster.url("postgres"),
        f"ALTER DATABASE {database} SET default_transaction_read_only = on",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
    )
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable, match="The database is read-only, try again"):
            await direct.add_node(store, "another", "unix:/run/other.sock")
        with pytest.raises(DatabaseUnavailable, match="is read-only"):
            await store.ping()
        assert [node.name for node in await direct.nodes(store)] == [NODE]  # questions are answered meanwhile
    await as_superuser(cluster.url("postgres"), f"ALTER DATABASE {database} SET default_transaction_read_only = off")
    # The connections that were made while it was a standby would refuse for ever.
    assert (await direct.add_node(store, "another", "unix:/run/other.sock")).name == "another"
    await store.ping()
    await store.close()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[str, sqlite3.Connection]]:
    """A database with a server that another program is writing to."""
    url = migrated_sqlite(tmp_path / "gateway.db")
    other = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None, check_same_thread=False)
    yield url, other
    other.close()


async def test_who_waits_for_a_locked_database_waits_no_longer_than_told_and_gets_nothing_later(
    held: tuple[str, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WAIT_SECONDS", 1.0)
    url, other = held
    store = await open_store(url, KEY)
    other.execute("BEGIN IMMEDIATE")
    started = time.monotonic()

    async def late(after: float) -> float:
        await asyncio.sleep(after)
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match=r"locked by somebody else|not available"):
            await direct.add_node(store, f"after{round(after * 1000)}", f"unix:/run/{after}.sock")
        return time.monotonic() - began

    waits = await asyncio.gather(*(late(number / 10) for number in range(9)))
    assert max(waits) < 1.6, waits  # not a second for each of those before it
    assert time.monotonic() - started < 4
    other.execute("COMMIT")
    await asyncio.sleep(0.5)
    assert await direct.nodes(store) == []
    assert (await direct.add_node(store, NODE, "unix:/run/agent.sock")).name == NODE
    await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("root is needed to mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, timeout=10)
    migrated_sqlite(folder / "gateway.db")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True, timeout=10)


async def told(change: Callable[[int], Awaitable[object]]) -> str:
    """What is said of one of some changes."""
    for number in range(50):
        try:
            await change(number)
        except DatabaseUnavailable as error:
            return error.text
    return ""


async def test_a_full_disk_is_told_by_every_change_and_by_health_until_there_is_room(small_disk: Path) -> None:
    store = await open_store(f"sqlite:///{small_disk}/gateway.db", KEY)
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    await store.ping()
    ballast = small_disk / "ballast"
    handle = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while os.write(handle, bytes(4096)):
            pass
    os.close(handle)
    # The last pages of the journal may still take a change or two.
    assert await told(lambda number: direct.add_node(store, f"n{number}", f"unix:/run/n{number}.sock")) == NO_ROOM
    assert await told(lambda _: store.ping()) == NO_ROOM
    assert NODE in [node.name for node in await direct.nodes(store)]
    ballast.unlink()
    await direct.add_node(store, "after", "unix:/run/after.sock")
    await store.ping()
    await store.close()


class Pooler:
    """Debian's PgBouncer before a database of the cluster."""

    def __init__(self, folder: Path, cluster: Cluster, database: str, mode: str) -> None:
        assert PGBOUNCER is not None
        folder.chmod(0o755)
        self.port = free_port()
        settings = folder / "pgbouncer.ini"
        users = folder / "users.txt"
        users.write_text('"wirelane" ""\n')
        settings.write_text(
            f"[databases]\n{database} = host=127.0.0.1 port={cluster.port} dbname={database}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\npool_mode = {mode}\n"
            f"auth_type = trust\nauth_file = {users}\nserver_reset_query = DISCARD ALL\n"
        )
        user = pwd.getpwnam("nobody")
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        command = [*(become if os.geteuid() == 0 else []), PGBOUNCER, str(settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"postgresql://wirelane@127.0.0.1:{self.port}/{database}"
        give_up = time.monotonic() + 10
        while not _listens(self.port):
            assert time.monotonic() < give_up and self._process.poll() is None, "PgBouncer did not start"
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def pooled(
    request: pytest.FixtureRequest, cluster: Cluster, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if PGBOUNCER is None:
        pytest.skip("pgbouncer (package pgbouncer) is missing")
    folder = Path(tmp_path_factory.mktemp("pooler"))
    folder.parent.chmod(0o755)
    folder.parent.parent.chmod(0o755)
    pooler = Pooler(folder, cluster, str(sa.make_url(postgres_url).database), request.param)
    try:
        yield pooler.url
    finally:
        pooler.stop()


@pytest.mark.parametrize("pooled", ["transaction", "statement"], indirect=True)
async def test_a_pooler_that_breaks_up_sessions_is_refused_with_the_reason(pooled: str) -> None:
    for _ in range(3):
        with pytest.raises((ConfigError, DatabaseUnavailable), match=r"pool_mode = session|statement pooling"):
            await (await open_store(pooled, KEY)).close()


@pytest.mark.parametrize("pooled", ["session"], indirect=True)
async def test_a_pooler_in_session_mode_works(pooled: str) -> None:
    store = await open_store(pooled, KEY)
    await direct.add_node(store, NODE, "unix:/run/agent.sock")
    timeout = await store.read(lambda tx: tx.one(sa.text("SELECT current_setting('lock_timeout') AS value")))
    assert timeout is not None and timeout.value == "5s"
    await store.close()


def test_root_acts_as_the_owner_and_hears_the_real_reason(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("root is needed to become somebody else")
    tmp_path.chmod(0o755)
    folder = tmp_path / "state"
    folder.mkdir()
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    (folder / "secret.key").write_text("ab" * 32)
    (folder / "secret.key").chmod(0o600)
    os.chown(folder / "secret.key", nobody.pw_uid, nobody.pw_gid)
    for parent in tmp_path.parents:
        if parent != Path("/") and parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    home = tmp_path / "home"
    (home / ".postgresql").mkdir(parents=True)
    home.chmod(0o700)
    config = folder / "gateway.toml"
    config.write_text(f'database = "postgresql://wirelane@127.0.0.1:1/wirelane"\nkey_file = "{folder}/secret.key"\n')
    config.chmod(0o644)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--config", str(config), "node", "list"],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "The database is not available" in done.stderr and "Connect call failed" in done.stderr
    assert "ermission denied" not in done.stderr
