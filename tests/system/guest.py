"""What happens inside the VM: one account's life on Debian's own kernel. Writes what it saw, judges nothing.

    python tests/system/guest.py FACTS.json

Three namespaces: internet - node - and a client, each with a cable to the internet. The agent is the real program with
a real configuration; it is fed through the gateway's own gRPC client. Called by test_distribution_kernel.py (through
scripts/vm), which asserts on the facts. Everything here is 10-25 times slower than on a host: all limits are generous.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: E402

from gateway.agents import Agents  # noqa: E402
from gateway.errors import AgentUnreachable  # noqa: E402
from gateway.model import Account, Node, Patch, Secret, Server, Snapshot  # noqa: E402

RATE = 2  # Mbit/s, low enough for an emulated machine
WORK = Path("/run/wirelane-guest")  # not the overlay: sockets live here
SOCKET = WORK / "agent.sock"
NODE = Node(1, "local", f"unix:{SOCKET}")
LINK, CLIENT_LINK, UPLINK = "wg1", "wgc", "uplink"
WEB, WEB_PORT = IPv4Address("198.51.100.1"), 5201
START_SECONDS, SETTLE_MS, COMMAND_SECONDS = 200.0, 20_000, 60.0

NETWORK = f"""
ip netns add internet
ip netns add node
ip netns add client
ip link add to-node netns internet type veth peer name {UPLINK} netns node
ip link add to-client netns internet type veth peer name eth0 netns client
ip -n internet address add {WEB}/24 dev to-node
ip -n internet address add 203.0.113.1/24 dev to-client
ip -n node address add 198.51.100.2/24 dev {UPLINK}
ip -n client address add 203.0.113.2/24 dev eth0
ip -n internet link set to-node up
ip -n internet link set to-client up
ip -n node link set {UPLINK} up
ip -n client link set eth0 up
ip -n internet link set lo up
ip -n node link set lo up
ip -n node route add default via {WEB}
ip -n client route add default via 203.0.113.1
ip netns exec internet sysctl -q net.ipv4.ip_forward=1
"""

CONFIG = f"""
state = "{WORK}/agent.db"
listen = "unix:{SOCKET}"
uplink = "auto"
wireguard = "auto"
sample_seconds = 5
resync_seconds = 3600
"""


def run(*command: str | Path, data: str | None = None, seconds: float = COMMAND_SECONDS) -> str:
    done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=seconds, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def inside(namespace: str, *command: str | Path) -> list[str | Path]:
    return ["ip", "netns", "exec", namespace, *command]


def key_pair() -> tuple[str, str]:
    private = X25519PrivateKey.generate()
    pair = (private.private_bytes_raw(), private.public_key().public_bytes_raw())
    return base64.b64encode(pair[0]).decode(), base64.b64encode(pair[1]).decode()


class Agent:
    """The real program in the node's namespace."""

    def __init__(self) -> None:
        (WORK / "agent.toml").write_text(CONFIG)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = inside("node", ROOT / ".venv/bin/python", "-m", "agent", "--config", WORK / "agent.toml", "run")
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sys.stderr)

    def stop(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(COMMAND_SECONDS)
            self._process = None


async def answer(ask: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    """The first answer that is good; waits START_SECONDS for it."""
    until = time.monotonic() + START_SECONDS
    last: object = None
    while time.monotonic() < until:
        try:
            last = await ask()
            if good(last):
                return last
        except AgentUnreachable as error:
            last = error
        await asyncio.sleep(0.5)
    raise RuntimeError(f"no good answer within {START_SECONDS:.0f} s; the last one: {last}")


def connect_client(private: str, server_public: str) -> None:
    key = WORK / "client.key"
    key.write_text(private)
    peer = ["peer", server_public, "endpoint", "198.51.100.2:51820", "allowed-ips", "0.0.0.0/0"]
    run("ip", "-n", "client", "link", "add", CLIENT_LINK, "type", "wireguard")
    run(*inside("client", "wg", "set", CLIENT_LINK, "private-key", key, *peer))
    run("ip", "-n", "client", "address", "add", "10.77.0.2/32", "dev", CLIENT_LINK)
    run("ip", "-n", "client", "link", "set", CLIENT_LINK, "up")
    run("ip", "-n", "client", "route", "add", "198.51.100.2", "via", "203.0.113.1")
    run("ip", "-n", "client", "route", "replace", "default", "dev", CLIENT_LINK)


def iperf(*options: str) -> list[str | Path]:
    return inside("client", "iperf3", "--client", str(WEB), "--json", "--connect-timeout", "20000", *options)


def started(command: list[str | Path]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def measured(*options: str) -> float:
    """Mbit/s that arrived, in 8 seconds after 2 that are left out (TCP finds the rate).

    Again while the server is busy: it hears late that a client was killed whose session is gone.
    """
    until = time.monotonic() + COMMAND_SECONDS
    while True:
        told = json.loads(run(*iperf("--time", "8", "--omit", "2", *options)))
        if "sum_received" in told["end"]:
            return float(told["end"]["sum_received"]["bits_per_second"]) / 1e6
        if time.monotonic() > until:
            raise RuntimeError(f"iperf3: {told.get('error', 'no report')}")
        time.sleep(1)


def can_reach_the_web() -> bool:
    code = f"import socket; socket.create_connection(('{WEB}', {WEB_PORT}), 8).close()"
    command = inside("client", sys.executable, "-c", code)
    return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=COMMAND_SECONDS, check=False).returncode == 0


def classes(device: str) -> list[str]:
    """As text, compared only (this tc has no JSON for them); without fq_codel's flows, which look like classes."""
    shown = run(*inside("node", "tc", "class", "show", "dev", device)).splitlines()
    return sorted(line for line in shown if line.startswith("class htb "))


def qdiscs(device: str) -> list[Any]:
    """Without what HTB counts in its options."""
    found = json.loads(run("tc", "-j", "-n", "node", "qdisc", "show", "dev", device))
    for item in found:
        item["options"].pop("direct_packets_stat", None)
    return sorted(found, key=str)


def kernel_state() -> dict[str, Any]:
    """Everything of the node that an agent could touch, without counters."""
    saved = run(*inside("node", "iptables-legacy-save"))
    peers = [line.split("\t") for line in run(*inside("node", "wg", "show", LINK, "dump")).splitlines()]
    return {
        "rules": [line for line in saved.splitlines() if not line.startswith(("#", ":"))],
        "links": [(link["ifindex"], link["ifname"]) for link in json.loads(run("ip", "-j", "-n", "node", "link"))],
        "classes": [classes(device) for device in (LINK, UPLINK)],
        "qdiscs": [qdiscs(device) for device in (LINK, UPLINK)],
        "filters": [run(*inside("node", "tc", "filter", "show", "dev", device)) for device in (LINK, UPLINK)],
        "peers": [[peer[0], peer[3]] for peer in peers[1:]],  # public key, allowed IPs
        "handshakes": [int(peer[4]) for peer in peers[1:]],
    }


@contextmanager
def watching(events: list[str]) -> Iterator[None]:
    """Collects what the kernel tells of changed links, addresses, qdiscs, classes and filters meanwhile."""
    watchers = [inside("node", "ip", "monitor", "link", "address"), inside("node", "tc", "monitor")]
    processes = [started(command) for command in watchers]
    time.sleep(2)
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            lines = process.communicate(timeout=COMMAND_SECONDS)[0].splitlines()
            # This kernel announces a qdisc to everybody when one process reads it; kernel_state compares those.
            events.extend(line for line in lines if line and not line.startswith("qdisc htb 1: "))


class Story:
    """The steps in order; each adds its facts."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.agent = Agent()
        self.agents = Agents()
        server_private, self.server_public = key_pair()
        self.client_private, client_public = key_pair()
        address = IPv4Interface("10.77.0.1/24")
        self.server = Server(1, "local", "one", LINK, Secret(server_private), self.server_public, 51820, address)
        self.account = Account(
            1, "anna", "anna", Secret(), "one", "local", IPv4Address("10.77.0.2"), Secret(), client_public, 109,
            RATE, RATE, True,
        )  # fmt: skip

    async def tell(self) -> None:
        for step in (self.create, self.shape, self.count, self.restart, self.unshape, self.disable):
            begin = time.monotonic()
            await step()
            print(f"guest: {step.__name__} took {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)

    async def close(self) -> None:
        self.agent.stop(signal.SIGKILL)
        await self.agents.close()

    async def create(self) -> None:
        self.agent.start()
        status = await answer(lambda: self.agents.status(NODE), lambda status: status.needs_snapshot)
        snapshot = Snapshot(1, (self.server,), (self.account,), "UTC")
        applied = await self.agents.snapshot(NODE, snapshot, SETTLE_MS)
        self.epoch = applied.epoch
        self.facts["wireguard"] = status.wireguard
        self.facts["created"] = dataclasses.asdict(applied)
        self.facts["link_kind"] = json.loads(run("ip", "-j", "-d", "-n", "node", "link", "show", LINK))[0]["linkinfo"]
        self.facts["leaves"] = {
            device: [
                qdisc["kind"] for qdisc in json.loads(run("tc", "-j", "-n", "node", "qdisc", "show", "dev", device))
            ]
            for device in (LINK, UPLINK)
        }
        connect_client(self.client_private, self.server_public)
        self.facts["reached_when_created"] = can_reach_the_web()

    async def shape(self) -> None:
        self.facts["download"] = measured("--reverse")
        self.facts["upload"] = measured()

    async def count(self) -> None:
        _, _, totals = await self.agents.totals(NODE, "", 0, (self.account.id,), fresh=True)
        live = await self.agents.inspect(NODE, self.account.id)
        self.facts["totals"] = {
            "download": sum(total.download for total in totals),
            "upload": sum(total.upload for total in totals),
        }
        self.facts["counters"] = dataclasses.asdict(live.marks) if live.marks else None

    async def restart(self) -> None:
        before, marks = kernel_state(), (await self.agents.inspect(NODE, self.account.id)).marks
        transfer = started(iperf("--reverse", "--time", "900", "--interval", "4"))
        events: list[str] = []
        with watching(events):
            self.agent.stop(signal.SIGTERM)
            self.agent.start()
            status = await answer(
                lambda: self.agents.status(NODE), lambda status: status.applied_revision == status.revision == 1
            )
        await asyncio.sleep(5)  # the transfer goes on beside the new agent
        after, marks_after = kernel_state(), (await self.agents.inspect(NODE, self.account.id)).marks
        transfer.send_signal(signal.SIGINT)
        report = json.loads(transfer.communicate(timeout=COMMAND_SECONDS)[0])
        self.facts["restart"] = {
            "before": before,
            "after": after,
            "events": events,
            "epoch_kept": status.epoch == self.epoch,
            "drift": status.drift_count,
            "counters": [dataclasses.asdict(item) if item else None for item in (marks, marks_after)],
            "interval_bytes": [interval["sum"]["bytes"] for interval in report.get("intervals", [])],
            "transfer_end": report.get("error", ""),
        }

    async def change(self, base: int, **fields: Any) -> None:
        self.account = dataclasses.replace(self.account, **fields)
        patch = Patch(self.epoch, base, base + 1, put_accounts=(self.account,))
        applied = await self.agents.patch(NODE, patch, SETTLE_MS)
        self.facts[f"change {base}"] = dataclasses.asdict(applied)

    async def unshape(self) -> None:
        handshakes = kernel_state()["handshakes"]
        await self.change(1, download=0, upload=0)
        # what the machine can do: the best of three, because others may be using it
        rates = [measured("--reverse")]
        while len(rates) < 3 and rates[-1] < 5 * RATE:
            rates.append(measured("--reverse"))
        self.facts["unshaped"] = max(rates)
        self.facts["session_kept"] = kernel_state()["handshakes"][0] >= handshakes[0] > 0

    async def disable(self) -> None:
        await self.change(2, enabled=False)
        before = (await self.agents.inspect(NODE, self.account.id)).marks
        self.facts["reached_when_disabled"] = can_reach_the_web()
        after = (await self.agents.inspect(NODE, self.account.id)).marks
        self.facts["passed_when_disabled"] = before != after
        self.facts["peers_when_disabled"] = kernel_state()["peers"]


async def tell(facts: dict[str, Any], kind: Callable[[dict[str, Any]], Story]) -> None:
    story = kind(facts)
    try:
        await story.tell()
    finally:
        await story.close()


def main(target: Path, kind: Callable[[dict[str, Any]], Story] = Story) -> None:
    facts: dict[str, Any] = {"kernel": os.uname().release, "error": ""}
    WORK.mkdir(mode=0o700)
    for line in NETWORK.strip().splitlines():
        run(*line.split())
    web = started(inside("internet", "iperf3", "--server", "--logfile", "/dev/null"))
    try:
        asyncio.run(tell(facts, kind))
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        web.terminate()
        target.write_text(json.dumps(facts, default=str))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
