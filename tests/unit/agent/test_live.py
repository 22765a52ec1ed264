"""A live read reads what its answer shows, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.desired import Desired, Snapshot
from agent.live import LiveReads, Look
from agent.objects import NO_COUNTERS, Counters
from agent.usage import Baseline, Usage
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, MemoryKeeper, account, server

READS = {
    Look.PEER: ["peers"],
    Look.MARKS: ["marks"],
    Look.CLASSES: ["uplink", "classes", "classes"],
    Look.EVERYTHING: ["uplink", "peers", "marks", "classes", "classes"],
}


@pytest.mark.parametrize("look", Look)
def test_only_what_is_looked_at_is_read(monkeypatch: pytest.MonkeyPatch, look: Look) -> None:
    kernel, read = FakeKernel(), list[str]()

    def told(real: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            read.append(part)
            return real(*arguments)

        return call

    for name, part in (("uplink", "uplink"), ("peer_states", "peers"), ("class_text", "classes")):
        monkeypatch.setattr(kernel, name, told(getattr(kernel, name), part))
    monkeypatch.setattr(kernel.marks, "counters", told(kernel.marks.counters, "marks"))
    desired = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2), account(3, enabled=False))))
    live = LiveReads(kernel, Usage(MemoryKeeper(), lambda: 0.0))
    live.read_account(desired, 2, look)
    assert read == READS[look]
    read.clear()
    live.read_account(desired, 3, look)
    assert set(read) <= {"uplink"}, "of a disabled account nothing is there"


def test_the_numbers_of_a_disabled_account_are_shown_as_they_stood() -> None:
    kernel, keeper = FakeKernel(), MemoryKeeper()
    off, heir = account(3, enabled=False), account(4, enabled=False)
    keeper.baselines = {
        off.address: Baseline(3, Counters(1, 100, 2, 20)),
        heir.address: Baseline(9, Counters(5, 5, 5, 5)),
    }
    desired = Desired.of(EPOCH, Snapshot(1, (server(),), (off, heir)))
    live = LiveReads(kernel, Usage(keeper, lambda: 0.0))
    assert live.read_account(desired, 3).counters == Counters(1, 100, 2, 20)
    assert live.read_account(desired, 4).counters == NO_COUNTERS, "those are the former owner's"
