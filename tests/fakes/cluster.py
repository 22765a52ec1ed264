"""A PostgreSQL of our own for tests: on a free port, in a temporary folder, gone afterwards however the tests end.

PostgreSQL refuses to run as root: it becomes the user `postgres` (or `nobody`) then. It dies with the process that
started it (PDEATHSIG), so that a killed test run leaves nothing behind but a folder in /tmp. The lab's own PostgreSQL
(tests/lab/database.py) takes its programs and its user from here.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PACKAGES = Path("/usr/lib/postgresql")  # Debian keeps the programs of each version in a folder of its own
START_SECONDS = 30
STOP_SECONDS = 10


def why_missing() -> str:
    """Empty: a cluster can be started here."""
    return "" if binaries() is not None else f"no PostgreSQL in {PACKAGES} (package postgresql)"


def binaries() -> Path | None:
    """Of the newest version that is there."""
    versions = [path.parent.parent for path in PACKAGES.glob("*/bin/initdb") if path.parent.parent.name.isdecimal()]
    return max(versions, key=lambda path: int(path.name)) / "bin" if versions else None


class Cluster:
    def __init__(self) -> None:
        found = binaries()
        if found is None:
            raise RuntimeError(why_missing())
        self._binaries = found
        self._folder = Path(tempfile.mkdtemp(prefix="wirelane-postgres-"))
        self._prefix: list[str] = []
        if os.geteuid() == 0:
            user = unprivileged()
            os.chown(self._folder, user.pw_uid, user.pw_gid)
            self._prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._count = 0

    def start(self, *, tls: bool = False) -> None:
        data = self._folder / "data"
        self._run("initdb", "-D", str(data), "-U", "wirelane", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        # Speed: nothing in these files outlives the run.
        options = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=100"]
        if tls:
            self_signed(self.certificate, data / "server.key", self._prefix)
            options += ["-c", "ssl=on"]
        command = [self._binaries / "postgres", "-D", data, "-k", self._folder, "-h", "127.0.0.1", "-p", str(self.port)]
        self._command = ["setpriv", "--pdeathsig", "INT", *self._prefix[1:], *map(str, command), *options]
        self.serve()

    def serve(self) -> None:
        """Also after `kill`."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT, cwd="/")
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("PostgreSQL did not start:\n" + (self._folder / "log").read_text())
            time.sleep(0.05)

    def kill(self) -> None:
        """As `kill -9` does: every connection breaks, and nothing is written any more."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_SECONDS)

    @property
    def certificate(self) -> Path:
        """With `tls`: for 127.0.0.1, signed by itself. Readable for everybody."""
        return self._folder / "data" / "server.crt"

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str) -> str:
        return f"postgresql://wirelane@127.0.0.1:{self.port}/{database}"

    def create(self, template: str = "template1") -> str:
        """A new database; its name."""
        self._count += 1
        name = f"test_{self._count}"
        self._run("createdb", *self._where(), "-T", template, name)
        return name

    def drop(self, database: str) -> None:
        self._run("dropdb", *self._where(), "--force", database)

    def _where(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port), "-U", "wirelane"]

    def _answers(self) -> bool:
        ready = [str(self._binaries / "pg_isready"), "-q", *self._where(), "-d", "template1"]
        return subprocess.run(ready, timeout=10, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self._binaries / program), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


def self_signed(certificate: Path, key: Path, prefix: Sequence[str] = ()) -> None:
    """Makes a certificate for 127.0.0.1 and its key. `prefix`: of the command, to become somebody else."""
    for_address = ("-subj", "/CN=wirelane test", "-addext", "subjectAltName=IP:127.0.0.1")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    command = [*prefix, "openssl", "req", "-x509", *kind, *for_address, "-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, cwd="/", capture_output=True, timeout=60, check=True)


def unprivileged() -> pwd.struct_passwd:
    """Whom it runs as where we are root."""
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
