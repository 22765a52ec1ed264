"""What both processes have to know alike, and neither can have from the other."""

from __future__ import annotations

import agent.model
import gateway.allocate

BEYOND = 1 << 17  # of every mark that anybody could mean


def test_the_gateway_gives_exactly_the_marks_that_an_agent_takes() -> None:
    given = {mark for part in gateway.allocate.MARKS for mark in range(part.lo, part.hi + 1)}
    assert given == {mark for mark in range(BEYOND) if agent.model.is_mark(mark)}
    assert len({agent.model.minor(mark) for mark in given}) == len(given), "each has a class of its own"
