"""What can never be right is left out and told by name, and spoils nothing else."""

from __future__ import annotations

from contextlib import closing
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.misfits import of_accounts, of_servers
from agent.parts import CLASSES, FORWARDING, MARKS, PEERS
from agent.store import open_store
from agent.usage import Usage
from agent.wanted import wanted
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, MemoryKeeper, account, server


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "10.0.2.7", "10.0.1.0", "10.0.1.255", "10.0.1.1", "127.0.0.1", "224.0.0.5", "8.8.8.8"]
)
def test_an_account_outside_its_servers_network_is_left_out_and_told(address: str) -> None:
    good, bad = account(2), account(3, address=IPv4Address(address))
    desired = Desired.of(EPOCH, Snapshot(1, (server(),), (good, bad)))
    ((account_id, name, reason),) = of_accounts(desired, desired.accounts)
    assert (account_id, name) == (3, "a3") and address in reason
    want = wanted(desired, "eth0")
    assert set(want[MARKS]) == {peer.address for peer in want[PEERS].values()} == {good.address}
    assert {one.owner for one in want[CLASSES].values()} == {2}


@pytest.mark.parametrize(("own", "address"), [("10.0.1.0/31", "10.0.1.1"), ("10.0.0.1/16", "10.0.255.254")])
def test_an_account_within_its_servers_network_is_served(own: str, address: str) -> None:
    one = account(2, address=IPv4Address(address))
    desired = Desired.of(EPOCH, Snapshot(1, (server(address=IPv4Interface(own)),), (one,)))
    assert list(of_accounts(desired, [2])) == []
    assert set(wanted(desired, "eth0")[MARKS]) == {one.address}


@pytest.mark.parametrize(
    "external",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.1.1", "224.0.0.1", "255.255.255.255", "10.0.1.7", "10.0.2.1"],
)
def test_nothing_leaves_with_an_external_ip_that_can_never_be(external: str) -> None:
    servers = server(1, external_ip=IPv4Address(external)), server(2, external_ip=IPv4Address("198.51.100.7"))
    desired = Desired.of(EPOCH, Snapshot(1, servers, ()))
    told = of_servers(desired)
    assert list(told) == ["s1"] and external in told["s1"]
    assert {link: one.uplink for link, one in wanted(desired, "eth0")[FORWARDING].items()} == {"wg1": "", "wg2": "eth0"}


def test_a_pass_serves_the_others_and_names_who_was_left_out() -> None:
    kernel, keeper = FakeKernel(), MemoryKeeper()
    writer = Writer(kernel, Usage(keeper, lambda: 1_700_000_000.0))
    bad = account(3, address=IPv4Address("0.0.0.0"))
    desired = Desired.of(EPOCH, Snapshot(1, (server(external_ip=IPv4Address("127.0.0.1")),), (account(2), bad)))
    report = writer.full(desired)
    assert {peer.address for peer in kernel.peers.held.values()} == {account(2).address}
    assert {(one.account_id, one.subject) for one in report.failures.values()} == {(3, "a3"), (0, "s1")}
    later = desired.patched(Patch(EPOCH, 1, 2, put_accounts=(account(4, address=IPv4Address("10.9.9.9")),)))
    assert [one.subject for one in writer.touched(later, [4], "eth0").failures.values()] == ["a4"]
    mended = later.patched(Patch(EPOCH, 2, 3, put_accounts=(account(4),)))
    assert not writer.touched(mended, [4], "eth0").failures
    assert {peer.address for peer in kernel.peers.held.values()} == {account(2).address, account(4).address}


def test_a_state_file_with_such_a_row_is_loaded(tmp_path: Path) -> None:
    bad = account(3, address=IPv4Address("10.9.9.9"))
    with closing(open_store(tmp_path / "agent.db")) as store:
        store.save_snapshot(Desired.of(store.epoch, Snapshot(1, (server(),), (account(2), bad))))
    with closing(open_store(tmp_path / "agent.db")) as store:
        desired = store.load()
    assert desired is not None and set(desired.accounts) == {2, 3}
