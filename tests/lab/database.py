"""The lab's PostgreSQL: a cluster of its own in a lab host of its own. Called by lab.py and the fleet tests.

Programs and user are those of tests/fakes/cluster.py; unlike there it outlives the command that started it, asks for a
password, and can be killed as by a power cut. Its files live in the lab's folder.
"""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

from tests.fakes.cluster import binaries, unprivileged, why_missing
from tests.lab.errors import LabError
from tests.lab.hosts import NAMESPACES, in_network, run
from tests.lab.processes import Process, end, inside, spawn, wait_until
from tests.lab.topology import OFFICE_NETWORK, Host

NAME = USER = "wirelane"
PORT = 5432
START_SECONDS = 30.0
KILL_SECONDS = 20.0
# kill -9 of every process is the power cut that the lab knows: the machine's page cache survives it, so waiting for the
# disk would prove nothing and take long.
OPTIONS = ("fsync=off", "full_page_writes=off", "max_connections=100")


def folder(state: Path) -> Path:
    return state / "postgres"


def _password_file(state: Path) -> Path:
    return folder(state) / "password"  # theirs: initdb reads it too


def password(state: Path) -> str:
    return _password_file(state).read_text().strip()


def url(host: Host, state: Path, port: int | None = None) -> str:
    """With the password. `port`: of the machine's loopback; None: as lab hosts reach it."""
    where = f"{host.address.ip}:{PORT}" if port is None else f"127.0.0.1:{port}"
    return f"postgresql://{USER}:{password(state)}@{where}/{NAME}"


def command(state: Path, program: str, *arguments: str) -> list[str]:
    """A command line for one of PostgreSQL's programs as the cluster's user, group the lab's so that it may enter."""
    if (found := binaries()) is None:
        raise LabError(why_missing())
    user, group = unprivileged().pw_uid, state.stat().st_gid
    become = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs", "--"]
    return ["env", "-C", "/", *become, str(found / program), *arguments]


def on_socket(state: Path, program: str, *arguments: str) -> list[str]:
    """The same for a client program, connected as the cluster's superuser over its unix socket."""
    return command(state, program, "-h", str(folder(state)), "-p", str(PORT), "-U", USER, *arguments)


def prepare(host: Host, state: Path) -> None:
    """Make the cluster's files."""
    place, data = folder(state), folder(state) / "data"
    place.mkdir(mode=0o700)
    os.chown(place, unprivileged().pw_uid, -1)
    _write_password(state)
    options = ["--auth=scram-sha-256", "--auth-local=trust", f"--pwfile={_password_file(state)}", "--no-sync"]
    run(command(state, "initdb", "-D", str(data), "-U", USER, "-E", "UTF8", "--locale=C", *options), seconds=60.0)
    with (data / "pg_hba.conf").open("a") as rules:
        rules.write(f"host all all {OFFICE_NETWORK} scram-sha-256\n")


def _write_password(state: Path) -> None:
    descriptor = os.open(_password_file(state), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        os.fchown(descriptor, unprivileged().pw_uid, -1)
        file.write(secrets.token_hex(16) + "\n")


def start(host: Host, state: Path) -> Process:
    """Returns at once; see `await_ready`. Call it only when none runs."""
    # Who was killed may be a zombie for a while, and PostgreSQL takes that for a postmaster that is alive.
    for lock in (folder(state) / "data" / "postmaster.pid", folder(state) / f".s.PGSQL.{PORT}.lock"):
        lock.unlink(missing_ok=True)
    listen = f"127.0.0.1,{host.address.ip}"
    arguments = ["-D", str(folder(state) / "data"), "-k", str(folder(state)), "-h", listen, "-p", str(PORT)]
    for option in OPTIONS:
        arguments += ["-c", option]
    return spawn(host.lab, [*in_network(host), *command(state, "postgres", *arguments)], state / "postgres.log")


def await_ready(state: Path, running: Process) -> None:
    """Until it answers; the first time the gateways' database is made."""
    ready = on_socket(state, "pg_isready", "-q", "-d", "template1")
    what = f"PostgreSQL, see {state}/postgres.log"
    wait_until(lambda: run(ready, check=False).returncode == 0, what, START_SECONDS, running)
    listed = run(on_socket(state, "psql", "-Atc", f"select 1 from pg_database where datname = '{NAME}'", "template1"))
    if not listed.stdout.strip():
        run(on_socket(state, "createdb", NAME))


def kill(host: Host) -> None:
    """As by a power cut: all of its processes. Returns when they are gone."""
    while found := [one for one in inside([NAMESPACES / host.namespace]) if is_postgres(one)]:
        if end(found, signal.SIGKILL, KILL_SECONDS):
            raise LabError(f"PostgreSQL does not end within {KILL_SECONDS:g} s of SIGKILL")


def is_postgres(running: Process) -> bool:
    try:
        return Path(f"/proc/{running.pid}/comm").read_text().strip() == "postgres"
    except OSError:
        return False
