"""Rules that somebody puts back with their numbers: nobody pays twice, and no heir for who was before.

The tools that people have, and what these put back: tests/netns/test_put_back.py.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.desired import Desired, Snapshot
from agent.objects import NO_STAMP
from tests.fakes.kernel import FakeMarks
from tests.fakes.state import EPOCH, account, server
from tests.unit.agent.test_writer import Box

ADDRESS = IPv4Address("10.0.1.2")
MEGA = 5_000_000  # more than a reset can show
HEIR = account(7, address=ADDRESS, mark=100)


@pytest.fixture
def box() -> Box:
    made = Box()
    made.full()
    return made


class Save:
    """The rules of a moment, with their numbers and what their table said."""

    def __init__(self, marks: FakeMarks) -> None:
        self._marks, self._held, self._stamp = marks, dict(marks.held), marks.stamp

    def put_back(self) -> None:
        self._marks.held, self._marks.stamp = dict(self._held), self._stamp


def use(box: Box, download: int, upload: int = 0) -> None:
    box.kernel.pass_traffic(str(ADDRESS), download, upload)


def billed(box: Box, account_id: int) -> int:
    box.writer.sample(box.desired)
    return box.keeper.total(account_id).download


@pytest.mark.parametrize("own", [0, 20])
@pytest.mark.parametrize("comes", ["in the change of the removal", "later", "and is there after a restart"])
@pytest.mark.parametrize("when", ["sample", "pass", "restart", "another account comes", "another account goes"])
def test_an_heir_never_pays_for_who_had_the_address_before(box: Box, when: str, comes: str, own: int) -> None:
    box.change(account(2), account(4))
    use(box, MEGA)
    box.writer.sample(box.desired)
    saved = Save(box.kernel.marks)
    if comes == "in the change of the removal":
        box.change(HEIR, remove=(2,))
    else:
        box.change(remove=(2,))
        box.change(HEIR)
    if comes == "and is there after a restart":
        box.restart()
        box.full()
    use(box, own)
    box.writer.sample(box.desired)
    saved.put_back()
    match when:
        case "sample":
            box.writer.sample(box.desired)
        case "restart":
            box.restart()
        case "another account comes":
            box.change(account(5))
            box.writer.sample(box.desired)
        case "another account goes":
            box.change(remove=(4,))
            box.writer.sample(box.desired)
    box.full()
    assert (billed(box, 2), billed(box, 7)) == (MEGA, own)
    assert box.kernel.marks.held[ADDRESS].counters.download_bytes == own
    use(box, 30)
    assert (billed(box, 2), billed(box, 7)) == (MEGA, own + 30)
    assert box.full() == []


def test_a_save_of_before_leaves_the_bill_of_who_stayed_alone(box: Box) -> None:
    box.change(account(2))
    saved = Save(box.kernel.marks)
    box.change(account(4))
    use(box, MEGA)
    box.writer.sample(box.desired)
    saved.put_back()
    box.full()
    use(box, 10)
    assert billed(box, 2) == MEGA + 10


def test_a_pass_over_some_accounts_takes_no_save_for_the_table_that_it_knows(box: Box) -> None:
    """Else its numbers would be believed before all of it was looked at."""
    box.change(account(2), account(4))
    use(box, MEGA)
    saved = Save(box.kernel.marks)
    box.change(HEIR, remove=(2,))
    said = box.kernel.marks.stamp
    saved.put_back()
    box.change(remove=(4,))
    assert box.kernel.marks.stamp < said
    box.full()
    assert box.kernel.marks.stamp > said
    assert (billed(box, 2), billed(box, 7)) == (MEGA, 0)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_database_that_was_restored_and_counts_from_below_is_no_save(box: Box, restarted: bool) -> None:
    box.desired = replace(box.desired, revision=90)
    box.change(account(2))
    use(box, MEGA)
    box.change(remove=(2,))
    box.desired = Desired.of(EPOCH, Snapshot(15, (server(),), (HEIR,)))
    if restarted:
        box.restart()
    box.full()
    use(box, 40)
    assert billed(box, 7) == 40
    box.change(remove=(7,))
    box.change(account(8, address=ADDRESS))
    use(box, 50)
    assert (billed(box, 2), billed(box, 7), billed(box, 8)) == (MEGA, 40, 50)


def test_what_a_table_says_goes_up_only_where_somebody_may_have_come_to_an_address(box: Box) -> None:
    box.change(account(2))
    first = box.kernel.marks.stamp
    box.change(account(4))
    box.change(account(4, download=77))
    assert box.kernel.marks.stamp == first, "who comes to a free address changes nothing of it"
    box.full()
    box.change(remove=(2,))
    assert box.kernel.marks.stamp == box.desired.revision > first


def test_a_table_that_went_with_its_last_rule_begins_anew(box: Box) -> None:
    box.change(account(2))
    box.change(remove=(2,))
    assert box.kernel.marks.stamp == NO_STAMP
    box.change(account(4), account(5))
    box.change(remove=(4,))
    assert box.kernel.marks.stamp == box.desired.revision, "it said what it should"


@pytest.mark.parametrize("mark", [100, 101])
def test_rules_are_begun_anew_once(box: Box, mark: int) -> None:
    box.change(account(2))
    box.full()
    assert box.change(replace(HEIR, mark=mark), remove=(2,)).count("change marks 10.0.1.2") == 1


def test_rules_that_were_put_back_and_go_are_not_begun_anew_before(box: Box) -> None:
    box.change(account(2))
    saved = Save(box.kernel.marks)
    box.change(HEIR, remove=(2,))
    saved.put_back()
    written = box.change(replace(HEIR, enabled=False))
    assert "remove marks 10.0.1.2" in written and "change marks 10.0.1.2" not in written
