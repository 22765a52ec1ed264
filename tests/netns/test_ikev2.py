"""IKEv2 with real programs: charon and FreeRADIUS of ours in a namespace, `charon-cmd` as the client.

Twice: with ESP in charon, and in the kernel where it can (tests/system runs those on a distribution's kernel).
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.ikev2 import (
    Esp,
    Gates,
    Logins,
    Responders,
    describe,
    disconnect,
    keep_routes,
    lost_processes,
    missing,
    sessions,
)
from agent.kernel.ikev2.esp import lacking
from agent.kernel.ikev2.programs import remembered
from agent.model import IKEV2_DEVICE, Ikev2, Secret
from agent.objects import Diff, Gate, LoginRow, Responder, Scope
from tests.netns.conftest import enter
from tests.netns.ikev2_box import IDENTITY, client, credentials, is_in, is_refused
from tests.netns.tunnels import eventually, run, within

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "IKEv2 is here")
SCOPE = Scope(frozenset(), "")
CLIENTS: dict[Esp, str] = {"userspace": "kernel-libipsec", "kernel": ""}  # plugins of theirs
OWN = "10.77.0.1"
LOGIN_SECONDS = 60  # a machine under emulation is 20 times slower


@dataclass
class Box:
    namespace: str
    clients: tuple[str, ...]
    run: Callable[..., Any]
    folder: Path
    responders: Responders
    logins: Logins
    gates: Gates
    shown: Ikev2
    esp: Esp

    def start(self) -> None:
        assert self.run(self.responders.apply, Diff(add={IKEV2_DEVICE: Responder(IKEV2_DEVICE)})) == {}

    def open(self) -> None:
        gate = Gate(IKEV2_DEVICE, self.shown.digest, self.shown)
        assert self.run(self.gates.apply, Diff(add={IKEV2_DEVICE: gate})) == {}

    def write(self, **diff: list[LoginRow]) -> None:
        by_key = {verb: {row.username: row for row in rows} for verb, rows in diff.items()}
        assert self.run(self.logins.apply, Diff(**by_key)) == {}

    def who(self) -> list[tuple[str, str, str]]:
        return [(one.username, one.endpoint, str(one.address)) for one in self.run(sessions, self.folder)]

    def pid(self, name: str) -> int:
        return remembered(self.folder / "running.json")[name].number


def row(number: int, password: str = "secret") -> LoginRow:
    return LoginRow(f"user_{number}", Secret(password), IPv4Address(f"10.77.0.{number}"), (IPv4Address(OWN),))


@pytest.fixture(scope="module")
def shown() -> Ikev2:
    return credentials()


@pytest.fixture(params=["userspace", "kernel"])
def box(
    request: pytest.FixtureRequest, make_namespace: Callable[[], str], tmp_path: Path, shown: Ikev2
) -> Iterator[Box]:
    esp: Esp = request.param
    server, *clients = (make_namespace() for _ in range(3))
    for number, name in enumerate(clients):
        link, network = f"c{number}", f"192.0.{2 + number}"
        run("ip", "-n", server, "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "-n", server, "addr", "add", f"{network}.1/24", "dev", link)
        run("ip", "-n", server, "link", "set", link, "up")
        run("ip", "-n", name, "addr", "add", f"{network}.2/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "route", "add", "default", "via", f"{network}.1")
    run("ip", "-n", server, "addr", "add", f"{OWN}/32", "dev", "lo")
    folder, stop = tmp_path / "run", threading.Event()
    with enter(server) as run_in, enter(server) as run_routes:
        if esp == "kernel" and (reason := run_in(lacking)):
            pytest.skip(reason)
        doors = Responders(folder, esp), Logins(folder), Gates(folder, esp)
        keeper = threading.Thread(target=lambda: run_routes(keep_routes, folder, stop))
        keeper.start()
        try:
            yield Box(server, tuple(clients), run_in, folder, *doors, shown, esp)
        finally:
            stop.set()
            keeper.join(10)
            run_in(doors[0].apply, Diff(remove={IKEV2_DEVICE: Responder(IKEV2_DEVICE)}))


@pytest.fixture
def opened(box: Box) -> Box:
    box.start()
    box.write(add=[row(2), row(3)])
    box.open()
    return box


@pytest.fixture
def connect(opened: Box, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Starts a client in its namespace; yields what it says."""
    with ExitStack() as stack:

        def start(host: int, number: int, password: str = "secret", claims: str = "") -> Path:
            folder, server = tmp_path / f"client-{time.monotonic_ns()}", f"192.0.{2 + host}.1"
            words = opened.clients[host], folder, f"user_{number}", password, opened.shown.authority, server
            return stack.enter_context(client(*words, claims=claims, esp=CLIENTS[opened.esp]))

        yield start


