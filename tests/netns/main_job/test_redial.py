"""The uplink goes and comes back, under its name or another one, while a customer sends all he can: he is soon on the
internet again, and at no moment without his limit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.lab.lab import Lab
from tests.lab.processes import wait_until
from tests.lab.topology import INTERNET, INTERNET_ADDRESS, UPLINK
from tests.netns.main_job.conftest import MakeAccount
from tests.netns.main_job.picture import NODE

SOLD = 10  # Mbit/s
PORT = 5999
SLOT = 0.1  # seconds
BACK_SECONDS = 3.0  # after the default route is there again
# The class's burst and what waited in its leaf come on top of the rate, once.
MOST_IN_A_SLOT = SOLD * 1e6 / 8 * SLOT * 3

SENDER = f"""
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    for _ in range(40):
        try: s.sendto(bytes(1200), ("{INTERNET_ADDRESS}", {PORT}))
        except OSError: pass
    time.sleep(0.01)
"""
RECEIVER = f"""
import json, socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("{INTERNET_ADDRESS}", {PORT}))
print("ready", flush=True)
got, until = {{}}, time.monotonic() + 12
s.settimeout(1)
while time.monotonic() < until:
    try: n = len(s.recv(2000))
    except TimeoutError: continue
    slot = int(time.monotonic() / {SLOT})
    got[slot] = got.get(slot, 0) + n
print(json.dumps(got))
"""


@contextmanager
def running(lab: Lab, host: str, program: str) -> Iterator[subprocess.Popen[str]]:
    command = lab.command(host, sys.executable, "-c", program)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def uplink_back(lab: Lab) -> Iterator[None]:
    before = lab.exec(NODE, "ip", "route", "show", "default").stdout.split()
    yield
    names = [one["ifname"] for one in json.loads(lab.exec(NODE, "ip", "-json", "link").stdout)]
    if "ens3" in names:
        lab.exec(NODE, "ip", "link", "set", "ens3", "down")
        lab.exec(NODE, "ip", "link", "set", "ens3", "name", UPLINK)
    lab.exec(NODE, "ip", "link", "set", UPLINK, "up")
    lab.exec(NODE, "ip", "route", "replace", *before)
    # The agent knows by its rule whose switch it has switched on: it shall have followed before the server goes.
    wait_until(lambda: f"-A WL_FORWARD -i {UPLINK} -j DROP" in rules(lab), "the uplink of before", BACK_SECONDS)


def rules(lab: Lab) -> list[str]:
    return lab.exec(NODE, "iptables-legacy", "-w", "-S", "WL_FORWARD").stdout.splitlines()


def down_and_up(lab: Lab, name: str) -> None:
    lab.exec(NODE, "ip", "link", "set", UPLINK, "down")
    if name != UPLINK:
        lab.exec(NODE, "ip", "link", "set", UPLINK, "name", name)
    time.sleep(2)
    lab.exec(NODE, "ip", "link", "set", name, "up")


def made_anew(lab: Lab, name: str) -> None:
    """As a modem or a driver does it: another device, with another index. The far end stays as it was."""
    node = lab.plan.nodes[0]
    far = f"to-{node.name}"
    lab.exec(NODE, "ip", "link", "del", UPLINK)
    time.sleep(2)
    cable = f"ip link add {name} netns {node.namespace} type veth peer name {far} netns {lab.plan.internet.namespace}"
    subprocess.run(cable.split(), check=True, timeout=10)
    lab.exec(INTERNET, "ip", "address", "add", f"{node.router}/30", "dev", far)
    lab.exec(INTERNET, "ip", "link", "set", far, "up")
    lab.exec(NODE, "ip", "address", "add", str(node.address), "dev", name)
    lab.exec(NODE, "ip", "link", "set", name, "up")


@pytest.mark.parametrize(
    ("bounce", "name"), [(down_and_up, UPLINK), (down_and_up, "ens3"), (made_anew, UPLINK), (made_anew, "ens3")]
)
def test_an_uplink_that_comes_back_lets_nobody_pass_unlimited(
    lab: Lab, make_account: MakeAccount, uplink_back: None, bounce: Callable[[Lab, str], None], name: str
) -> None:
    lab.connect("c1", make_account(b_download=SOLD, b_upload=SOLD)["name"])
    default = lab.exec(NODE, "ip", "route", "show", "default").stdout.split()
    via = default[default.index("via") + 1]
    with running(lab, INTERNET, RECEIVER) as receiver, running(lab, "c1", SENDER):
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
        time.sleep(2)
        bounce(lab, name)
        lab.exec(NODE, "ip", "route", "add", "default", "via", via, "dev", name)
        back = int(time.monotonic() / SLOT)
        got = {int(slot): count for slot, count in json.loads(receiver.stdout.readline()).items()}
    first = min(slot for slot in got if slot > back - 5)
    assert (first - back) * SLOT < BACK_SECONDS
    too_much = {(slot - back) * SLOT: count for slot, count in got.items() if slot >= back and count > MOST_IN_A_SLOT}
    assert not too_much
    late = [count for slot, count in got.items() if slot > first + 20]
    assert sum(late) * 8 / 1e6 / (len(late) * SLOT) > SOLD / 2  # and the limit is what he bought, not less
