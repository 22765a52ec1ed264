"""A server moves between two real nodes while its customer uses it; away from a node that is dead and comes back; and
while a gateway dies. Over mutual TLS, by two gateways on PostgreSQL.

What passes is counted three times: by the client (requests sent, and answered), by the host on the internet (requests
that arrived), and by the nodes. A request that both nodes let pass would arrive twice, one that nobody counted would be
missing in the statistics: they are equal to the byte.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.cluster import why_missing
from tests.fleet.traffic import lead
from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.readings import usage
from tests.lab.topology import INTERNET_ADDRESS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

NAME = f"mv{os.getpid()}"
CUT_OFF = 20
PORT = 7007
BYTES = 100  # of a datagram: 20 of IP, 8 of UDP, 72


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two nodes that ask before they serve when they were cut off, and one client."""
    if reason := why_missing():
        pytest.skip(reason)
    agent: dict[str, str | int | float | bool] = {"cut_off": "stop", "cut_off_seconds": CUT_OFF}
    gateway: dict[str, str | int | float | bool] = {"collect_seconds": 5}
    made = Lab.up(NAME, nodes=2, clients=1, gateways=2, postgresql=True, agent=agent, gateway=gateway)
    program = made.command("internet", sys.executable, "-c", ECHO, str(INTERNET_ADDRESS), str(PORT))
    echo = subprocess.Popen(program, stdin=subprocess.DEVNULL)
    try:
        yield made
    finally:
        echo.kill()
        echo.wait()
        Lab.down(NAME, keep_logs=Path(f"/tmp/{NAME}-logs") if request.session.testsfailed else None)


@pytest.fixture
def account(lab: Lab) -> Iterator[str]:
    """Of a server on n1, with the client connected."""
    server = lab.rest.post("wireguard", node="n1")["name"]
    name: str = lab.rest.post("account", wg_name=server)["name"]
    lab.connect("c1", name)
    yield name
    lab.disconnect("c1")
    lab.rest.delete(f"account/{name}")
    lab.rest.delete(f"wireguard/{server}")


# Sends numbered datagrams, ten a second, and prints how many it sent, and how many of them came back.
SENDER = """
import socket, sys, time
count, to = int(sys.argv[1]), (sys.argv[2], int(sys.argv[3]))
seen, end = [], 0.0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for number in range(count):
        s.sendto(b"%72d" % number, to)
        end = time.monotonic() + (0.1 if number < count - 1 else 1.0)
        while (left := end - time.monotonic()) > 0 and len(seen) < count:
            s.settimeout(left)
            try:
                seen.append(s.recv(100))
            except TimeoutError:
                pass
assert len(set(seen)) == len(seen), "one came back twice"
print(count, len(seen))
"""
ECHO = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.bind((sys.argv[1], int(sys.argv[2])))
    while True:
        s.sendto(*s.recvfrom(100))
