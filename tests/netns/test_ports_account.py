"""A service of a customer, reached from the internet through a real tunnel: shaped, counted, and gone with the account.

The agent's own writer, file and doors with each backend, as in test_ipv6.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from agent.kernel.linux import LinuxKernel
from agent.model import Account, PortForward
from agent.usage import Usage
from agent.writer import Writer
from tests.netns.conftest import enter
from tests.netns.test_ipv6 import LINK, OUTSIDE, RATE, Stage, ip, stage
from tests.netns.tunnels import eventually, within

__all__ = ["stage"]
NODE = "198.51.100.1"
LED = (PortForward("udp", 25565, 7777), PortForward("tcp", 8080, 80))
BYTES = 1_500_000


def door(kind: int, address: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    made.settimeout(5)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


def plain(stage: Stage, number: int, **changes: Any) -> Account:
    return replace(stage.account(number, **changes), address_ipv6=None)


def answers(far: Callable[..., Any], game: socket.socket) -> bool:
    """By UDP: from the internet to the customer, and back from where it was sent to."""
    with far(door, socket.SOCK_DGRAM, OUTSIDE) as stranger:
        stranger.settimeout(1)
        game.settimeout(1)
        try:
            stranger.sendto(b"hello", (NODE, 25565))
            game.sendto(b"welcome", game.recvfrom(100)[1])
            return bool(stranger.recvfrom(100) == (b"welcome", (NODE, 25565)))
        except (TimeoutError, ConnectionRefusedError):
            return False


def rate(sender: socket.socket, receiver: socket.socket) -> float:
    """Of BYTES by TCP, Mbit/s."""
    for one in (sender, receiver):
        one.settimeout(20)
    began, came = time.monotonic(), 0
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(sender.sendall, bytes(BYTES))
        while came < BYTES:
            came += len(receiver.recv(65_536))
        sent.result(20)
    return BYTES * 8 / 1e6 / (time.monotonic() - began)


def test_a_service_of_a_customer(stage: Stage) -> None:
    with enter(stage.home) as here, enter(stage.clients[2]) as client, enter(stage.far) as far:
        desired = stage.desired(plain(stage, 2, download=RATE, ports=LED), plain(stage, 3), address_ipv6=None)
        stage.make(desired, here)
        stage.connect(2)
        assert eventually(lambda: stage.pings(2, OUTSIDE), 20)
        game = client(door, socket.SOCK_DGRAM, "10.77.0.2", 7777)
        web = client(door, socket.SOCK_STREAM, "10.77.0.2", 80)
        with game, web, far(door, socket.SOCK_STREAM, OUTSIDE) as stranger:
            assert answers(far, game)
            here(stage.writer.sample, desired)
            before = stage.counted(2)
            web.listen()
            stranger.connect((NODE, 8080))
            served, who = web.accept()
            assert who == stranger.getsockname()
            assert RATE * 0.5 < rate(stranger, served) < RATE * 1.1
            here(stage.writer.sample, desired)
            # What its class drops was sent to it, and counts; TCP sends it again.
            assert BYTES < stage.counted(2)[1] - before[1] < BYTES * 1.6
            assert 0 < stage.counted(2)[0] - before[0] < BYTES / 5

            # A restart finds everything equal; what was flushed comes back, and who is in stays in.
            kept = stage.store.load()
            assert kept == desired
            again = Writer(
                LinuxKernel("userspace", "up0", stage.backend, connections=1000), Usage(stage.store, time.time)
            )
            report = here(again.full, kept)
            assert not report.changes, report.changes
            within(stage.home, "nft", "flush", "ruleset")
            assert not answers(far, game)
            stage.make(desired, here)
            assert answers(far, game)
            stranger.sendall(b"on")
            assert served.recv(10) == b"on"

            # Disabled, and back; then after a boot: nothing is left but the file.
            stage.make(stage.desired(plain(stage, 2, enabled=False, ports=LED), address_ipv6=None), here)
            assert not answers(far, game)
            stage.make(desired, here)
            assert eventually(lambda: answers(far, game), 30)
            served.settimeout(1)
            served.close()
            within(stage.home, "nft", "flush", "ruleset")
            ip(f"-n {stage.home} link delete {LINK}")
            report = here(stage.writer.full, desired)
            assert not report.failures, report.failures
            assert eventually(lambda: answers(far, game), 30)

            # Deleted: nothing is left of it.
            stage.make(stage.desired(plain(stage, 3), address_ipv6=None), here)
            assert not answers(far, game)
            assert "wirelane_ports" not in within(stage.home, "nft", "list", "tables")
