"""What the tests of links and peers need: a server's namespace, clients beside it, and WireGuard by other hands.

`wg` (wireguard-tools) and `ip` look at the same things as our doors, without using them.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.kernel.wireguard.door import Mode, WireGuard
from agent.kernel.wireguard.genetlink import KernelWireGuard
from agent.kernel.wireguard.uapi import UserspaceWireGuard
from agent.model import Secret
from agent.objects import Link, Peer, PeerKey, Scope
from tests.netns.conftest import enter

DEADLINE = 60.0  # seconds; a machine under emulation is 20 times slower
SERVER_OUTER = "192.0.2.1"
NETWORK = "10.77.0.1/16"
ECHO_PORT = 7
STDIN = "/proc/self/fd/0"  # a machine without udev has no /dev/stdin
_numbers = itertools.count()

T = TypeVar("T")
Run = Callable[..., Any]


def run(*command: str, stdin: str = "") -> str:
    """Raises CalledProcessError with what the command said."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def within(namespace: str, *command: str, stdin: str = "") -> str:
    return run("ip", "netns", "exec", namespace, *command, stdin=stdin)


def eventually(what: Callable[[], T], seconds: float = DEADLINE) -> T:
    """The first true answer. Raises AssertionError after the deadline."""
    give_up = time.monotonic() + seconds
    while True:
        answer = what()
        if answer:
            return answer
        assert time.monotonic() < give_up, f"nothing true within {seconds} s; last answer {answer!r}"
        time.sleep(0.02)


def unique_name() -> str:
    """Sockets of userspace WireGuard share one folder: no other test run may use the same name. At most 15 letters."""
    return f"wlt{os.getpid()}x{next(_numbers)}"


def new_keys() -> tuple[str, str]:
    private = run("wg", "genkey").strip()
    return private, run("wg", "pubkey", stdin=private).strip()


def some_key(number: int) -> str:
    """A public key whose owner nobody is."""
    return base64.b64encode(number.to_bytes(4, "big") * 8).decode()


def missing(mode: Mode) -> str:
    """ "" or why this implementation cannot be tried here."""
    door = KernelWireGuard() if mode == "kernel" else UserspaceWireGuard()
    return door.available()


def door_of(mode: Mode) -> WireGuard:
    return KernelWireGuard() if mode == "kernel" else UserspaceWireGuard()


def pids(namespace: str) -> list[int]:
    return [int(pid) for pid in run("ip", "netns", "pids", namespace).split()]


def wireguard_pids(namespace: str) -> list[int]:
    found = []
    for pid in pids(namespace):
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "wireguard-go":
                found.append(pid)
    return found


def end_all(namespace: str) -> None:
    """Ends what still lives in the namespace: it would keep the namespace alive."""
    for pid in wireguard_pids(namespace):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    eventually(lambda: not wireguard_pids(namespace))


def shown(namespace: str, interface: str) -> dict[str, Any]:
    """`ip -j -d address show` of one interface, without what the kernel does about IPv6 meanwhile."""
    link: dict[str, Any]
    (link,) = json.loads(within(namespace, "ip", "-j", "-d", "address", "show", "dev", interface))
    return link | {"addr_info": [one for one in link["addr_info"] if one["family"] == "inet"]}


def handshake(namespace: str, interface: str, public_key: str) -> int:
    for line in within(namespace, "wg", "show", interface, "latest-handshakes").splitlines():
        key, seconds = line.split()
        if key == public_key:
            return int(seconds)
    return 0


def echo(heard: socket.socket) -> None:
    """Sends every datagram back until the socket is shut down."""
    with suppress(OSError):
        while True:
            data, sender = heard.recvfrom(2048)
            if not sender:  # it was shut down
                return
            with suppress(OSError):  # no way back at the moment
                heard.sendto(data, sender)


