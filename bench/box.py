"""A VPN box with its accounts, in a lab of its own: filled, emptied, restored.

Owns how a node's kernel state is wiped, and when a change counts as applied: when the agent says so. Everything lies in
namespaces of the lab; the clients' hosts are the grounds where the rivals work. Called by every question.
"""

from __future__ import annotations

import compileall
import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.rpc.client import read_status
from bench.asked import Asked
from tests.lab.errors import LabError
from tests.lab.hosts import NAMESPACES
from tests.lab.lab import Lab
from tests.lab.processes import end, inside
from tests.lab.services import ROOT, agent_target
from tests.lab.topology import UPLINK

NODE = "n1"
BATCH_GROUND, SHELL_GROUND = "c1", "c2"  # hosts of the lab where the rivals work
NETWORKS = [IPv4Network(f"10.{second}.0.0/16") for second in range(64, 68)]
RATES = ((10, 5), (20, 10), (50, 20), (100, 50))  # Mbit/s down and up, by turns
TABLES = ("mangle", "nat", "filter")
APPLIED_SECONDS = 600.0
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Filled:
    """How an import went, in seconds: the program from start to end, and from its end until all of it is applied."""

    count: int
    imported: float
    settled: float


class Box:
    """`accounts`: how many there are on the first node by `fill`."""

    def __init__(self, lab: Lab, asked: Asked, backend: str) -> None:
        self.lab = lab
        self.asked = asked
        self.backend = backend
        self.accounts = 0
        self.servers: list[str] = []

    def add_servers(self, node: str = NODE, networks: list[IPv4Network] = NETWORKS) -> list[str]:
        """Names of the new servers."""
        addresses = [f"{network[1]}/{network.prefixlen}" for network in networks]
        made = [self.lab.rest.post("wireguard", node=node, address=address)["name"] for address in addresses]
        self.servers += made
        return made

    def fill(self, accounts: int, servers: list[str] | None = None, node: str = NODE, prefix: str = "a") -> Filled:
        """Import what is missing to so many, evenly over the servers, and wait until all is applied."""
        servers = servers or self.servers
        have = int(self.status(node)["accounts"])
        path = self.lab.state / "accounts.jsonl"
        with path.open("w") as file:
            for number in range(have, accounts):
                down, up = RATES[number % len(RATES)]
                line = {"name": f"{prefix}{number:05}", "wg_name": servers[number % len(servers)]}
                file.write(json.dumps(line | {"b_download": str(down), "b_upload": str(up)}) + "\n")
        path.chmod(0o644)
        began = time.monotonic()
        self.lab.gateway_cli("account", "import", str(path))
        imported = time.monotonic() - began
        settled = self.await_applied(accounts, node)
        if node == NODE:
            self.accounts = accounts
        self.asked.say(f"{accounts:,} accounts on {node}: imported in {imported:.1f} s, applied {settled:.1f} s later")
        return Filled(accounts - have, imported, settled)

    def status(self, node: str = NODE) -> dict[str, Any]:
        return read_status(agent_target(self.lab.host(node), self.lab.state))

    def await_applied(self, accounts: int, node: str = NODE) -> float:
        """Seconds until the agent has that many and all of it is in the kernel."""
        began = time.monotonic()
        while time.monotonic() - began < APPLIED_SECONDS:
            with contextlib.suppress(AgentError):
                status = self.status(node)
                if status["failures"]:
                    raise LabError(f"the agent of {node} was refused something: {status['failures'][0]}")
                if status["accounts"] == accounts and status["revision"] == status["applied_revision"]:
                    return time.monotonic() - began
            time.sleep(LOOK_SECONDS)
        raise LabError(f"{accounts} accounts are not applied within {APPLIED_SECONDS:g} s: {self.status(node)}")

    # -- restore ------------------------------------------------------------------------------------------------

    def start_agent(self) -> float:
        """Seconds from the start of its process until it answers. The lab's own patience is too short for many."""
        began = time.monotonic()
        while True:
            try:
                self.lab.start_agent(NODE)
                return time.monotonic() - began
            except LabError:
                if self.lab.agent_pid(NODE) is None or time.monotonic() - began > APPLIED_SECONDS:
                    raise

    def empty(self) -> None:
        """No agent, and nothing of it in the kernel: as after a boot, before it starts."""
        self.lab.kill_agent(NODE)
        wipe(self.lab, NODE)

    def cold_restore(self) -> float:
        """Empty the kernel; seconds from the start of the agent until everything is there again."""
        self.empty()
        began = time.monotonic()
        self.start_agent()
        self.await_applied(self.accounts)
        taken = time.monotonic() - began
        self.check()
        return taken

    def check(self) -> None:
        """The kernel holds what was asked for, by the agent's own reading and by the tools'. Raises LabError."""
        links = interfaces(self.lab, NODE)
        peers = sum(len(self.lab.exec(NODE, "wg", "show", link, "peers").stdout.split()) for link in links)
        classes = sum(
            len(
                re.findall(
                    r"^class htb \S+ .*leaf", self.lab.exec(NODE, "tc", "class", "show", "dev", device).stdout, re.M
                )
            )
            for device in (*links, UPLINK)
        )
        if peers != self.accounts or classes < 2 * self.accounts:
            raise LabError(f"{peers} peers and {classes} classes are there for {self.accounts} accounts")
        plan = self.lab.exec(NODE, *self.agent_command("plan"), seconds=120.0).stdout
        if not plan.startswith("nothing"):
            raise LabError(f"the agent would still change something: {plan[:300]}")

    def agent_command(self, *arguments: str) -> list[str]:
        """To be run by `lab.exec` on the node."""
        entered = len(self.lab.command(NODE))
        words = self.lab.agent_command(NODE, *arguments)[entered:]
        return ["env", f"PYTHONPATH={ROOT}", *words]

    def pid(self) -> int:
        found = self.lab.agent_pid(NODE)
        if found is None:
            raise LabError("the agent has ended")
        return found


