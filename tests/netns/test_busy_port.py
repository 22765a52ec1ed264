"""A server's port is opened only while its link has it: real sockets, WireGuard and rules, by both backends."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from agent.desired import Desired, Snapshot
from agent.kernel.linux import LinuxKernel
from agent.kernel.wireguard.links import choose_mode
from agent.report import Report
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.state import EPOCH, MemoryKeeper, server
from tests.netns.conftest import enter
from tests.netns.crossing import DEADLINE, iptables, nft
from tests.netns.tunnels import end_all, within

PORT, OTHER = 5353, 6000
_number = itertools.count()


@dataclass
class Box:
    namespace: str
    call: Callable[..., Any]
    backend: str
    writer: Writer
    link: str

    def full(self, port: int, **changes: Any) -> Report:
        one = server(1, interface=self.link, listen_port=port, **changes)
        report: Report = self.call(self.writer.full, Desired.of(EPOCH, Snapshot(1, (one,), ())))
        return report

    def opened(self) -> set[int]:
        if self.backend == "iptables":
            text = iptables(self.namespace, "-S WL_INPUT")
            return {port for port in (PORT, OTHER) if f"--dport {port} -j ACCEPT" in text}
        text = nft(self.namespace, "list chain ip wirelane_forwarding input")
        return {port for port in (PORT, OTHER) if f"udp dport {port} accept" in text}

    def closed_to_its_link(self) -> bool:
        if self.backend == "iptables":
            return f"-A WL_INPUT -i {self.link} -j DROP" in iptables(self.namespace, "-S WL_INPUT")
        return f'iifname "{self.link}" drop' in nft(self.namespace, "list chain ip wirelane_forwarding input")


@pytest.fixture(params=["iptables", "nftables"])
def box(make_namespace: Callable[[], str], request: pytest.FixtureRequest) -> Iterator[Box]:
    namespace = make_namespace()
    for command in (
        "link add up0 type veth peer name other",
        "address add 192.0.2.1/24 dev up0",
        "link set up0 up",
        "link set other up",
        "route add default via 192.0.2.2",
    ):
        subprocess.run(["ip", "-n", namespace, *command.split()], check=True, timeout=DEADLINE)
    with enter(namespace) as call:
        kernel = call(lambda: LinuxKernel(choose_mode("auto"), "auto", request.param))
        writer = Writer(kernel, Usage(MemoryKeeper(), lambda: 1_700_000_000.0))
        try:
            yield Box(namespace, call, request.param, writer, f"wg{os.getpid()}{next(_number)}")
        finally:
            with suppress(Exception):
                call(writer.full, Desired(EPOCH))
            end_all(namespace)


def held(port: int) -> socket.socket:
    """Another program's."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("0.0.0.0", port))
    return made


def test_a_port_that_is_busy_is_not_opened_until_the_link_has_it(box: Box) -> None:
    with box.call(held, PORT):
        for _ in range(2):
            report = box.full(PORT)
            assert [failure.subject for failure in report.failures.values()] == ["s1"]
            with suppress(subprocess.CalledProcessError):  # no chain at all
                assert box.opened() == set()
    assert box.full(PORT).failures == {}
    assert box.opened() == {PORT}


def test_a_server_that_cannot_move_to_a_busy_port_keeps_its_own_open(box: Box) -> None:
    assert box.full(OTHER).failures == {}
    assert box.opened() == {OTHER}
    with box.call(held, PORT):
        assert box.full(PORT).failures != {}
        assert box.opened() == {OTHER}
        assert box.closed_to_its_link()
    assert box.full(PORT).failures == {}
    assert box.opened() == {PORT}


def test_a_port_that_another_program_took_from_a_link_is_closed(box: Box) -> None:
    assert box.full(PORT).failures == {}
    within(box.namespace, "wg", "set", box.link, "listen-port", "0")
    with box.call(held, PORT):
        assert box.full(PORT).failures != {}
        assert box.opened() == set()
        assert box.closed_to_its_link()
        assert not box.full(PORT).changes, "and nothing is written again and again"
    assert box.full(PORT).failures == {}
    assert box.opened() == {PORT}
