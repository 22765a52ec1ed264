"""What becomes of IKEv2 when its files are damaged or lost, or its programs hang: no pass breaks off, and all heals."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.errors import KernelError
from agent.kernel.ikev2 import describe, missing, programs, responder
from agent.kernel.ikev2.files import Paths
from agent.model import IKEV2_DEVICE
from agent.objects import Diff, LoginRow, Responder
from tests.netns import test_ikev2
from tests.netns.ikev2_box import is_refused
from tests.netns.test_ikev2 import LOGIN_SECONDS, SCOPE, Box, row
from tests.netns.tunnels import eventually, run

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "IKEv2 is here"),
    # Files and programs are the same with either; the kernel's ESP is a matter of test_ikev2.py.
    pytest.mark.parametrize("box", ["userspace"], indirect=True),
]
shown, box, opened, connect = test_ikev2.shown, test_ikev2.box, test_ikev2.opened, test_ikev2.connect
UNSOUND = {IKEV2_DEVICE: Responder(IKEV2_DEVICE, is_sound=False)}
SOUND = {IKEV2_DEVICE: Responder(IKEV2_DEVICE)}


def edit(box: Box, *statements: str) -> None:
    with closing(sqlite3.connect(box.folder / "users.db")) as db, db:
        for statement in statements:
            db.execute(statement)


def reads(box: Box) -> dict[str, LoginRow]:
    found: dict[str, LoginRow] = box.run(box.logins.read, SCOPE)
    return found


def heals(box: Box, connect: Callable[..., Path]) -> None:
    """Is started anew, both programs, and somebody gets in."""
    before = {process.number for process in box.run(programs.running, Paths(box.folder))}
    assert box.run(box.responders.apply, Diff(change=SOUND)) == {}
    assert not any(Path(f"/proc/{number}").exists() for number in before)
    assert box.run(box.responders.read, SCOPE) == SOUND
    box.write(add=[row(2)])
    box.open()
    connect(0, 2)
    eventually(lambda: len(box.who()) == 1, LOGIN_SECONDS)


@pytest.mark.parametrize(
    "odd",
    [
        "dns_1 = 'zz'",
        "address = 'garbage'",
        "address = x'0a4d0002'",
        "dns_1 = x'ff'",
        "dns_1_ipv6 = 5",
        "address_ipv6 = '::1::'",
        "password = x'00'",
        "enabled = 'zz'",
        "address = ''",
    ],
)
def test_a_row_that_makes_no_sense_is_one_that_nobody_wants(
    opened: Box, connect: Callable[..., Path], odd: str
) -> None:
    edit(opened, f"UPDATE logins SET {odd} WHERE username = 'user_2'")
    found = reads(opened)
    assert found.keys() == {"user_2", "user_3"} and found["user_2"] != row(2) and found["user_3"] == row(3)
    assert opened.run(opened.responders.read, SCOPE) == SOUND, "who is in stays in"
    opened.write(change=[row(2)])
    assert reads(opened) == {"user_2": row(2), "user_3": row(3)}


def _directory(users: Path) -> None:
    users.unlink()
    users.mkdir()
    (users / "x").write_text("")


def _loop(users: Path) -> None:
    users.unlink()
    users.symlink_to(users)


def _torn(users: Path) -> None:
    """In the middle."""
    with users.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(users.stat().st_size - 4096))


def _no_text(users: Path) -> None:
    with closing(sqlite3.connect(users)) as db, db:
        db.execute("UPDATE logins SET username = CAST(x'ff' AS TEXT) WHERE username = 'user_2'")


def _no_name(users: Path) -> None:
    with closing(sqlite3.connect(users)) as db, db:
        db.execute("UPDATE logins SET username = x'ff' WHERE username = 'user_2'")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda users: users.write_bytes(b""),
    "random": lambda users: users.write_bytes(os.urandom(20_000)),
    "gone": Path.unlink,
    "directory": _directory,
    "loop": _loop,
    "torn": _torn,
    "no text": _no_text,
    "no name": _no_name,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_list_of_logins_that_cannot_be_read_is_made_anew(
    opened: Box, connect: Callable[..., Path], damage: str
) -> None:
    DAMAGES[damage](opened.folder / "users.db")
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    reads(opened)
    heals(opened, connect)


def test_a_list_without_its_table_keeps_nobody_else_from_his_way_in(opened: Box, connect: Callable[..., Path]) -> None:
    edit(opened, "DROP TABLE logins")
    assert reads(opened) == {} and opened.run(opened.responders.read, SCOPE) == UNSOUND
    heals(opened, connect)


@pytest.mark.parametrize("by", ["copy", "link"])
def test_a_list_of_logins_that_was_replaced_is_not_the_one_that_is_read(
    opened: Box, connect: Callable[..., Path], by: str
) -> None:
    """FreeRADIUS has the former one open: who is switched off would go on coming in."""
    users, other = opened.folder / "users.db", opened.folder / "other.db"
    if by == "copy":
        shutil.copy(users, other)
        other.replace(users)
    else:
        users.rename(other)
        users.symlink_to(other)
    with pytest.raises(KernelError, match="is not the one that FreeRADIUS reads"):
        opened.run(opened.logins.apply, Diff(remove={"user_3": row(3)}))
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    heals(opened, connect)
    says = connect(1, 3)
    eventually(lambda: is_refused(says), LOGIN_SECONDS)
    assert [name for name, _, _ in opened.who()] == ["user_2"]


@pytest.mark.parametrize("names", [("charon",), ("freeradius",), ("charon", "freeradius")])
def test_a_program_that_hangs_is_started_anew_and_holds_up_no_pass(
    opened: Box, connect: Callable[..., Path], names: tuple[str, ...]
) -> None:
    for name in names:
        os.kill(opened.pid(name), signal.SIGSTOP)
    begun = time.monotonic()
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    assert reads(opened) == {"user_2": row(2), "user_3": row(3)}
    opened.run(opened.gates.read, SCOPE)
    assert opened.run(opened.responders.apply, Diff(change=SOUND)) == {}
    assert time.monotonic() - begun < 15
    assert reads(opened) == opened.run(opened.gates.read, SCOPE) == {}
    anew = opened.pid("charon")
    opened.write(add=[row(2)])
    opened.open()
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)
    assert opened.run(opened.responders.read, SCOPE) == SOUND and opened.pid("charon") == anew


def test_one_that_has_too_much_to_do_is_not_ended_for_that_but_not_for_ever(
    opened: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers may keep it busy, and who is in would be put out for them."""
    monkeypatch.setattr(programs.Process, "worked", lambda process: time.monotonic())
    monkeypatch.setattr(responder, "MOST_EXCUSED", 2)
    os.kill(opened.pid("charon"), signal.SIGSTOP)
    found = [opened.run(opened.responders.read, SCOPE) for _ in range(3)]
    os.kill(opened.pid("charon"), signal.SIGCONT)
    assert found == [SOUND, SOUND, UNSOUND]
    assert opened.run(opened.responders.read, SCOPE) == SOUND


