"""The real traffic of the history checker: numbered datagrams to an echo out on the internet, and back.

    python -m tests.fleet.packets echo ADDRESS        in the internet host
    python -m tests.fleet.packets customer ADDRESS    in a client: sends through `wg0` and nothing else

Both obey lines of JSON on standard input and answer `"report"` with one line of JSON; they end with their input.
Counted are bytes of inner IP packets: payload, UDP and IP header. Nothing else goes through the tunnel: no ping, no
DNS, no ICMP (both sockets live as long as the process). Run by traffic.py only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from typing import Any

PORT = 7007
HEAD = struct.Struct("!Qd")  # life, time.monotonic() when sent: one clock for all hosts of a lab
HEADERS = 28  # IP and UDP
PAUSE_SECONDS = 0.04
SIZES = (100, 1000)
DEVICE = b"wg0"


def _bound(address: str) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.bind((address, PORT))
    made.setblocking(False)
    return made


class Lines:
    """Standard input, a line at a time, without ever waiting."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False

    def read(self) -> list[Any]:
        block = os.read(0, 65536)
        self.ended = not block
        *whole, self._rest = (self._rest + block).split(b"\n")
        return [json.loads(line) for line in whole]


class Echo:
    """Sends back what comes, and remembers by life: bytes in and out, and when each was sent and came."""

    def __init__(self, address: str) -> None:
        self.socket = _bound(address)  # so that answers come from it, and not from the router on the way
        self.seen: dict[int, dict[str, Any]] = {}

    def readable(self) -> None:
        for _ in range(64):
            try:
                packet, sender = self.socket.recvfrom(2048)
            except OSError:
                return
            life, sent_at = HEAD.unpack_from(packet)
            seen = self.seen.setdefault(life, {"received": 0, "sent": 0, "times": [], "from": []})
            seen["received"] += len(packet) + HEADERS
            seen["times"].append((round(sent_at, 4), round(time.monotonic(), 4)))
            if sender[0] not in seen["from"]:
                seen["from"].append(sender[0])
            with contextlib.suppress(OSError):
                seen["sent"] += self.socket.sendto(packet, sender) + HEADERS

    def obey(self, command: object) -> None:
        if command == "report":
            print(json.dumps(self.seen), flush=True)

    def tick(self) -> None:
        pass


class Customer:
    """`{"life": N}`: from now on packets are this life's; `{"life": 0}`: silence."""

    def __init__(self, address: str) -> None:
        self.socket = _bound("0.0.0.0")
        self.target = (address, PORT)
        self.life = 0
        self.counted: dict[int, dict[str, int]] = {}

    def _of(self, life: int) -> dict[str, int]:
        return self.counted.setdefault(life, {"sent": 0, "received": 0})

    def readable(self) -> None:
        for _ in range(64):
            try:
                packet = self.socket.recv(2048)
            except OSError:
                return
            self._of(HEAD.unpack_from(packet)[0])["received"] += len(packet) + HEADERS

    def obey(self, command: Any) -> None:
        if command == "report":
            print(json.dumps(self.counted), flush=True)
            return
        self.life = command["life"]
        if self.life:  # the interface is a new one, with another number
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, DEVICE)

    def tick(self) -> None:
        if not self.life:
            return
        packet = HEAD.pack(self.life, time.monotonic()) + bytes(random.randint(*SIZES))
        with contextlib.suppress(OSError):
            self._of(self.life)["sent"] += self.socket.sendto(packet, self.target) + HEADERS


def main(role: str, address: str) -> None:
    worker: Echo | Customer = Echo(address) if role == "echo" else Customer(address)
    lines, selector = Lines(), selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(worker.socket, selectors.EVENT_READ)
    due = time.monotonic()
    while not lines.ended:
        for key, _ in selector.select(max(0.0, due - time.monotonic())):
            if key.fd == 0:
                for command in lines.read():
                    worker.obey(command)
            else:
                worker.readable()
        if time.monotonic() >= due:
            due = time.monotonic() + PAUSE_SECONDS
            worker.tick()


if __name__ == "__main__":
    main(*sys.argv[1:])