"""


class Requests:
    """Of the client, through its tunnel."""

    def __init__(self, lab: Lab, count: int) -> None:
        program = lab.command("c1", sys.executable, "-c", SENDER, str(count), str(INTERNET_ADDRESS), str(PORT))
        self._sender = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def finished(self) -> tuple[int, int]:
        """How many were sent, and answered."""
        sent, answered = self._sender.communicate(timeout=180)[0].split()
        return int(sent), int(answered)


def arrived(lab: Lab) -> int:
    """Datagrams that came to the host on the internet."""
    lines = [line.split() for line in lab.exec("internet", "cat", "/proc/net/snmp").stdout.splitlines()]
    names, values = (line for line in lines if line[0] == "Udp:")
    return int(values[names.index("InDatagrams")])


def peers(lab: Lab, node: str) -> list[str]:
    """Those that its kernel lets in, on all its servers."""
    lines = lab.exec(node, "wg", "show", "all", "peers", check=False).stdout.splitlines()
    return [line for line in lines if not line.endswith("(none)") and len(line.split()) == 2]


def answered(lab: Lab) -> bool:
    return Requests(lab, 1).finished() == (1, 1)


def server_of(lab: Lab, account: str) -> str:
    return str(lab.rest.get(f"account/{account}")["wg_name"])


def checked(lab: Lab, account: str, before: tuple[int, int], requests: int, replies: int) -> None:
    """The statistics are what passed since: to the byte up, and down between what came and what was sent."""

    def told() -> tuple[int, int]:
        now = usage(lab.rest, account)
        return now[0] - before[0], now[1] - before[1]

    wait_until(lambda: told()[1] == requests * BYTES, f"{requests} requests in the statistics, not {told()}", 30.0)
    assert replies * BYTES <= told()[0] <= requests * BYTES


def test_it_moves_under_traffic_to_the_byte_and_the_client_is_back_after_its_next_handshake(
    lab: Lab, account: str
) -> None:
    time.sleep(1)  # until the datagrams of the connecting are counted
    before, requests, shaken = usage(lab.rest, account), arrived(lab), lab.handshake("c1")
    running = Requests(lab, 450)
    time.sleep(3)
    started = time.monotonic()
    lab.gateway_cli("server", "move", server_of(lab, account), "--node", "n2")
    print(f"moved in {time.monotonic() - started:.1f} s")
    assert not peers(lab, "n1") and len(peers(lab, "n2")) == 1
    lead(lab, "c1", "n2")
    sent, came_back = running.finished()
    assert lab.handshake("c1") > shaken
    requests = arrived(lab) - requests
    print(f"sent={sent} arrived={requests} answered={came_back}")
    assert 50 < came_back <= requests < sent, "some before, some after, none while nobody served it"
    assert answered(lab)
    checked(lab, account, before, requests + 1, came_back + 1)


@pytest.mark.parametrize("victim", ["g1", "g2"])
def test_a_gateway_that_dies_in_the_middle_of_a_move_costs_no_byte(lab: Lab, account: str, victim: str) -> None:
    time.sleep(1)
    before, requests, server = usage(lab.rest, account), arrived(lab), server_of(lab, account)
    running = Requests(lab, 300)
    time.sleep(2)
    with ThreadPoolExecutor(1) as beside:
        words = ("server", "move", server, "--node", "n2")
        moving = beside.submit(lab.gateway_cli, *words, gateway=victim)
        try:
            wait_until(lambda: not peers(lab, "n1"), "n1 has let go", 20.0)
            there = peers(lab, "n2")
            lab.kill_gateway(victim)
            print(f"killed while n2 has {there}; the command: {moving.exception() or 'done'}")
            wait_until(lambda: len(peers(lab, "n2")) == 1, "the other gateway goes on", 20.0)
            assert not peers(lab, "n1")
            lead(lab, "c1", "n2")
            sent, came_back = running.finished()
        finally:
            lab.start_gateway(victim)
    requests = arrived(lab) - requests
    print(f"sent={sent} arrived={requests} answered={came_back}")
    assert 0 < came_back <= requests < sent
    checked(lab, account, before, requests, came_back)


def test_a_dead_node_that_comes_back_gives_up_what_is_no_longer_its_own_before_it_serves(
    lab: Lab, account: str
) -> None:
    before, requests = usage(lab.rest, account), arrived(lab)
    answers = Requests(lab, 20).finished()[1]
    lab.kill_agent("n1")
    subprocess.run(lab.agent_command("n1", "clear"), check=True, timeout=60)  # as a power cut leaves its kernel
    died = time.monotonic()
    lab.gateway_cli("server", "move", server_of(lab, account), "--node", "n2", "--force")
    assert len(peers(lab, "n2")) == 1
    lead(lab, "c1", "n2")
    wait_until(lambda: answered(lab), "the client's next handshake", 60.0)
    time.sleep(max(0.0, died + CUT_OFF + 2 - time.monotonic()))
    for gateway in lab.gateways:  # n1 comes back, and nobody can tell it
        lab.stop_gateway(gateway.name)
    lab.start_agent("n1")
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert not peers(lab, "n1"), "it serves what is no longer its own"
        time.sleep(0.2)
    assert answered(lab), "n2 goes on without the gateway"
    for gateway in lab.gateways:
        lab.start_gateway(gateway.name)
    wait_until(lambda: lab.rest.get("system/status")["status"] == "OK", "n1 in step again", 20.0)
    assert not peers(lab, "n1") and len(peers(lab, "n2")) == 1
    checked(lab, account, before, arrived(lab) - requests, answers)
