"""The lab as a whole: up, status, stop and start of its parts, connect, down.

Called by cli.py, demo.py, the namespace tests and the benchmarks. What is there is read from the system (namespaces,
processes with their start times); the record in the lab's folder only says how it was meant to be.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.lab import hosts, registry, services
from tests.lab.connect import Client, ClientConfig
from tests.lab.errors import LabError, NoSuchLab
from tests.lab.hosts import NAMESPACES
from tests.lab.processes import Process, Records, end, inside, marked, wait_until
from tests.lab.rest import Rest
from tests.lab.services import BARE_ROOT, NOBODY, Identity, Settings
from tests.lab.topology import INTERNET_ADDRESS, UPLINK, Host, Topology, topology

KEY_NAME = "lab"
STOP_SECONDS = 20.0
DOWN_SECONDS = 120.0  # the kernel takes half a minute for the classes of 30,000 accounts
NO_SETTINGS: Settings = {}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Record:
    """How the lab was meant to be; lab.json in its folder."""

    name: str
    nodes: int
    clients: int
    port: int
    user: str = ""  # whom the gateway runs as
    access_hash: str = ""
    complete: bool = False  # `up` came to its end


def _say_nothing(text: str) -> None:
    del text


class Lab:
    """A lab that is up. `Lab.up` makes one, `Lab.open` finds one."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._records = Records(registry.folder(record.name) / "processes")
        self.state = registry.folder(record.name)
        self.plan: Topology = topology(record.name, record.nodes, record.clients)
        self.url = f"http://127.0.0.1:{record.port}"
        self.rest = Rest(self.url, record.access_hash)

    # -- up and down ----------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        name: str = "wl",
        nodes: int = 1,
        clients: int = 2,
        *,
        agent: Settings = NO_SETTINGS,
        gateway: Settings = NO_SETTINGS,
        say: Say = _say_nothing,
    ) -> Lab:
        """Build a lab and return when all of it answers. `agent`, `gateway`: keys of their TOML that shall differ.

        Raises LabError if it cannot; nothing stays behind then.
        """
        plan = topology(name, nodes, clients)
        if os.geteuid() != 0:
            raise LabError("a lab is made of network namespaces: run it as root")
        record = cls._reserve(name, nodes, clients, say)
        try:
            with registry.locked(registry.folder(name)):
                say(f"hosts: {', '.join(host.namespace for host in plan.hosts)}")
                hosts.create(plan)
                lab = cls(record)
                lab._build(agent, gateway, say)
                return lab
        except BaseException:  # Ctrl-C too
            say("failed: taking down what was built")
            cls.down(name, keep_logs=Path(f"/tmp/wirelane-lab-{name}-failed"))
            raise

    @staticmethod
    def _reserve(name: str, nodes: int, clients: int, say: Say) -> Record:
        with registry.locked_base():
            found = _read_record(name)
            if found and found.complete:
                raise LabError(f"there is a lab {name!r} already; `scripts/lab down --name {name}` removes it")
            if found is None and not registry.folder(name).exists() and not hosts.existing(name):
                return _write_record(Record(name, nodes, clients, registry.free_port()))
        say(f"removing what an unfinished lab {name!r} left behind")
        Lab.down(name)
        with registry.locked_base():
            return _write_record(Record(name, nodes, clients, registry.free_port()))

    def _build(self, agent: Settings, gateway: Settings, say: Say) -> None:
        identity = services.gateway_identity()
        os.chown(self.state, 0, identity.gid)
        started = services.start_internet(self.plan.internet, self.state)
        for part, running in started.items():
            self._records.save(part, running)
        for client in self.plan.clients:
            hosts.hold(client, self.state)
        say(f"agents: {', '.join(node.name for node in self.plan.nodes)}")
        for node in self.plan.nodes:
            services.prepare_agent(node, self.state, identity, agent)
            self._records.save(f"agent-{node.name}", services.start_agent(node, self.state))
        say(f"gateway: {self.url}, as user {identity.user}, without capabilities")
        services.prepare_gateway(self.state, identity, self._record.port, gateway)
        services.call_gateway(self.state, identity, "migrate")
        self._records.save("gateway", services.start_gateway(self._record.name, self.state, identity))
        with ThreadPoolExecutor(1) as beside:  # each of these is a program of a second; the gateway starts meanwhile
            access_hash = beside.submit(services.add_access_key, self.state, identity, KEY_NAME, "127.0.0.1/32")
            for node in self.plan.nodes:  # in order: a server that names no node goes to the first
                self._add_node(node, identity)
        self._record = replace(self._record, user=identity.user, access_hash=access_hash.result())
        self.rest = Rest(self.url, self._record.access_hash)
        for node in self.plan.nodes:
            self._await_agent(node)
        self.start_gateway()
        wait_until(lambda: services.internet_answers(self.plan.internet, self.state), "the internet host", 10.0)
        self._await_nodes()
        self._record = _write_record(replace(self._record, complete=True))

    def _add_node(self, node: Host, identity: Identity) -> None:
        target, endpoint = services.agent_target(node, self.state), str(node.address.ip)
        services.call_gateway(self.state, identity, "node", "add", node.name, target, "--endpoint", endpoint)

    def _await_nodes(self) -> None:
        """The gateway has met every agent; a first call need not wait for that."""

        def settled() -> bool:
            status = self.rest.get("system/status")
            return len(status["nodes"]) == len(self.plan.nodes) and status["status"] == "OK"

        wait_until(settled, "gateway and agents in step", services.START_SECONDS)

    @classmethod
    def open(cls, name: str = "wl") -> Lab:
        """The lab of that name. Raises NoSuchLab."""
        record = _read_record(name)
        if record is None or not record.complete:
            partial = record is not None or hosts.existing(name)
            hint = f" (an unfinished one is: `scripts/lab down --name {name}`)" if partial else ""
            raise NoSuchLab(f"there is no lab {name!r}{hint}")
        return cls(record)

    @staticmethod
    def down(name: str = "wl", *, keep_logs: Path | None = None) -> bool:
        """Remove everything of the lab, whatever state it is in, and nothing else. False: there was nothing.

        Raises LabError if something resists. `keep_logs`: a folder to move the logs to.
        """
        topology(name, 1, 0)  # refuses a name that is none before it becomes a path
        state = registry.folder(name)
        found = state.exists() or bool(hosts.existing(name)) or bool(marked(name))
        with contextlib.ExitStack() as stack:
            if state.exists():
                stack.enter_context(registry.locked(state))
            _end_processes(name, state)
            hosts.remove(hosts.existing(name))
            if left := hosts.existing(name):
                raise LabError(f"namespaces that cannot be removed: {', '.join(left)}")
            if keep_logs and state.exists():
                keep_logs.mkdir(mode=0o700, exist_ok=True)
                for log in state.glob("*.log"):
                    shutil.move(log, keep_logs / log.name)
            if state.exists():
                shutil.rmtree(state)
        registry.remove_base()
        return found

    # -- what is there --------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, object]:
        """The JSON object of `lab up` and `lab status`."""
        return {
            "url": self.url,
            "access_hash": self._record.access_hash,
            "internet": {"namespace": self.plan.internet.namespace, "ip": str(INTERNET_ADDRESS)},
            "nodes": [
                {
                    "name": node.name,
                    "namespace": node.namespace,
                    "uplink": UPLINK,
                    "public_ip": str(node.address.ip),
                    "agent_pid": self.agent_pid(node.name),
                }
                for node in self.plan.nodes
            ],
            "clients": [{"name": client.name, "namespace": client.namespace} for client in self.plan.clients],
            "gateway_pid": self.gateway_pid(),
            "state": str(self.state),
        }

    def agent_pid(self, node: str) -> int | None:
        running = self._records.load(f"agent-{self._node(node).name}")
        return running.pid if running else None

    def gateway_pid(self) -> int | None:
        running = self._records.load("gateway")
        return running.pid if running else None

    def host(self, name: str) -> Host:
        if found := self.plan.host(name):
            return found
        raise LabError(f"lab {self._record.name!r} has no host {name!r}: {', '.join(h.name for h in self.plan.hosts)}")

    def _node(self, name: str) -> Host:
        found = self.plan.host(name)
        if found in self.plan.nodes:
            return found
        raise LabError(f"lab {self._record.name!r} has no node {name!r}: {', '.join(h.name for h in self.plan.nodes)}")

    def _client(self, name: str) -> Client:
        found = self.plan.host(name)
        if found in self.plan.clients:
            return Client(found, self.state)
        known = ", ".join(host.name for host in self.plan.clients)
        raise LabError(f"lab {self._record.name!r} has no client {name!r}: {known}")

    # -- run things -----------------------------------------------------------------------------------------------

    def command(self, host: str, *argv: str) -> list[str]:
        """A command line that runs `argv` in both namespaces of a host, with / as its working directory."""
        return [*hosts.enter(self.host(host), self.state), *argv]

    def exec(
        self, host: str, *argv: str, stdin: str | None = None, check: bool = True, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in a host to its end, output captured. Raises LabError if it fails (and `check`) or is late."""
        return hosts.run(self.command(host, *argv), stdin=stdin, check=check, seconds=seconds)

    def agent_command(self, node: str, *arguments: str) -> list[str]:
        """A command line for `wirelane-agent` on a node: "status", "plan", ..."""
        return services.agent_command(self._node(node), self.state, *arguments)

    def gateway_cli(self, *arguments: str) -> str:
        """Run a subcommand of `wirelane-gateway` as the gateway's user; returns what it printed."""
        return services.call_gateway(self.state, self._identity, *arguments)

    @property
    def _identity(self) -> Identity:
        return NOBODY if self._record.user == NOBODY.user else BARE_ROOT

    # -- stop, kill, start ----------------------------------------------------------------------------------------

    def start_agent(self, node: str) -> None:
        """Returns when it answers. Running already is no error."""
        host = self._node(node)
        if self.agent_pid(node) is None:
            self._records.save(f"agent-{host.name}", services.start_agent(host, self.state))
        self._await_agent(host)

    def _await_agent(self, node: Host) -> None:
        if running := self._records.load(f"agent-{node.name}"):
            services.wait_for_agent(node, self.state, running)
        else:
            raise LabError(f"the agent of {node.name} has ended; see {self.state}/agent-{node.name}.log")

    def stop_agent(self, node: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Returns when it is gone. Not running is no error."""
        self._stop(f"agent-{self._node(node).name}", how)

    def kill_agent(self, node: str) -> None:
        self.stop_agent(node, signal.SIGKILL)

    def start_gateway(self) -> None:
        """Returns when it answers. Running already is no error."""
        if self.gateway_pid() is None:
            self._records.save("gateway", services.start_gateway(self._record.name, self.state, self._identity))
        if running := self._records.load("gateway"):
            services.wait_for_gateway(self.url, self.state, running)
        else:
            raise LabError(f"the gateway has ended; see {self.state}/gateway.log")

    def stop_gateway(self, how: signal.Signals = signal.SIGTERM) -> None:
        self._stop("gateway", how)

    def kill_gateway(self) -> None:
        self.stop_gateway(signal.SIGKILL)

    def _stop(self, part: str, how: signal.Signals) -> None:
        running = self._records.load(part)
        if running and end([running], how, STOP_SECONDS):
            raise LabError(f"{part} (pid {running.pid}) does not end within {STOP_SECONDS:g} s of {how.name}")

    # -- clients --------------------------------------------------------------------------------------------------

    def connect(self, client: str, account: str) -> ClientConfig:
        """Connect a client as an account. Raises NoHandshake, with the tunnel up, if the server does not answer."""
        return self._client(client).connect(str(self.rest.get(f"account/{account}/config_text")))

    def disconnect(self, client: str) -> bool:
        return self._client(client).disconnect()

    def handshake(self, client: str) -> int:
        """Unix time of the client's latest handshake; 0 = none."""
        return self._client(client).handshake()


def _read_record(name: str) -> Record | None:
    try:
        return Record(**json.loads((registry.folder(name) / "lab.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_record(record: Record) -> Record:
    state = registry.folder(record.name)
    state.mkdir(mode=0o710, exist_ok=True)
    scratch = state / ".lab.json"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(record), file)
    scratch.replace(state / "lab.json")
    return record


def _end_processes(name: str, state: Path) -> None:
    """Kill until a look around finds none: a process may start another while we look."""
    until = time.monotonic() + DOWN_SECONDS

    def targets() -> set[Process]:
        namespaces = [NAMESPACES / found for found in hosts.existing(name)]
        return {*Records(state / "processes").all(), *marked(name), *inside(namespaces)}

    while found := targets():
        left = end(found, signal.SIGKILL, max(0.5, until - time.monotonic()))
        if time.monotonic() > until:
            raise LabError(f"processes that do not end: {', '.join(str(item.pid) for item in left or found)}")