def passes(box: Box, host: int) -> bool:
    """Does a connection through the tunnel come about, both ways?"""
    with enter(box.namespace) as here, enter(box.clients[host]) as there:

        def listen() -> socket.socket:
            return socket.create_server((OWN, 7000))

        def call() -> bool:
            try:
                socket.create_connection((OWN, 7000), 5).close()
            except OSError:
                return False
            return True

        with here(listen):
            return bool(there(call))


def test_who_has_the_password_gets_in_with_his_own_address(opened: Box, connect: Callable[..., Path]) -> None:
    assert opened.run(opened.responders.read, SCOPE) == {IKEV2_DEVICE: Responder(IKEV2_DEVICE)}
    assert opened.run(opened.gates.read, SCOPE) == {IKEV2_DEVICE: Gate(IKEV2_DEVICE, opened.shown.digest)}
    assert opened.run(opened.logins.read, SCOPE) == {"user_2": row(2), "user_3": row(3)}
    says = connect(0, 2)
    eventually(lambda: opened.who() == [("user_2", "192.0.2.2", "10.77.0.2")], LOGIN_SECONDS)
    eventually(lambda: is_in(says), LOGIN_SECONDS)
    assert passes(opened, 0)
    (session,) = opened.run(sessions, opened.folder)
    assert session.rx_bytes > 0 < session.tx_bytes and time.time() - 300 < session.established <= time.time()
    assert opened.run(disconnect, opened.folder, "user_2") and not opened.run(disconnect, opened.folder, "user_3")
    assert opened.who() == []


def test_nobody_gets_in_before_the_gate_is_open(box: Box, tmp_path: Path) -> None:
    box.start()
    box.write(add=[row(2)])
    assert box.run(box.gates.read, SCOPE) == {}
    words = box.clients[0], tmp_path / "c", "user_2", "secret", box.shown.authority
    with client(*words, esp=CLIENTS[box.esp]) as says:
        refused = ("NO_PROPOSAL_CHOSEN", "no IKE config")
        eventually(lambda: any(word in says.read_text() for word in refused), LOGIN_SECONDS)
    assert box.who() == []


@pytest.mark.parametrize(("number", "password"), [(2, "wrong"), (9, "secret"), (2, "Secret")])
def test_another_name_or_password_is_refused(
    opened: Box, connect: Callable[..., Path], number: int, password: str
) -> None:
    says = connect(0, number, password)
    eventually(lambda: is_refused(says), LOGIN_SECONDS)
    assert opened.who() == []


STEAL = "%{sql:UPDATE logins SET password='pwn', address='10.77.0.3' WHERE username='user_3'}"


