"""The lock and the rule about who stands first; the tables themselves are tried in tests/netns."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from agent.errors import KernelError
from agent.kernel.iptables.entries import Image, entry, jump
from agent.kernel.iptables.tables import locked
from agent.kernel.iptables.xtables import Hook, is_hooked
from tests.unit.agent.tables import image

HOOK = Hook("FORWARD", "OURS", behind=("OTHER",))
OURS, OTHER, STRANGE = entry(jump("OURS")), entry(jump("OTHER")), entry(jump("DROP"), came_in="eth0")


def table(*forward: bytes, foreign: tuple[bytes, ...] = ()) -> Image:
    return image({"FORWARD": [*forward]}, {"FOREIGN": [*foreign], "OTHER": [], "OURS": [], "OURS2": []})


def test_a_busy_lock_is_an_error_that_says_who_may_hold_it_and_that_a_retry_helps(tmp_path: Path) -> None:
    lock = tmp_path / "xtables.lock"
    holder = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(KernelError, match="typically") as error, locked(str(lock), 0.03):
        pass
    assert error.value.retry
    os.close(holder)
    with locked(str(lock), 0.03):
        assert lock.stat().st_mode & 0o777 == 0o600


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    lock = str(tmp_path / "xtables.lock")
    with pytest.raises(ZeroDivisionError), locked(lock, 0.03):
        raise ZeroDivisionError
    with locked(lock, 0.03):
        assert Path(lock).exists()


def test_a_lock_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="cannot open"), locked(str(tmp_path / "absent" / "xtables.lock")):
        pass


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (table(OURS), True),
        (table(OURS, STRANGE), True),
        (table(OTHER, OURS, STRANGE), True),
        (table(), False),
        (table(STRANGE, OURS), False),
        (table(OTHER, STRANGE, OURS), False),
        (table(OURS, OURS), False),
        (table(OURS, OTHER, OURS), False),
        (table(entry(jump("OURS"), came_in="eth0")), False),
        (table(entry(jump("OURS"), goto=True)), False),
        (table(OURS, foreign=(entry(jump("OURS2")),)), False),
        (table(OURS, foreign=(OTHER,)), True),
    ],
)
def test_a_hook_is_right_only_alone_and_before_all_strange_rules(found: Image, right: bool) -> None:
    assert is_hooked(found, (HOOK,), {"OURS", "OURS2"}) is right
