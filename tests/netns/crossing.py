"""A small crossing of networks for what marks and forwards: real packets through a real router, no WireGuard.

    alice 10.66.0.10 --+                       +-- up0 192.0.2.1 -- 192.0.2.2 internet
                       +-- wl0 10.66.0.1 [router]
    bob   10.66.0.20 --+                       +-- wl1 10.67.0.1 -- 10.67.0.10 carol

wl0 is a bridge, but alice and bob have /32 addresses, so that they talk to each other through the router as accounts
of one server do. The internet knows the way to both networks, so that what gets through without NAT is seen.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.netns.conftest import enter

DEADLINE = 20.0  # seconds
ALICE, BOB, CAROL, INTERNET = "10.66.0.10", "10.66.0.20", "10.67.0.10", "192.0.2.2"


def ip(namespace: str, *arguments: str) -> None:
    subprocess.run(["ip", "-n", namespace, *arguments], check=True, timeout=DEADLINE)


def iptables(namespace: str, arguments: str) -> str:
    """As an administrator would, in one line."""
    command = ["ip", "netns", "exec", namespace, "iptables-legacy", "-w", *arguments.split()]
    return subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True, text=True).stdout


def nft(namespace: str, arguments: str) -> str:
    """As an administrator would, in one line."""
    command = ["ip", "netns", "exec", namespace, "nft", *arguments.split()]
    return subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True, text=True).stdout


def watch(namespace: str, *matches: str) -> None:
    """Counts the packets that leave, behind whatever marks them; `watched` tells how many each of these met."""
    nft(namespace, "add table ip watch")
    nft(namespace, "add chain ip watch leaving { type filter hook postrouting priority 0; }")
    for match in matches:
        nft(namespace, f"add rule ip watch leaving {match} counter")


def watched(namespace: str) -> list[int]:
    found = json.loads(nft(namespace, "-j list chain ip watch leaving"))["nftables"]
    rules = [one["rule"]["expr"] for one in found if "rule" in one]
    return [piece["counter"]["packets"] for rule in rules for piece in rule if "counter" in piece]


def saved(namespace: str, table: str, *, counters: bool = True, foreign_only: bool = False) -> list[str]:
    """iptables-legacy-save, without the lines that tell the time.

    Without the counters of the policies too: they count what the router itself says now and then (IGMP).
    """
    command = ["ip", "netns", "exec", namespace, "iptables-legacy-save", "-t", table, *(["-c"] if counters else [])]
    text = subprocess.run(command, check=True, timeout=DEADLINE, capture_output=True, text=True).stdout
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    lines = [line.partition(" [")[0] if line.startswith(":") else line for line in lines]
    return [line for line in lines if "WL_" not in line] if foreign_only else lines


def sysctl(namespace: str, name: str, value: str) -> None:
    def write() -> None:
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write(value)

    with enter(namespace) as run:
        run(write)


def open_socket(namespace: str, kind: int, address: str, port: int = 0) -> socket.socket:
    """A bound socket that lives in a namespace, to be used from anywhere."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.settimeout(2)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        return made

    with enter(namespace) as run:
        result: socket.socket = run(make)
        return result


@dataclass
class Crossing:
    router: str
    hosts: dict[str, str]  # address -> namespace
    sockets: list[socket.socket] = field(default_factory=list)

    def udp(self, address: str, port: int = 0) -> socket.socket:
        namespace = self.hosts.get(address, self.router)
        made = open_socket(namespace, socket.SOCK_DGRAM, address, port)
        self.sockets.append(made)
        return made

    def tcp(self, address: str, port: int = 0) -> socket.socket:
        made = open_socket(self.hosts[address], socket.SOCK_STREAM, address, port)
        self.sockets.append(made)
        return made

    def send(self, source: str, destination: str, count: int, size: int) -> None:
        """`count` packets of `size` bytes, IP header included; returns when all have arrived."""
        sender, receiver = self.udp(source), self.udp(destination)
        for number in range(count):
            sender.sendto(number.to_bytes(size - 28, "big"), receiver.getsockname())
            assert int.from_bytes(receiver.recv(size), "big") == number

    def passes(self, source: str, destination: str, port: int = 0) -> bool:
        """Whether a packet out of the blue gets through."""
        sender, receiver = self.udp(source), self.udp(destination, port)
        receiver.settimeout(0.3)
        sender.sendto(b"hello", receiver.getsockname())
        try:
            return receiver.recv(100) == b"hello"
        except TimeoutError:
            return False

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def build(make_namespace: Callable[[], str], links: str = "wl") -> Crossing:
    """`links`: what the two links are called, before their number."""
    link0, link1 = f"{links}0", f"{links}1"
    router = make_namespace()
    hosts = {address: make_namespace() for address in (ALICE, BOB, CAROL, INTERNET)}
    ip(router, "link", "add", link0, "type", "bridge")
    for address, port in ((ALICE, "alice"), (BOB, "bob"), (CAROL, link1), (INTERNET, "up0")):
        ip(router, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", hosts[address])
        if port in ("alice", "bob"):
            ip(router, "link", "set", port, "master", link0)
        ip(router, "link", "set", port, "up")
        ip(hosts[address], "link", "set", "eth0", "up")
    ip(router, "link", "set", link0, "up")
    for device, address in ((link0, "10.66.0.1/24"), (link1, "10.67.0.1/24"), ("up0", "192.0.2.1/24")):
        ip(router, "address", "add", address, "dev", device)
    for address, gateway, length in ((ALICE, "10.66.0.1", 32), (BOB, "10.66.0.1", 32), (CAROL, "10.67.0.1", 24)):
        ip(hosts[address], "address", "add", f"{address}/{length}", "dev", "eth0")
        ip(hosts[address], "route", "add", "default", "via", gateway, "dev", "eth0", "onlink")
    ip(hosts[INTERNET], "address", "add", f"{INTERNET}/24", "dev", "eth0")
    ip(hosts[INTERNET], "route", "add", "10.64.0.0/10", "via", "192.0.2.1")
    sysctl(router, "ipv4/conf/all/send_redirects", "0")
    sysctl(router, f"ipv4/conf/{link0}/send_redirects", "0")
    return Crossing(router, hosts)