def test_logins_that_wait_for_one_that_hangs_hold_up_no_pass(opened: Box, connect: Callable[..., Path]) -> None:
    """charon asks for them again and again meanwhile, and lists no session before it has an answer."""
    connect(1, 3)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)
    os.kill(opened.pid("freeradius"), signal.SIGSTOP)
    connect(0, 2, "wrong")
    time.sleep(2)
    begun = time.monotonic()
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    assert reads(opened).keys() == {"user_2", "user_3"}
    assert time.monotonic() - begun < 8
    heals(opened, connect)


def test_who_goes_is_out_also_when_nobody_has_written_down_which_charon_is_ours(
    opened: Box, connect: Callable[..., Path]
) -> None:
    connect(0, 2)
    eventually(lambda: len(opened.who()) == 1, LOGIN_SECONDS)
    running = opened.folder / "running.json"
    kept = running.read_text()
    running.unlink()
    assert "no server can have it here" not in opened.run(describe, "auto", opened.folder)
    opened.write(remove=[row(2)])
    running.write_text(kept)
    assert opened.who() == []


def _half(folder: Path) -> None:
    running = folder / "running.json"
    running.write_text(running.read_text()[:20])


def _no_file(folder: Path) -> None:
    (folder / "running.json").unlink()
    (folder / "running.json").mkdir()


def _no_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


LOSSES: dict[str, Callable[[Path], object]] = {
    "running.json": lambda folder: (folder / "running.json").unlink(),
    "half of it": _half,
    "a directory": _no_file,
    "radius.json": lambda folder: (folder / "radius.json").unlink(),
    "the folder": shutil.rmtree,
    "a file": _no_folder,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_programs_of_ours_are_known_when_nobody_has_written_down_which(
    opened: Box, connect: Callable[..., Path], loss: str
) -> None:
    LOSSES[loss](opened.folder)
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    heals(opened, connect)


def test_programs_of_ours_are_known_also_without_their_device(opened: Box) -> None:
    shutil.rmtree(opened.folder)
    run("ip", "-n", opened.namespace, "link", "del", IKEV2_DEVICE)
    assert opened.run(opened.responders.read, SCOPE) == UNSOUND
    assert opened.run(opened.responders.apply, Diff(remove=UNSOUND)) == {}
    assert opened.run(opened.responders.read, SCOPE) == {}
    assert not opened.run(programs.running, Paths(opened.folder))