@contextlib.contextmanager
def opened(asked: Asked, backend: str, *, nodes: int = 1, clients: int = 2) -> Iterator[Box]:
    """A lab with one full-size node's servers and no account yet; gone at the end, whatever happens."""
    for folder in ("agent", "gateway", "protos"):  # as an installed package is: no start compiles anything
        compileall.compile_dir(ROOT / folder, quiet=2)
    settings = {"marks.backend": backend}
    Lab.down(asked.name)
    asked.say(f"a lab for {backend}: {nodes} node(s), {clients} other host(s)")
    try:
        box = Box(Lab.up(asked.name, nodes, clients, agent=settings), asked, backend)
        box.add_servers()
        yield box
    finally:
        if not asked.keep:
            Lab.down(asked.name)


# -- an empty kernel ----------------------------------------------------------------------------------------------


def interfaces(lab: Lab, host: str) -> list[str]:
    """The WireGuard servers' interfaces of a host."""
    shown = json.loads(lab.exec(host, "ip", "-j", "link", "show").stdout)
    return sorted(link["ifname"] for link in shown if re.fullmatch(r"wg\d+", link["ifname"]))


def wipe(lab: Lab, host: str) -> None:
    """As after a boot: no tunnel, rule, class or forwarding in the host's namespace. Nothing else is touched."""
    tunnels = [
        found
        for found in inside([NAMESPACES / lab.host(host).namespace])
        if Path(f"/proc/{found.pid}/comm").read_text().strip() == "wireguard-go"
    ]
    end(tunnels, signal.SIGKILL, 20.0)
    for link in interfaces(lab, host):
        lab.exec(host, "ip", "link", "delete", link, check=False)
    for table in TABLES:
        lab.exec(host, "iptables-legacy", "-w", "-t", table, "-F")
        lab.exec(host, "iptables-legacy", "-w", "-t", table, "-X")
    lab.exec(host, "nft", "delete", "table", "ip", "wirelane", check=False)
    lab.exec(host, "tc", "qdisc", "delete", "dev", UPLINK, "root", check=False)
    lab.exec(host, "sh", "-c", f"cd /proc/sys/net/ipv4; echo 0 > ip_forward; echo 0 > conf/{UPLINK}/forwarding")
