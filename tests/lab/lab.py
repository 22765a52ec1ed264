"""The lab as a whole: up, status, stop and start of its parts, connect, down.

Called by cli.py, demo.py, the namespace tests and the benchmarks. What is there is read from the system (namespaces,
processes with their start times); the record in the lab's folder only says how it was meant to be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.lab import database, gateways, hosts, registry, services, trouble
from tests.lab.connect import Client, ClientConfig
from tests.lab.errors import LabError, NoSuchLab
from tests.lab.gateways import Gateway
from tests.lab.hosts import NAMESPACES
from tests.lab.processes import Records, end, marked, wait_until
from tests.lab.record import Record, end_processes, read_record, write_record
from tests.lab.rest import Rest
from tests.lab.services import BARE_ROOT, NOBODY, Identity, Settings
from tests.lab.topology import INTERNET_ADDRESS, UPLINK, Host, Topology, topology

KEY_NAME = "lab"
STOP_SECONDS = 20.0
NO_SETTINGS: Settings = {}
Say = Callable[[str], None]


def _say_nothing(text: str) -> None:
    del text


def _ipv6_of(host: Host) -> dict[str, str]:
    return {"ipv6": str(host.ipv6.ip)} if host.ipv6 else {}


class Lab:
    """A lab that is up. `Lab.up` makes one, `Lab.open` finds one."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._records = Records(registry.folder(record.name) / "processes")
        self.state = registry.folder(record.name)
        size = record.name, record.nodes, record.clients, record.gateways
        self.plan: Topology = topology(*size, record.postgresql, record.ipv6)
        self.gateways = self._gateways()
        self.url = self.gateways[0].url
        self.rest = Rest(self.url, record.access_hash)
        self._clocks = False

    def _gateways(self) -> tuple[Gateway, ...]:
        hosts: tuple[Host | None, ...] = self.plan.gateways or (None,)
        first = self._record.port
        return tuple(
            Gateway(self._record.name, f"g{index + 1}", first + index, host, self.state)
            for index, host in enumerate(hosts)
        )

    # -- up and down ----------------------------------------------------------------------------------------------

    @classmethod
    def up(
        cls,
        name: str = "wl",
        nodes: int = 1,
        clients: int = 2,
        *,
        gateways: int = 1,
        postgresql: bool = False,
        ipv6: bool = False,
        agent: Settings = NO_SETTINGS,
        gateway: Settings = NO_SETTINGS,
        clocks: bool = False,
        say: Say = _say_nothing,
    ) -> Lab:
        """Build a lab and return when all of it answers. `agent`, `gateway`: keys of their TOML that shall differ.
        `ipv6`: all hosts have both families. `clocks`: the agents' wall clocks can be set.

        More than one node or gateway, or PostgreSQL, make it a fleet: every gateway, and the database, are hosts of
        their own; else the one gateway and the agent share this machine's unix socket.

        Raises LabError if it cannot; nothing stays behind then.
        """
        plan = topology(name, nodes, clients, gateways, postgresql, ipv6)
        if os.geteuid() != 0:
            raise LabError("a lab is made of network namespaces: run it as root")
        record = cls._reserve(Record(name, nodes, clients, 0, gateways, postgresql, ipv6), say)
        try:
            with registry.locked(registry.folder(name)):
                say(f"hosts: {', '.join(host.namespace for host in plan.hosts)}")
                hosts.create(plan)
                lab = cls(record)
                lab._clocks = clocks
                lab._build(agent, gateway, say)
                return lab
        except BaseException:  # Ctrl-C too
            say("failed: taking down what was built")
            cls.down(name, keep_logs=Path(f"/tmp/wirelane-lab-{name}-failed"))
            raise

    @staticmethod
    def _reserve(wish: Record, say: Say) -> Record:
        """The record with its ports, written."""
        name, ports = wish.name, wish.gateways + 1
        with registry.locked_base():
            found = read_record(name)
            if found and found.complete:
                raise LabError(f"there is a lab {name!r} already; `scripts/lab down --name {name}` removes it")
            if found is None and not registry.folder(name).exists() and not hosts.existing(name):
                return write_record(replace(wish, port=registry.free_ports(ports)))
        say(f"removing what an unfinished lab {name!r} left behind")
        Lab.down(name)
        with registry.locked_base():
            return write_record(replace(wish, port=registry.free_ports(ports)))

    def _build(self, agent: Settings, gateway: Settings, say: Say) -> None:
        identity = services.gateway_identity()
        os.chown(self.state, 0, identity.gid)
        trouble.prepare(self.plan.internet)
        started = services.start_internet(self.plan.internet, self.state)
        for part, running in started.items():
            self._records.save(part, running)
        for client in self.plan.clients:
            hosts.hold(client, self.state)
        say(f"agents: {', '.join(node.name for node in self.plan.nodes)}")
        for node in self.plan.nodes:
            services.prepare_agent(node, self.state, identity, agent, in_fleet=self._is_fleet)
            if self._clocks:
                services.prepare_clock(node, self.state)
            if not self._is_fleet:
                self._launch_agent(node)
        self._build_database(say)
        self._build_gateways(identity, gateway, say)
        wait_until(lambda: services.internet_answers(self.plan.internet, self.state), "the internet host", 10.0)
        for one in self.gateways:
            self._await_nodes(one)
        self._record = write_record(replace(self._record, complete=True))

    def _build_database(self, say: Say) -> None:
        if host := self.plan.database:
            say("database: PostgreSQL")
            database.prepare(host, self.state)
            self.start_database()

    def _build_gateways(self, identity: Identity, settings: Settings, say: Say) -> None:
        for one in self.gateways:
            say(f"gateway {one.name}: {one.url}, as user {identity.user}, without capabilities")
        url = database.url(self.plan.database, self.state) if self.plan.database else ""
        gateways.prepare_folder(self.state, identity)
        for one in self.gateways:
            gateways.prepare(one, identity, url, settings)
        first = self.gateways[0]
        gateways.call(first, identity, "migrate")
        self._start_relay()
        self._records.save(first.part, gateways.start(first, identity))
        with ThreadPoolExecutor(4) as beside:  # each of these is a program of a second; the gateway starts meanwhile
            access_hash = beside.submit(gateways.add_access_key, first, identity, KEY_NAME, "127.0.0.1/32")
            tokens = [self._add_node(node, identity) for node in self.plan.nodes]  # in order: they are listed so
            if self._is_fleet:
                self.start_gateway(first.name)
                say("enrolment: " + ", ".join(services.fleet_address(node) for node in self.plan.nodes))
                list(beside.map(self._join, self.plan.nodes, tokens))
        self._record = replace(self._record, user=identity.user, access_hash=access_hash.result())
        self.rest = Rest(self.url, self._record.access_hash)
        for node in self.plan.nodes:
            self._await_agent(node)
        for one in self.gateways:
            self.start_gateway(one.name)

    def _start_relay(self) -> None:
        """So that tools on this machine reach the gateways and the database of a fleet."""
        triples = [triple for one in self.gateways for triple in one.relayed]
        if host := self.plan.database:
            triples.append(f"{self._database_port}={NAMESPACES / host.namespace}={database.PORT}")
        if triples and self._records.load("relay") is None:
            self._records.save("relay", gateways.start_relay(self._record.name, self.state, triples))

    @property
    def _database_port(self) -> int:
        return self._record.port + self._record.gateways

    @property
    def _is_fleet(self) -> bool:
        return bool(self.plan.gateways)

    def _add_node(self, node: Host, identity: Identity) -> str:
        """The join token, in a fleet."""
        first, endpoint = self.gateways[0], ("--endpoint", str(node.address.ip))
        where: tuple[str, ...] = (services.agent_target(node, self.state),)
        if self._is_fleet:
            where = ("--address", services.fleet_address(node), "--gateway", first.url_for_hosts)
        return gateways.call(first, identity, "node", "add", node.name, *where, *endpoint)

    def _join(self, node: Host, token: str) -> None:
        services.enrol(node, self.state, token)
        self._launch_agent(node)

    def _launch_agent(self, node: Host) -> None:
        self._records.save(f"agent-{node.name}", services.start_agent(node, self.state))

    def _await_nodes(self, gateway: Gateway) -> None:
        """The gateway has met every agent; a first call need not wait for that."""
        rest = self.rest_of(gateway.name)

        def settled() -> bool:
            status = rest.get("system/status")
            return len(status["nodes"]) == len(self.plan.nodes) and status["status"] == "OK"

        wait_until(settled, f"gateway {gateway.name} and agents in step", services.START_SECONDS)

    @classmethod
    def open(cls, name: str = "wl") -> Lab:
        """The lab of that name. Raises NoSuchLab."""
        record = read_record(name)
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
            end_processes(name, state)
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
            "internet": {
                "namespace": self.plan.internet.namespace,
                "ip": str(INTERNET_ADDRESS),
                **_ipv6_of(self.plan.internet),
            },
            "nodes": [
                {
                    "name": node.name,
                    "namespace": node.namespace,
                    "uplink": UPLINK,
                    "public_ip": str(node.address.ip),
                    **_ipv6_of(node),
                    "agent_pid": self.agent_pid(node.name),
                    **({"address": services.fleet_address(node)} if self._is_fleet else {}),
                }
                for node in self.plan.nodes
            ],
            "clients": [{"name": client.name, "namespace": client.namespace} for client in self.plan.clients],
            "gateway_pid": self.gateway_pid(),
            "gateways": [
                {"name": one.name, "url": one.url, "pid": self.gateway_pid(one.name), "config": str(one.config)}
                for one in self.gateways
            ],
            "database": {"url": self.database_url},
            "state": str(self.state),
        }

    def agent_pid(self, node: str) -> int | None:
        running = self._records.load(f"agent-{self._node(node).name}")
        return running.pid if running else None

    def gateway_pid(self, gateway: str = gateways.FIRST) -> int | None:
        running = self._records.load(self._gateway(gateway).part)
        return running.pid if running else None

    @property
    def database_url(self) -> str:
        """As a tool on this machine may use it, with its password."""
        if host := self.plan.database:
            return database.url(host, self.state, self._database_port)
        return gateways.sqlite_url(self.state)

    def rest_of(self, gateway: str) -> Rest:
        """The API of one gateway; `rest` is the first one's."""
        return Rest(self._gateway(gateway).url, self._record.access_hash)

    def host(self, name: str) -> Host:
        if found := self.plan.host(name):
            return found
        raise LabError(f"lab {self._record.name!r} has no host {name!r}: {', '.join(h.name for h in self.plan.hosts)}")

    def _node(self, name: str) -> Host:
        found = self.plan.host(name)
        if found in self.plan.nodes:
            return found
        raise LabError(f"lab {self._record.name!r} has no node {name!r}: {', '.join(h.name for h in self.plan.nodes)}")

    def _gateway(self, name: str) -> Gateway:
        for one in self.gateways:
            if one.name == name:
                return one
        known = ", ".join(one.name for one in self.gateways)
        raise LabError(f"lab {self._record.name!r} has no gateway {name!r}: {known}")

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

    def gateway_cli(self, *arguments: str, gateway: str = gateways.FIRST, seconds: float = 60.0) -> str:
        """Run a subcommand of `wirelane-gateway` where a gateway runs, as its user; returns what it printed."""
        return gateways.call(self._gateway(gateway), self._identity, *arguments, seconds=seconds)

    @property
    def _identity(self) -> Identity:
        return NOBODY if self._record.user == NOBODY.user else BARE_ROOT

    # -- stop, kill, start ----------------------------------------------------------------------------------------

    def start_agent(self, node: str) -> None:
        """Returns when it answers. Running already is no error."""
        host = self._node(node)
        if self.agent_pid(node) is None:
            self._launch_agent(host)
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

    def start_gateway(self, gateway: str = gateways.FIRST) -> None:
        """Returns when it answers. Running already is no error."""
        self._start_relay()
        one = self._gateway(gateway)
        if self.gateway_pid(gateway) is None:
            self._records.save(one.part, gateways.start(one, self._identity))
        if running := self._records.load(one.part):
            gateways.wait_for(one, running)
        else:
            raise LabError(f"gateway {gateway} has ended; see {one.log}")

    def stop_gateway(self, gateway: str = gateways.FIRST, how: signal.Signals = signal.SIGTERM) -> None:
        self._stop(self._gateway(gateway).part, how)

    def kill_gateway(self, gateway: str = gateways.FIRST) -> None:
        self.stop_gateway(gateway, signal.SIGKILL)

    def start_database(self) -> None:
        """Returns when it answers. Running already is no error."""
        self._start_relay()
        if self._records.load("database") is None:
            self._records.save("database", database.start(self._database, self.state))
        if running := self._records.load("database"):
            database.await_ready(self.state, running)

    def stop_database(self) -> None:
        self._stop("database", signal.SIGINT)  # a fast shutdown; SIGTERM would wait for the gateways to go

    def kill_database(self) -> None:
        """As by a power cut: all of its processes at once."""
        database.kill(self._database)

    @property
    def _database(self) -> Host:
        if self.plan.database is None:
            raise LabError(
                "the database is an SQLite file here: `up --database postgresql` makes one that can be killed"
            )
        return self.plan.database

    def _stop(self, part: str, how: signal.Signals) -> None:
        running = self._records.load(part)
        if running and end([running], how, STOP_SECONDS):
            raise LabError(f"{part} (pid {running.pid}) does not end within {STOP_SECONDS:g} s of {how.name}")

    # -- trouble --------------------------------------------------------------------------------------------------

    def cut(self, host: str) -> None:
        """Drop every packet between a node and the gateways (its customers stay), or a gateway and everybody."""
        trouble.cut(self.plan.internet, self._in_fleet(host))

    def slow(self, host: str, rate: str) -> None:
        """Hold a host's uplink to a rate of tc(8), such as "256kbit", both ways."""
        trouble.slow(self.plan.internet, self._in_fleet(host), rate)

    def heal(self, *names: str) -> None:
        """Undo `cut` and `slow` of these hosts; none named: of all."""
        for host in [self._in_fleet(name) for name in names] or [*self.plan.nodes, *self.plan.gateways]:
            trouble.heal(self.plan.internet, host)

    def set_clock(self, node: str, seconds: int) -> None:
        """Put the wall clock of a node's agent off by so much, at once. Only in a lab made with `clocks`."""
        services.set_clock(self._node(node), self.state, seconds)

    def _in_fleet(self, name: str) -> Host:
        if not self._is_fleet:
            raise LabError(
                "node and gateway are one box here; a fleet: --nodes 2, --gateways 2 or --database postgresql"
            )
        if (host := self.host(name)) in (*self.plan.nodes, *self.plan.gateways):
            return host
        raise LabError(f"{name}: only nodes and gateways can be cut off or slow")

    # -- clients --------------------------------------------------------------------------------------------------

    def connect(self, client: str, account: str, *, wait: bool = True, gateway: str = gateways.FIRST) -> ClientConfig:
        """Connect a client as an account. Raises NoHandshake, with the tunnel up, if the server does not answer.

        Without `wait` nothing is sent through the tunnel, and nobody sees whether it answers.
        """
        host = self._client(client)
        return host.connect(str(self.rest_of(gateway).get(f"account/{account}/config_text")), wait=wait)

    def disconnect(self, client: str) -> bool:
        return self._client(client).disconnect()

    def handshake(self, client: str) -> int:
        """Unix time of the client's latest handshake; 0 = none."""
        return self._client(client).handshake()
