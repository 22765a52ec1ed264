"""The move between the backends on a real kernel, where something is not as it should be, or not there at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.changeover import Changeover
from agent.desired import Desired, Snapshot
from agent.doors import Doors
from agent.errors import KernelError
from agent.kernel.iptables import tables
from agent.kernel.linux import backend_doors
from agent.kernel.nftables import nft
from agent.objects import Diff, Mark, Scope
from agent.parts import FORWARDING, MARKS
from agent.usage import Usage
from agent.wanted import wanted
from tests.fakes.state import EPOCH, MemoryKeeper, account, server
from tests.netns.conftest import enter
from tests.netns.crossing import iptables

DESIRED = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2), account(3))))
WANTED = wanted(DESIRED, "eth0")
SCOPE = Scope(frozenset({"wg1"}), "eth0")
DIRECTIONS = [("iptables", "nftables"), ("nftables", "iptables")]
Run = Callable[..., Any]


@pytest.fixture
def host(namespace: str) -> Iterator[tuple[str, Run]]:
    with enter(namespace) as run:
        yield namespace, run


def build(doors: Doors) -> None:
    doors.forwarding.apply(Diff(add=WANTED[FORWARDING]))
    doors.marks.apply(Diff(add=WANTED[MARKS]))


def move(keeper: MemoryKeeper, chosen: str, desired: Desired | None = DESIRED) -> str:
    return Changeover(Usage(keeper, lambda: 1_700_000_000.0), backend_doors()).to(chosen, desired)


@pytest.mark.parametrize(("old", "new"), DIRECTIONS)
def test_all_of_the_old_one_goes_also_what_somebody_has_unhooked(host: tuple[str, Run], old: str, new: str) -> None:
    namespace, run = host
    run(build, backend_doors()[old])
    if old == "iptables":
        iptables(namespace, "-F FORWARD")
    else:
        run(nft.apply, ["flush chain ip wirelane_forwarding forward"])
    keeper = MemoryKeeper()
    keeper.counted_by = old
    assert run(move, keeper, new) == new
    left = backend_doors()[old]
    assert not run(left.marks.is_there) and not run(left.forwarding.is_there)
    if old == "iptables":
        assert "WL_" not in "".join(iptables(namespace, f"-t {table} -S") for table in ("mangle", "nat", "filter"))
    assert run(backend_doors()[new].marks.read, SCOPE) == WANTED[MARKS]


@pytest.mark.parametrize("only", ["iptables", "nftables"])
def test_the_agent_starts_where_the_other_backend_does_not_exist(
    host: tuple[str, Run], only: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run = host

    def refuse(*_: object, **__: object) -> Any:
        raise KernelError("this kernel has nothing of the kind", retry=False)

    if only == "nftables":
        monkeypatch.setattr(tables, "read", refuse)
        monkeypatch.setattr(tables, "has_table", lambda table: False)
    else:
        monkeypatch.setattr(nft, "listing", refuse)
        monkeypatch.setattr(nft, "has_table", lambda *of: False)
    assert run(move, MemoryKeeper(), only) == only


def test_an_account_that_goes_takes_no_other_with_it_where_the_roots_were_flushed(host: tuple[str, Run]) -> None:
    namespace, run = host
    marks = backend_doors()["iptables"].marks
    gone, left = IPv4Address("10.0.1.2"), IPv4Address("10.77.0.9")
    run(marks.apply, Diff(add={gone: Mark(gone, 100), left: Mark(left, 101)}))
    for root in ("WL_FROM", "WL_TO"):
        iptables(namespace, f"-t mangle -F {root}")
    run(marks.apply, Diff(remove={gone: Mark(gone, 100)}))
    assert run(marks.counters).keys() == {left}


def test_nothing_is_touched_while_nothing_is_desired(host: tuple[str, Run]) -> None:
    namespace, run = host
    run(build, backend_doors()["iptables"])
    before = iptables(namespace, "-t mangle -S"), iptables(namespace, "-S")
    assert run(move, MemoryKeeper(), "nftables", None) == "iptables"
    assert (iptables(namespace, "-t mangle -S"), iptables(namespace, "-S")) == before
