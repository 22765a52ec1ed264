"""The gateways of a lab: write their configuration, start them, see that they answer. Called by lab.py.

They run without any capability: as user `nobody` where that user can read the checkout, else as root with every
capability dropped. The gateway of one box runs on the machine's loopback; those of a fleet are hosts of their own,
share one key file, and are reached from here through relay.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tests.lab.errors import LabError
from tests.lab.hosts import NAMESPACES, in_network, run
from tests.lab.processes import Process, spawn, wait_until
from tests.lab.services import START_SECONDS, Identity, Settings, environment, python, write_toml
from tests.lab.topology import Host

FIRST = "g1"


@dataclass(frozen=True, slots=True)
class Gateway:
    """`host`: None = the machine itself. `port`: of the machine's loopback, and the one it listens on."""

    lab: str
    name: str
    port: int
    host: Host | None
    state: Path  # the lab's folder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url_for_hosts(self) -> str:
        """Where other lab hosts reach it. Raises LabError for that of one box, which they do not."""
        if self.host is None:
            raise LabError(f"{self.name}: on the machine's loopback, no lab host reaches it")
        return f"http://{self.host.address.ip}:{self.port}"

    @property
    def config(self) -> Path:
        return folder(self.state) / f"{self.name}.toml"

    @property
    def log(self) -> Path:
        return self.state / f"gateway-{self.name}.log"

    @property
    def part(self) -> str:
        return f"gateway-{self.name}"

    @property
    def relayed(self) -> list[str]:
        """For relay.py."""
        return [] if self.host is None else [f"{self.port}={NAMESPACES / self.host.namespace}={self.port}"]


def folder(state: Path) -> Path:
    return state / "gateway"


def prepare_folder(state: Path, identity: Identity) -> None:
    folder(state).mkdir(mode=0o700)
    os.chown(folder(state), identity.uid, identity.gid)


def prepare(gateway: Gateway, identity: Identity, database: str, settings: Settings) -> None:
    """`database`: its URL; "" = an SQLite file."""
    defaults: Settings = {
        "database": database or sqlite_url(gateway.state),
        "key_file": str(folder(gateway.state) / "secret.key"),
        "listen": f"{'127.0.0.1' if gateway.host is None else '0.0.0.0'}:{gateway.port}",
        "public_url": gateway.url,
    }
    write_toml(gateway.config, {**defaults, **settings}, identity)


def sqlite_url(state: Path) -> str:
    return f"sqlite:///{folder(state)}/gateway.db"


def command(gateway: Gateway, identity: Identity, *arguments: str) -> list[str]:
    """A command line for `wirelane-gateway` where this gateway runs and as its user, with `environment()`."""
    network = [] if gateway.host is None else in_network(gateway.host)
    program = python("-m", "gateway", "--config", str(gateway.config), *arguments)
    # PostgreSQL's client looks for certificates in HOME.
    return ["env", "-C", "/", "HOME=/nonexistent", *network, *identity.command, *program]


def call(gateway: Gateway, identity: Identity, *arguments: str, seconds: float = 60.0) -> str:
    """Run one of its subcommands to the end; returns what it printed."""
    variables = [f"{name}={value}" for name, value in environment().items()]
    return run(["env", *variables, *command(gateway, identity, *arguments)], seconds=seconds).stdout


def add_access_key(gateway: Gateway, identity: Identity, name: str, network: str) -> str:
    found = re.search(r"\b[0-9a-f]{80}\b", call(gateway, identity, "key", "add", name, "--ip", network))
    if not found:
        raise LabError("`wirelane-gateway key add` printed no access hash")
    return found[0]


def start(gateway: Gateway, identity: Identity) -> Process:
    return spawn(gateway.lab, command(gateway, identity, "serve"), gateway.log, environment())


def start_relay(lab: str, state: Path, triples: list[str]) -> Process:
    return spawn(lab, python("-m", "tests.lab.relay", *triples), state / "relay.log", environment())


def wait_for(gateway: Gateway, running: Process) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def healthy() -> bool:
        with contextlib.suppress(OSError), opener.open(f"{gateway.url}/healthz", timeout=2.0) as response:
            return bool(response.status == 200)
        return False

    wait_until(healthy, f"gateway {gateway.name}, see {gateway.log}", START_SECONDS, running)