@pytest.mark.parametrize(
    "password",
    [
        *(f"`{STEAL}`", STEAL, f'"{STEAL}"', "`%{exec:/bin/true}`", "`id`"),
        *('"quoted"', "'quoted'", "`quoted`", 'x\\"y', "x\\y", "0x41", "pässwört €"),
    ],
)
def test_a_password_is_nothing_but_a_password(opened: Box, connect: Callable[..., Path], password: str) -> None:
    opened.write(change=[row(2, password)])
    connect(1, 2, "secret")  # what it says is run by nobody who asks for it
    says = connect(0, 2, password)
    eventually(lambda: is_in(says), LOGIN_SECONDS)
    assert opened.who() == [("user_2", "192.0.2.2", "10.77.0.2")]
    assert opened.run(opened.logins.read, SCOPE) == {"user_2": row(2, password), "user_3": row(3)}


@pytest.mark.parametrize(
    "damage", ["DROP TABLE logins", "PRAGMA user_version = 0", "ALTER TABLE logins DROP COLUMN nt_hash"]
)
def test_a_list_of_logins_that_is_not_as_it_should_be_is_made_anew(
    opened: Box, connect: Callable[..., Path], damage: str
) -> None:
    """With the programs, which may be of a version before and ask it in another way."""
    before = opened.pid("freeradius")
    with sqlite3.connect(opened.folder / "users.db") as db:
        db.execute(damage)
    db.close()
    assert opened.run(opened.responders.read, SCOPE) == {IKEV2_DEVICE: Responder(IKEV2_DEVICE, is_sound=False)}
    assert opened.run(opened.responders.apply, Diff(change={IKEV2_DEVICE: Responder(IKEV2_DEVICE)})) == {}
    assert opened.pid("freeradius") != before
    opened.write(add=[row(2)])
    opened.open()
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)


def test_a_name_that_is_only_claimed_gives_nothing(opened: Box, connect: Callable[..., Path]) -> None:
    connect(1, 3)
    eventually(lambda: opened.who() == [("user_3", "192.0.3.2", "10.77.0.3")], LOGIN_SECONDS)
    connect(0, 2, claims="user_3")
    eventually(lambda: ("user_2", "192.0.2.2", "10.77.0.2") in opened.who(), LOGIN_SECONDS)
    assert len(opened.who()) == 2, "who is named so is still in"


@pytest.mark.parametrize("verb", ["remove", "change"])
def test_who_goes_or_gets_another_password_is_out_before_the_answer(
    opened: Box, connect: Callable[..., Path], verb: str
) -> None:
    connect(0, 2)
    connect(1, 3)
    eventually(lambda: len(opened.who()) == 2, LOGIN_SECONDS)
    opened.write(**{verb: [row(2, "another")]})
    assert [name for name, _, _ in opened.who()] == ["user_3"]
    says = connect(0, 2)
    eventually(lambda: is_refused(says), LOGIN_SECONDS)
    if verb == "change":
        connect(0, 2, "another")
        eventually(lambda: len(opened.who()) == 2, LOGIN_SECONDS)


def test_a_second_device_takes_over_and_keeps_the_route(opened: Box, connect: Callable[..., Path]) -> None:
    connect(0, 2)
    eventually(lambda: opened.who() == [("user_2", "192.0.2.2", "10.77.0.2")], LOGIN_SECONDS)
    connect(1, 2)
    eventually(lambda: opened.who() == [("user_2", "192.0.3.2", "10.77.0.2")], LOGIN_SECONDS)
    eventually(lambda: passes(opened, 1), LOGIN_SECONDS)


@pytest.mark.parametrize("name", ["charon", "freeradius"])
def test_a_program_that_is_killed_is_missed_and_started_again(
    opened: Box, connect: Callable[..., Path], name: str
) -> None:
    lost = opened.pid(name)
    os.kill(lost, signal.SIGKILL)
    eventually(lambda: lost_processes(opened.folder) == {lost}, 5)
    found = opened.run(opened.responders.read, SCOPE)
    assert found == {IKEV2_DEVICE: Responder(IKEV2_DEVICE, is_sound=False)}
    assert opened.run(opened.responders.apply, Diff(change={IKEV2_DEVICE: Responder(IKEV2_DEVICE)})) == {}
    assert opened.run(opened.gates.read, SCOPE) == {}, "nobody gets in before all stands"
    opened.write(add=[row(2)])
    opened.open()
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)


