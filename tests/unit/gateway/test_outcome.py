"""Whose failure a refusal is, and which refusals stand after an answer."""

from __future__ import annotations

import pytest

from gateway.model import Applied, Failure, Patch, Snapshot
from gateway.outcome import outcome, size, standing

ACCOUNT, OTHER = Failure(1, "a1", "no room"), Failure(2, "a2", "no room")
SERVER, NODE = Failure(0, "s1", "no port"), Failure(0, "", "no uplink")
PATCH = Patch("e", 3, 4, remove_accounts=(1,), remove_servers=("s1",))


@pytest.mark.parametrize(
    ("failures", "about", "expected"),
    [
        ([], {1, "s1"}, "applied"),
        ([ACCOUNT], {1}, "failed"),
        ([ACCOUNT], {2, "s1", "a1"}, "applied"),
        ([SERVER], {1, "s1"}, "failed"),
        ([SERVER], {1, "s2"}, "applied"),
        ([NODE], {1}, "failed"),
        ([NODE], (), "failed"),
        ([OTHER, ACCOUNT], {1}, "failed"),
    ],
)
def test_a_refusal_is_the_failure_of_who_asks_about_it(
    failures: list[Failure], about: set[int | str], expected: str
) -> None:
    assert outcome(failures, about) == expected


def test_of_what_was_sent_the_answer_knows_better() -> None:
    known = (ACCOUNT, OTHER, SERVER)
    assert standing(known, PATCH, Applied("applied", "e", 4)) == (OTHER,)
    assert standing(known, PATCH, Applied("failed", "e", 4, (ACCOUNT,))) == (OTHER, ACCOUNT)
    assert standing(known, Snapshot(4, (), ()), Applied("failed", "e", 4, (NODE,))) == (NODE,)


def test_an_agent_that_was_not_done_takes_nothing_back() -> None:
    assert standing((ACCOUNT, NODE), PATCH, Applied("pending", "e", 4, (ACCOUNT,))) == (ACCOUNT, NODE)


def test_a_patch_is_as_large_as_its_changes() -> None:
    assert (size(PATCH), size(Patch("e", 3, 4))) == (2, 0)
