"""The plan of a resync, as people and programs read it."""

from __future__ import annotations

from ipaddress import IPv4Address

from agent.desired import Desired, Snapshot
from agent.diff import diffs
from agent.model import Secret
from agent.objects import Mark
from agent.parts import MARKS, PEERS
from agent.plan import plan
from agent.wanted import Wanted, wanted
from tests.fakes.state import EPOCH, account, key, server

DESIRED = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2), account(3))))


def of(found: Wanted, moves: dict[str, str] | None = None) -> list[str]:
    return list(plan(DESIRED, diffs(wanted(DESIRED, "eth0"), found), moves or {}).lines())


def test_nothing_to_do_is_one_sentence() -> None:
    assert of(wanted(DESIRED, "eth0")) == ["nothing to do: the kernel shows what was asked for"]


def test_each_object_is_a_line_that_names_its_account_and_the_last_line_counts() -> None:
    found = wanted(DESIRED, "eth0")
    one = DESIRED.accounts[2]
    del found[PEERS]["wg1", key(2)]
    stranger = IPv4Address("10.0.9.9")
    found[MARKS][stranger] = Mark(stranger, 999)
    found[MARKS][one.address] = Mark(one.address, 4711)
    lines = of(found, {"iptables": "nftables"})
    assert lines[0] == "move    mark       from iptables to nftables, when the agent is started again"
    assert f"change  mark       {one.address} 0x{one.mark:x}  ({one.name})" in lines
    assert f"add     peer       wg1 {one.address}  ({one.name})" in lines
    assert "remove  mark       10.0.9.9 0x3e7" in lines
    assert lines[-1] == "4 objects differ: 1 mark to move, 1 mark to change, 1 mark to remove, 1 peer to add"


def test_a_whole_node_is_planned_without_a_secret() -> None:
    shown = "\n".join(of(Wanted()))
    assert server().private_key.reveal() not in shown and key(2) not in shown
    assert "add     link       wg1 10.0.1.1/24 UDP 51821 MTU 1420  (s1)" in shown


def test_a_preshared_key_is_drift_and_not_told() -> None:
    desired = Desired.of(EPOCH, Snapshot(1, (server(),), (account(2, preshared_key=Secret(key(77))),)))
    want, found = wanted(desired, "eth0"), wanted(DESIRED, "eth0")
    del found[PEERS]["wg1", key(3)]
    differ = diffs(want, found)[PEERS]
    assert set(differ.change) == {("wg1", key(2))} and key(77) not in repr(differ)
    lines = list(plan(desired, diffs(want, found), {}).lines())
    assert "change  peer       wg1 10.0.1.2  (a2)" in lines and not any(key(77) in line for line in lines)


def test_programs_get_the_same() -> None:
    found = wanted(DESIRED, "eth0")
    del found[PEERS]["wg1", key(2)]
    told = plan(DESIRED, diffs(wanted(DESIRED, "eth0"), found), {}).json()
    assert told["differs"] is True and told["counts"] == {"add": {"peer": 1}}
    assert told["steps"][0]["whose"] == DESIRED.accounts[2].name
    assert plan(DESIRED, diffs(Wanted(), Wanted()), {}).json() == {"differs": False, "counts": {}, "steps": []}