def bound(address: str, port: int) -> socket.socket:
    """A UDP socket of the namespace of the calling thread; it can be used from everywhere."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, port))
    return made


@dataclass(frozen=True)
class Server:
    """A namespace in which a door of ours makes links. `run(function, *args)` calls it in there."""

    namespace: str
    run: Run
    mode: Mode

    def link(self, **different: Any) -> Link:
        values: dict[str, Any] = {
            "interface": unique_name(),
            "private_key": Secret(new_keys()[0]),
            "listen_port": 51820,
            "address": IPv4Interface(NETWORK),
            "mtu": 1420,
        }
        return Link(**(values | different))


@dataclass(frozen=True)
class Client:
    """A host beside the server, with WireGuard set up by `wg setconf`."""

    namespace: str
    mode: Mode
    address: IPv4Address
    interface: str = field(default_factory=unique_name)
    keys: tuple[str, str] = field(default_factory=new_keys)
    preshared_key: str = ""

    @property
    def public_key(self) -> str:
        return self.keys[1]

    def peer(self, link: Link) -> tuple[PeerKey, Peer]:
        secret = Secret(self.preshared_key)
        return (link.interface, self.public_key), Peer(
            link.interface, self.public_key, self.address, preshared_key=secret
        )

    def connect(self, link: Link) -> None:
        if self.mode == "kernel":
            within(self.namespace, "ip", "link", "add", self.interface, "type", "wireguard")
        else:
            within(self.namespace, "wireguard-go", self.interface)
        server_key = run("wg", "pubkey", stdin=link.private_key.reveal()).strip()
        text = (
            f"[Interface]\nPrivateKey={self.keys[0]}\n[Peer]\nPublicKey={server_key}\n"
            f"Endpoint={SERVER_OUTER}:{link.listen_port}\nAllowedIPs=0.0.0.0/0\n"
        )
        if self.preshared_key:
            text += f"PresharedKey={self.preshared_key}\n"
        within(self.namespace, "wg", "setconf", self.interface, STDIN, stdin=text)
        within(self.namespace, "ip", "address", "add", f"{self.address}/16", "dev", self.interface)
        within(self.namespace, "ip", "link", "set", self.interface, "up")

    def reaches(self, address: str = "10.77.0.1", source: str = "") -> bool:
        return self.replies(address, 1, source=source) == 1

    def replies(self, address: str, count: int, pause: float = 0.0, source: str = "") -> int:
        """How many of so many datagrams come back, each within a second; `pause`: seconds between them."""
        with enter(self.namespace) as run_here:
            ours = run_here(bound, source or str(self.address), 0)
        with ours:
            ours.settimeout(1)
            return sum(_comes_back(ours, address, number, pause) for number in range(count))


def _comes_back(ours: socket.socket, address: str, number: int, pause: float) -> bool:
    sent = number.to_bytes(4, "big")
    time.sleep(pause)
    try:
        ours.sendto(sent, (address, ECHO_PORT))
        while ours.recv(2048) != sent:
            pass  # late: it counts as lost already
    except OSError:  # time is over, or no route
        return False
    return True


def scope(*links: Link) -> Scope:
    return Scope(frozenset(link.interface for link in links), "lo")


@contextmanager
def serving(make_namespace: Callable[[], str], mode: Mode) -> Iterator[tuple[Server, Callable[[], Client]]]:
    """A server's namespace and a maker of clients, one cable each; everything ended afterwards.

    The first client's outer address is 192.0.2.2, its inner one 10.77.0.2; the second's .3, and so on.
    """
    reason = missing(mode)
    if reason:
        pytest.skip(reason)
    home = make_namespace()
    namespaces = [home]
    within(home, "ip", "link", "add", "outer", "type", "bridge")
    within(home, "ip", "address", "add", f"{SERVER_OUTER}/24", "dev", "outer")
    within(home, "ip", "link", "set", "outer", "up")

    def new_client() -> Client:
        namespace = make_namespace()
        namespaces.append(namespace)
        last = len(namespaces)
        cable = f"cable{last}"
        within(home, "ip", "link", "add", cable, "type", "veth", "peer", "name", "outer", "netns", namespace)
        within(home, "ip", "link", "set", cable, "master", "outer", "up")
        within(namespace, "ip", "address", "add", f"192.0.2.{last}/24", "dev", "outer")
        within(namespace, "ip", "link", "set", "outer", "up")
        return Client(namespace, mode, IPv4Address("10.77.0.0") + last)

    with enter(home) as run_in_home:
        heard = run_in_home(bound, "", ECHO_PORT)
        threading.Thread(target=echo, args=(heard,), daemon=True).start()
        try:
            yield Server(home, run_in_home, mode), new_client
        finally:
            with suppress(OSError):
                heard.shutdown(socket.SHUT_RDWR)  # wakes the echo, though it answers ENOTCONN
            heard.close()
            for namespace in namespaces:
                end_all(namespace)
