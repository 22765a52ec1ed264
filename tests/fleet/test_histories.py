"""A short run of the history checker; `python -m tests.fleet --minutes 10` makes a long one."""

from __future__ import annotations

import pytest

from tests.fleet.run import Plan, run
from tests.lab.lab import Lab

SECONDS = 40.0


@pytest.mark.timeout(280)
def test_all_promises_hold_whatever_dies(lab: Lab) -> None:
    outcome = run(lab, Plan(seed=9, seconds=SECONDS, restore=False), print)
    print("\n".join(outcome.lines))
    assert outcome.held, outcome.history.report()