@pytest.mark.parametrize("then", ["it is started again", "somebody goes"])
def test_a_charon_that_is_killed_leaves_no_way_in(opened: Box, connect: Callable[..., Path], then: str) -> None:
    """Of the kernel's ESP all would stay: who was in would go on passing packets, whatever became of him since."""
    says = connect(0, 2)
    eventually(lambda: is_in(says), LOGIN_SECONDS)
    eventually(lambda: passes(opened, 0), LOGIN_SECONDS)
    os.kill(opened.pid("charon"), signal.SIGKILL)
    eventually(lambda: lost_processes(opened.folder), 5)
    if then == "somebody goes":
        opened.write(remove=[row(2)])
    else:
        assert opened.run(opened.responders.apply, Diff(change={IKEV2_DEVICE: Responder(IKEV2_DEVICE)})) == {}
        opened.open()
    if opened.esp == "kernel":
        assert within(opened.namespace, "ip", "xfrm", "state") == ""
        assert "10.77.0.2" not in within(opened.namespace, "ip", "xfrm", "policy")
    assert not passes(opened, 0)


def test_a_session_of_nobody_is_named_and_ended(opened: Box, connect: Callable[..., Path]) -> None:
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)
    opened.run(opened.logins._users.delete, ["user_2"])
    found = opened.run(opened.logins.read, SCOPE)
    assert found.keys() == {"user_2", "user_3"} and found["user_2"] != row(2)
    opened.write(remove=[found["user_2"]])
    assert opened.who() == []


def test_a_new_certificate_is_shown_and_ends_no_session(opened: Box, connect: Callable[..., Path]) -> None:
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)
    opened.shown = credentials()
    opened.open()
    assert opened.run(opened.gates.read, SCOPE) == {IKEV2_DEVICE: Gate(IKEV2_DEVICE, opened.shown.digest)}
    assert len(opened.who()) == 1
    connect(1, 3)
    eventually(lambda: len(opened.who()) == 2, LOGIN_SECONDS)


def test_another_ipsec_of_the_host_is_left_alone(box: Box) -> None:
    def taken() -> socket.socket:
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("0.0.0.0", 500))
        return other

    with box.run(taken):
        errors = box.run(box.responders.apply, Diff(add={IKEV2_DEVICE: Responder(IKEV2_DEVICE)}))
        assert "UDP port 500 is taken" in str(errors[IKEV2_DEVICE])
        assert "no server can have it here: UDP port 500" in box.run(describe, "auto", box.folder)
    assert box.run(box.responders.read, SCOPE) == {} and not box.folder.exists()


def test_nothing_is_left_of_it(opened: Box) -> None:
    numbers = [opened.pid(name) for name in ("charon", "freeradius")]
    assert opened.run(opened.responders.apply, Diff(remove={IKEV2_DEVICE: Responder(IKEV2_DEVICE)})) == {}
    assert not opened.folder.exists() and not any(Path(f"/proc/{number}").exists() for number in numbers)
    assert IKEV2_DEVICE not in within(opened.namespace, "ip", "-br", "link")
    assert opened.run(opened.responders.read, SCOPE) == opened.run(opened.logins.read, SCOPE) == {}


def test_no_secret_is_readable_by_others_or_on_a_command_line(opened: Box) -> None:
    assert opened.folder.stat().st_mode & 0o777 == 0o700
    for name in ("strongswan.conf", "radiusd.conf", "users.db", "running.json"):
        assert (opened.folder / name).stat().st_mode & 0o777 == 0o600
    for name in ("charon", "freeradius"):
        words = Path(f"/proc/{opened.pid(name)}/cmdline").read_text()
        assert "user_2" not in words and IDENTITY not in words
        assert words.count("\0") <= 6
