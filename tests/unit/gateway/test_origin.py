"""Which side is right about a node: what a database knows as its own, and what it must not touch."""

from __future__ import annotations

import pytest

from gateway.model import NOBODY, Held, Node, Origin
from gateway.origin import contested, word

NODE = Node(1, "fra", "unix:/run/fra.sock", revision=9, epoch="e", acknowledged=6)
OURS = Origin("ours", 70, "fra")


def holds(revision: int = 7, origin: Origin = OURS, epoch: str = "e") -> Held:
    return Held(epoch, revision, origin, accounts=3, servers=1)


@pytest.mark.parametrize(
    ("held", "mark"),
    [
        (holds(), 70),
        (holds(9), 70),
        (holds(epoch="another state file"), 70),
        (holds(5), None),  # its disk went back: older than what we know that it had
        (holds(origin=NOBODY), None),  # a version that does not say: state file and number are known
        (Held("", -1), None),  # it holds nothing
        (Held("x", 40, Origin("theirs", 1, "fra")), None),  # nothing that could be lost
    ],
)
def test_what_is_known_is_not_contested(held: Held, mark: int | None) -> None:
    assert contested(NODE, "ours", held, mark) == ""


@pytest.mark.parametrize(
    ("held", "mark", "why"),
    [
        (holds(origin=Origin("theirs", 70, "fra")), 70, "3 accounts of another database"),
        (holds(7), 71, "another history of this database"),
        (holds(7), None, "another history of this database"),
        (holds(10), None, "another history of this database"),
        (holds(origin=Origin("ours", 70, "twin")), 70, "its agent is node twin already"),
        (holds(origin=NOBODY, epoch="unknown"), None, "of another database"),
        (holds(10, origin=NOBODY), None, "of another database"),
        (Held("e", 7, Origin("theirs", 1, "fra"), accounts=0, servers=1), None, "0 accounts of another database"),
    ],
)
def test_what_is_not_known_is_contested_and_the_cure_is_named(held: Held, mark: int | None, why: str) -> None:
    said = contested(NODE, "ours", held, mark)
    assert why in said and "`wirelane-gateway node resync fra`" in said


def test_a_word_is_of_one_state_only() -> None:
    others = (holds(8), holds(epoch="f"), holds(origin=NOBODY), holds(origin=Origin("ours", 71, "fra")))
    assert word(holds()) not in {word(held) for held in others} and len({word(held) for held in others}) == 4
