"""The checker's own thinking: what may be true, and what is a lie."""

from __future__ import annotations

import pytest

from tests.fleet.history import History
from tests.fleet.model import Answer, Create, Delete, Edit, Held, Lie, Read, State, Switch, told
from tests.fleet.sellers import Off
from tests.fleet.verdicts import off_was_off

ABSENT: frozenset[State] = frozenset({None})
HELD = Held(1, True, 5, 6)
THERE: frozenset[State] = frozenset({HELD})


def test_an_acknowledged_call_is_what_is_true() -> None:
    assert told(ABSENT, Create(1, 5, 6), Answer.DONE) == THERE
    assert told(THERE, Switch(False), Answer.DONE) == {Held(1, False, 5, 6)}
    assert told(THERE, Edit(7, 8), Answer.DONE) == {Held(1, True, 7, 8)}
    assert told(THERE, Delete(), Answer.DONE) == ABSENT


def test_an_answer_that_was_lost_leaves_both_and_the_next_one_tells() -> None:
    both = told(ABSENT, Create(1, 5, 6), Answer.UNKNOWN)
    assert both == {None, HELD}
    assert told(both, Create(2, 9, 9), Answer.IN_USE) == THERE
    assert told(both, Edit(7, 8), Answer.NO_SUCH) == ABSENT
    assert told(both, Delete(), Answer.DONE) == ABSENT


@pytest.mark.parametrize(
    ("possible", "call", "answer"),
    [
        (THERE, Edit(7, 8), Answer.NO_SUCH),
        (THERE, Read(), Answer.NO_SUCH),
        (ABSENT, Delete(), Answer.DONE),
        (ABSENT, Create(1, 5, 6), Answer.IN_USE),
    ],
)
def test_an_answer_that_fits_nothing_is_a_lie(possible: frozenset[State], call: Edit | Read, answer: Answer) -> None:
    with pytest.raises(Lie):
        told(possible, call, answer)


@pytest.mark.parametrize(
    ("sent", "came", "violations"),
    [(9.9, 10.5, 0), (10.1, 10.2, 1), (19.9, 20.1, 0), (20.1, 20.2, 0)],
    ids=["before the answer", "while it was off", "held back until it was on", "when it was on again"],
)
def test_only_what_was_sent_and_came_while_off_is_a_violation(sent: float, came: float, violations: int) -> None:
    history = History()
    off_was_off(history, "a", [Off(1, since=10.0, until=20.0)], {1: {"times": [(sent, came)]}})
    assert len(history.violations) == violations
