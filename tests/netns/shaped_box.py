"""A namespace with an uplink to shape and a host behind it: the stage of the shaping tests."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.kernel.tc import shaper
from agent.kernel.tc.printed import ClassCounters, class_counters
from agent.objects import Class, ClassKey, Diff, Qdisc, Scope
from tests.netns.conftest import enter

DEVICE, FAR = "up0", "up1"
SCOPE = Scope(frozenset({"absent0"}), DEVICE)
SO_MARK = 36  # asm-generic/socket.h
Run = Callable[..., Any]


class Box:
    """A namespace with an uplink, and a far host behind it; `run` runs in the box, `far` in the host."""

    def __init__(self, namespace: str, run: Run, far: Run) -> None:
        self.namespace, self.run, self.far = namespace, run, far
        self.qdiscs, self.classes = shaper.Qdiscs(), shaper.Classes()

    def command(self, *words: str) -> str:
        argv = ["ip", "netns", "exec", self.namespace, *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    def tc(self, line: str) -> str:
        return self.command("tc", *line.split())

    def root(self) -> dict[str, Any]:
        """Without what counts up by itself."""
        found = [item for item in json.loads(self.tc(f"-j qdisc show dev {DEVICE}")) if item.get("root")]
        assert len(found) == 1
        found[0].get("options", {}).pop("direct_packets_stat", None)
        return dict(found[0])

    def add_root(self) -> None:
        assert self.run(self.qdiscs.apply, Diff(add={DEVICE: Qdisc(DEVICE)})) == {}

    def put(self, rates: dict[int, int]) -> dict[ClassKey, Class]:
        """Classes by minor: rate, as new ones."""
        wanted = classes(rates)
        assert self.run(self.classes.apply, Diff(add=wanted)) == {}
        return wanted

    def read(self) -> dict[ClassKey, Class]:
        return dict(self.run(self.classes.read, SCOPE))

    def counters(self, number: int) -> ClassCounters:
        data = self.run(shaper.read_class, DEVICE, number)
        assert data is not None
        return class_counters(data)

    def send(self, mark: int, count: int, size: int = 1000, receiver: socket.socket | None = None) -> None:
        """Numbered datagrams to the far host, marked as the MARK rules would."""

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
                door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
                door.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
                for number in range(count):
                    address = receiver.getsockname() if receiver else ("192.0.2.2", 9)
                    door.sendto(number.to_bytes(4, "big").ljust(size, b"\0"), address)

        self.run(work)


def classes(rates: dict[int, int]) -> dict[ClassKey, Class]:
    return {(DEVICE, number): Class(DEVICE, number, rate) for number, rate in rates.items()}


def silence_ipv6() -> None:
    """Nothing but the packets of a test shall be counted."""
    switch = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
    if switch.exists():
        switch.write_text("1")


@contextmanager
def make_box(make_namespace: Callable[[], str]) -> Iterator[Box]:
    near, far = make_namespace(), make_namespace()
    for name in (near, far):
        with enter(name) as run:
            run(silence_ipv6)
    for argv in (
        f"-n {near} link add {DEVICE} type veth peer name {FAR} netns {far}",
        f"-n {near} addr add 192.0.2.1/24 dev {DEVICE}",
        f"-n {far} addr add 192.0.2.2/24 dev {FAR}",
        f"-n {near} link set {DEVICE} up",
        f"-n {far} link set {FAR} up",
    ):
        subprocess.run(["ip", *argv.split()], check=True, timeout=60)
    with enter(near) as run, enter(far) as far_run:
        yield Box(near, run, far_run)
