"""agent/endpoints.py: who comes back finds his endpoint, nobody else's, and not for ever."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.endpoints import KEPT_SECONDS, Endpoints
from agent.errors import KernelError
from agent.model import Account, Secret
from agent.objects import PeerKey
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, MemoryKeeper, account, key, server

HERE, THERE = "192.0.2.7:40000", "198.51.100.9:50000"
SHARED = Secret(key(77))


@dataclass
class Box:
    """A node whose clients are at HERE, and a clock. `written`: the peers of the last pass, as the door got them."""

    kernel: FakeKernel = field(default_factory=FakeKernel)
    now: float = 1000.0
    desired: Desired = field(default_factory=lambda: Desired.of(EPOCH, Snapshot(1, (server(),), ())))

    def __post_init__(self) -> None:
        self.writer = Writer(self.kernel, Usage(MemoryKeeper(), lambda: 1_700_000_000.0))
        self.writer._endpoints = Endpoints(self.kernel, lambda: self.now)
        self.writer.full(self.desired)

    def change(self, *put: Account, remove: tuple[int, ...] = ()) -> None:
        number = self.desired.revision
        patch = Patch(EPOCH, number, number + 1, put_accounts=put, remove_accounts=remove)
        self.desired = self.desired.patched(patch)
        self.writer.touched(self.desired, patch.account_ids, "eth0")

    def connect(self, *numbers: int, endpoint: str = HERE) -> None:
        for number in numbers:
            self.kernel.clients[at(number)] = endpoint

    def full(self) -> None:
        self.writer.full(self.desired)

    def endpoint(self, number: int) -> str:
        return str(self.kernel.peers.held[at(number)].endpoint)


def at(number: int) -> PeerKey:
    return "wg1", key(number)


@pytest.fixture
def box() -> Box:
    box = Box()
    box.change(account(2), account(3))
    box.connect(2)
    return box


def off(one: Account) -> Account:
    return replace(one, enabled=False)


def failing(keys: Collection[PeerKey]) -> dict[PeerKey, str]:
    raise KernelError("WireGuard does not answer")


def test_who_is_enabled_again_finds_his_endpoint(box: Box) -> None:
    box.change(off(account(2)), off(account(3)))
    assert at(2) not in box.kernel.peers.held
    box.change(account(2), account(3))
    assert (box.endpoint(2), box.endpoint(3)) == (HERE, ""), "the other one was never there"


def test_also_after_other_passes_and_where_the_kernel_was_read_meanwhile(box: Box) -> None:
    box.change(off(account(2)))
    box.change(account(3, download=5))
    box.full()
    box.change(account(2))
    assert box.endpoint(2) == HERE


def test_it_is_forgotten_when_the_client_begins_by_itself(box: Box) -> None:
    box.change(off(account(2)))
    box.now += KEPT_SECONDS - 1
    box.full()
    assert list(box.writer._endpoints._gone) == [at(2)]
    box.now += 1
    box.change(account(2))
    assert box.endpoint(2) == ""
    box.writer.sample(box.desired)
    assert not box.writer._endpoints._gone


def test_another_account_with_the_name_and_the_key_of_a_deleted_one_inherits_nothing(box: Box) -> None:
    box.change(off(account(2)))
    box.change(account(2, id=12), remove=(2,))
    assert box.endpoint(2) == ""


def test_a_deleted_account_leaves_nothing(box: Box) -> None:
    box.change(remove=(2,))
    assert not box.writer._endpoints._gone
    box.change(off(account(3)))
    box.connect(3)
    box.change(account(3))
    box.change(off(account(3)))
    assert box.writer._endpoints._gone
    box.change(remove=(3,))
    box.writer.sample(box.desired)
    assert not box.writer._endpoints._gone


def test_an_account_with_another_key_inherits_nothing(box: Box) -> None:
    box.change(account(2, public_key=key(52)))
    assert box.endpoint(52) == "" and not box.writer._endpoints._gone
    box.change(off(account(3)))
    box.change(account(3, public_key=key(2)))
    assert box.endpoint(2) == ""


def test_what_somebody_takes_away_comes_back_with_its_endpoint(box: Box) -> None:
    for number, endpoint in ((2, HERE), (3, THERE)):  # as the door reads them
        box.kernel.peers.held[at(number)] = replace(box.kernel.peers.held[at(number)], endpoint=endpoint)
    box.full()
    box.kernel.links.held.clear()
    box.kernel.peers.held.clear()
    box.full()
    assert (box.endpoint(2), box.endpoint(3)) == (HERE, THERE)


def test_another_preshared_key_begins_anew_where_the_client_is_and_nothing_else_does(box: Box) -> None:
    for one, is_anew in (
        (account(2, preshared_key=SHARED), True),
        (account(2, preshared_key=SHARED, download=7), True),  # as it was
        (account(2, download=7), True),
    ):
        box.change(one)
        held = box.kernel.peers.held[at(2)]
        assert (held.preshared_key, held.anew, held.endpoint) == (one.preshared_key, is_anew, HERE)
    held = box.kernel.peers.held[at(3)]
    box.change(account(3, address=account(9).address))
    moved = box.kernel.peers.held[at(3)]
    assert held != moved and not moved.anew and not moved.endpoint


def test_a_peer_goes_whether_its_endpoint_can_be_read_or_not(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(box.kernel, "endpoints", failing)
        box.change(off(account(2)))
    assert at(2) not in box.kernel.peers.held
    box.change(account(2))
    assert box.endpoint(2) == ""


def test_where_nobody_comes_back_nothing_is_read(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading costs with the peers of a link."""
    monkeypatch.setattr(box.kernel, "endpoints", None)
    box.change(account(4), account(2, download=1), remove=(3,))
    box.full()
