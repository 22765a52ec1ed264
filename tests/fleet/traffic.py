"""Starts and asks the programs of packets.py. Called by sellers.py and run.py."""

from __future__ import annotations

import json
import subprocess
import threading
from types import TracebackType
from typing import Any

from tests.lab.connect import INTERFACE
from tests.lab.lab import Lab
from tests.lab.services import environment, python
from tests.lab.topology import INTERNET, INTERNET_ADDRESS, UPLINK

END_SECONDS = 5.0


class Program:
    """One of packets.py's programs in a lab host."""

    def __init__(self, lab: Lab, host: str, role: str) -> None:
        variables = [f"{name}={value}" for name, value in environment().items()]
        command = lab.command(
            host, "env", *variables, *python("-m", "tests.fleet.packets", role, str(INTERNET_ADDRESS))
        )
        self._running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lock = threading.Lock()

    def tell(self, command: object) -> None:
        assert self._running.stdin
        with self._lock:
            self._running.stdin.write(json.dumps(command) + "\n")
            self._running.stdin.flush()

    def report(self) -> dict[int, dict[str, Any]]:
        """By life."""
        self.tell("report")
        assert self._running.stdout
        return {int(life): seen for life, seen in json.loads(self._running.stdout.readline()).items()}

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._running.communicate(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            self._running.kill()
            self._running.communicate()


def echo(lab: Lab) -> Program:
    return Program(lab, INTERNET, "echo")


def customer(lab: Lab, client: str) -> Program:
    return Program(lab, client, "customer")


def lead(lab: Lab, client: str, node: str) -> None:
    """The client's name for its server leads to another node: what a change in DNS and the next handshake do."""
    host = lab.host(node).address.ip
    peer, endpoint = lab.exec(client, "wg", "show", INTERFACE, "endpoints").stdout.split()
    lab.exec(client, "ip", "route", "replace", str(host), "via", str(lab.host(client).router), "dev", UPLINK)
    lab.exec(client, "wg", "set", INTERFACE, "peer", peer, "endpoint", f"{host}:{endpoint.rpartition(':')[2]}")
