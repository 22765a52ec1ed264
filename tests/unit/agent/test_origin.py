"""What an agent that holds something takes, from whom, and what it never takes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.errors import StaleRevision
from agent.model import Secret, Server
from agent.origin import NO_WORD, NOBODY, Origin, Version

OURS = Origin("ours", 7, "fra")
SERVER = Server(
    name="s",
    interface="wg1",
    private_key=Secret("YAnz5TF+lXXJte14tji3zlMNftft3pbcpK+3rJ0FR2Q="),
    listen_port=51820,
    address=IPv4Interface("10.0.0.1/24"),
)
HELD = Desired.of("e", Snapshot(5, (SERVER,), origin=OURS))


def snapshot(revision: int, origin: Origin, replaces: Version = NO_WORD) -> Snapshot:
    return Snapshot(revision, (), (), "", origin, replaces)


@pytest.mark.parametrize(
    ("what", "taken"),
    [
        (snapshot(5, OURS), True),
        (snapshot(6, replace(OURS, mark=8)), True),
        (snapshot(4, replace(OURS, mark=6)), False),  # late
        (snapshot(5, replace(OURS, mark=8)), False),  # the number met again
        (snapshot(9, replace(OURS, identity="theirs")), False),
        (snapshot(9, replace(OURS, node="twin")), False),
        (snapshot(9, NOBODY), False),  # a gateway of before, or one that does not say
        (snapshot(9, replace(OURS, identity="theirs"), Version(5, OURS)), True),  # the operator said so
        (snapshot(4, replace(OURS, mark=6), Version(5, OURS)), True),
        (snapshot(9, replace(OURS, identity="theirs"), Version(4, OURS)), False),  # of another state
        (snapshot(9, replace(OURS, identity="theirs"), Version(5, replace(OURS, mark=8))), False),
        (snapshot(9, replace(OURS, identity="theirs"), NO_WORD), False),
    ],
)
def test_a_snapshot_takes_the_place_of_what_is_its_own_or_was_said(what: Snapshot, taken: bool) -> None:
    if taken:
        HELD.check_replaced(what)
    else:
        with pytest.raises(StaleRevision):
            HELD.check_replaced(what)


def test_who_was_never_told_takes_any_snapshot() -> None:
    replace(HELD, origin=NOBODY).check_replaced(snapshot(1, replace(OURS, identity="theirs")))


def test_who_holds_nothing_any_more_takes_what_names_that_state_and_nothing_that_is_late() -> None:
    emptied, late = replace(HELD, servers={}), snapshot(4, replace(OURS, mark=6))
    with pytest.raises(StaleRevision, match="too late"):
        emptied.check_replaced(late)
    emptied.check_replaced(replace(late, replaces=Version(5, OURS)))


@pytest.mark.parametrize(
    ("base", "base_mark", "revision", "origin", "why"),
    [
        (5, 7, 6, replace(OURS, mark=8, identity="theirs"), "of another database"),
        (5, 7, 6, replace(OURS, mark=8, node="twin"), "is node fra of that database, not twin"),
        (5, 9, 6, replace(OURS, mark=8), "another one of that number"),
        (4, 6, 5, replace(OURS, mark=8), "another one of that number"),
        (5, 7, 5, replace(OURS, mark=8), "another one of that number"),
        (5, 7, 6, NOBODY, "of another database"),
    ],
)
def test_a_patch_follows_on_this_state_only(base: int, base_mark: int, revision: int, origin: Origin, why: str) -> None:
    with pytest.raises(StaleRevision, match=why):
        HELD.patched(Patch("e", base, revision, origin=origin, base_mark=base_mark))


def test_a_patch_brings_the_origin_of_its_revision() -> None:
    new = replace(OURS, mark=8)
    after = HELD.patched(Patch("e", 5, 6, origin=new, base_mark=7))
    assert (after.revision, after.origin) == (6, new)
    assert HELD.patched(Patch("e", 3, 4, origin=replace(OURS, mark=5), base_mark=4)) is HELD  # an old one, repeated
    assert HELD.patched(Patch("e", 4, 5, origin=OURS, base_mark=6)) is HELD  # the last one


def test_who_was_never_told_learns_it_from_an_empty_patch() -> None:
    before = replace(HELD, origin=NOBODY)
    assert before.patched(Patch("e", 5, 5)) is before
    assert before.patched(Patch("e", 5, 5, origin=OURS, base_mark=7)) == HELD
