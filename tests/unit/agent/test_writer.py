"""Passes on a kernel with a memory, told as stories: what is written, in which order, and what is counted."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from threading import Barrier
from typing import Any

import pytest

from agent.desired import Desired, Patch, Snapshot
from agent.errors import KernelError, StoreError
from agent.model import EVERYWHERE, FilterRule, minor
from agent.objects import FILTER_KEY, Counters, Diff, Mark, Peer, Qdisc, Scope
from agent.parts import FORWARDING, LINKS, LOGINS, PARTS, PEERS, RESPONDER, Part
from agent.report import Report
from agent.usage import Usage, Used
from agent.wanted import scope_of, wanted
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel
from tests.fakes.state import EPOCH, MemoryKeeper, account, key, server


class Box:
    """A node: a kernel, a keeper and the writer, with the desired state of the moment."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.keeper = MemoryKeeper()
        self.desired = Desired.of(EPOCH, Snapshot(1, (server(),), ()))
        self.kernel.watch = self.no_peer_without_its_class
        self.restart()

    def restart(self) -> None:
        self.writer = Writer(self.kernel, Usage(self.keeper, lambda: 1_700_000_000.0))

    def full(self) -> list[str]:
        self.kernel.writes.clear()
        self.report: Report = self.writer.full(self.desired)
        return list(self.kernel.writes)

    def change(self, *put: object, remove: tuple[int, ...] = ()) -> list[str]:
        """Patches the desired state and makes a pass over what it touched."""
        self.kernel.writes.clear()
        patch = self.patch(*put, remove=remove)
        self.desired = self.desired.patched(patch)
        self.keeper.expect(patch.put_accounts)
        self.report = self.writer.touched(self.desired, patch.account_ids, "eth0")
        return list(self.kernel.writes)

    def patch(self, *put: object, remove: tuple[int, ...] = ()) -> Patch:
        return Patch(EPOCH, self.desired.revision, self.desired.revision + 1, put_accounts=put, remove_accounts=remove)  # type: ignore[arg-type]

    def no_peer_without_its_class(self, part: str, verb: str, written: object) -> None:
        for held, peer in self.kernel.peers.held.items():
            mark = self.kernel.marks.held.get(peer.address)
            assert mark is not None, f"peer {peer.address} without marks"
            account = self.desired.accounts.get(self.desired.by_address.get(peer.address, 0))
            added = (part, verb, written) == ("peers", "add", held)
            if added and account and account.download:
                assert (peer.interface, minor(mark.mark)) in self.kernel.classes.held, f"peer {peer.address} unshaped"

    def failed(self) -> list[tuple[int, str, str]]:
        return [(one.account_id, one.subject, one.reason) for one in self.report.failures.values()]

    def is_right(self) -> bool:
        want = wanted(self.desired, "eth0")
        return all(want[part] == self.kernel.shown()[part.name] for part in PARTS)


@pytest.fixture(params=[0, 4_000], ids=["at-once", "one-by-one"])
def box(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Box:
    """Classes and marks in either way."""
    monkeypatch.setattr("agent.steps.MANY_CLASSES", request.param)
    box = Box()
    box.full()
    return box


def test_a_server_is_built_inward(box: Box) -> None:
    box.kernel.reboot()
    assert box.full() == ["add links wg1", "add qdiscs wg1", "add qdiscs eth0", "add forwarding wg1"]


def test_an_account_is_built_inward_and_removed_outward(box: Box) -> None:
    *before, last = box.change(account(2))
    assert sorted(before) == ["add classes eth0 100", "add classes wg1 100", "add marks 10.0.1.2"]
    assert last == f"add peers wg1 {key(2)[:6]}"
    assert [line.rsplit(" ", 1)[0] for line in box.change(remove=(2,))] == [
        "remove peers wg1",
        "forget",
        "remove marks",
        "remove classes wg1",
        "remove classes eth0",
    ]
    assert box.is_right()


def test_what_was_on_its_way_to_an_address_is_forgotten_before_its_heir_comes(box: Box) -> None:
    box.change(account(2), account(3))
    written = box.change(account(7, address=IPv4Address("10.0.1.2"), mark=100), remove=(2,))
    assert written.index("forget 10.0.1.2") == 1 < written.index(f"add peers wg1 {key(7)[:6]}")
    # Who moves leaves it at the moment of the change, and whoever gets it in the same pass has not said a word yet.
    moved = account(3, address=IPv4Address("10.0.1.9"))
    written = box.change(moved, account(8, address=IPv4Address("10.0.1.3"), mark=108))
    assert written.index("forget 10.0.1.3") > written.index(f"change peers wg1 {key(3)[:6]}")
    assert "forget 10.0.1.9" in box.change(replace(moved, enabled=False))
    assert not any("forget" in line for line in box.change(moved))
    assert not any("forget" in line for line in box.change(replace(moved, download=77)))


def test_what_an_agent_that_was_killed_has_not_forgotten_is_forgotten_at_the_next_start(box: Box) -> None:
    box.change(account(2), account(3))
    for i in (2, 3):
        del box.kernel.peers.held["wg1", key(i)]
    heir = account(7, address=IPv4Address("10.0.1.2"), mark=100)
    box.desired = box.desired.patched(box.patch(heir, remove=(2, 3)))
    box.restart()
    written = box.full()
    assert {word for line in written if "forget" in line for word in line.split()} == {"forget", "10.0.1.2", "10.0.1.3"}
    assert max(i for i, line in enumerate(written) if "forget" in line) < written.index(f"add peers wg1 {key(7)[:6]}")


def test_a_peer_that_cannot_be_removed_keeps_its_connections(box: Box) -> None:
    box.change(account(2))
    box.kernel.refuses["peers", "remove", ("wg1", key(2))] = "busy"
    assert not any("forget" in line for line in box.change(remove=(2,)))


at_once = pytest.mark.parametrize("box", [0], indirect=True)


@at_once
@pytest.mark.parametrize("how", ["a patch", "a boot"])
def test_classes_and_marks_are_made_at_once(box: Box, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "a boot":
        box.change(account(2), account(3))
        box.kernel.reboot()
    both = Barrier(2, timeout=10)
    for part in (box.kernel.classes, box.kernel.marks):
        monkeypatch.setattr(part, "apply", lambda diff, apply=part.apply: (both.wait(), apply(diff))[1])
    if how == "a boot":
        box.full()
    else:
        box.change(account(2), account(3))
    assert box.is_right() and not box.report.failures


@at_once
def test_a_class_made_beside_the_marks_that_is_refused_spoils_its_account_and_is_tried_again(box: Box) -> None:
    box.kernel.refuses["classes", "add", ("wg1", 0x100)] = "no room"
    box.change(account(2), account(3))
    assert [(f.account_id, f.reason) for f in box.report.failures.values()] == [(2, "no room")]
    assert {peer.address for peer in box.kernel.peers.held.values()} == {IPv4Address("10.0.1.3")}
    box.kernel.refuses.clear()
    assert box.change(account(2, download=30)) == ["add classes wg1 100", f"add peers wg1 {key(2)[:6]}"]
    assert box.is_right()


def test_a_standing_peer_keeps_its_old_class_where_the_new_one_is_refused(box: Box) -> None:
    box.change(account(2))
    box.kernel.refuses["classes", "add", ("wg1", 0x164)] = "no room"
    box.change(account(2, mark=164))
    assert [(f.account_id, f.reason) for f in box.report.failures.values()] == [(2, "no room")]
    assert box.kernel.marks.held[IPv4Address("10.0.1.2")].mark == 100
    assert box.kernel.classes.held["wg1", 0x100].rate == 20
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right()


def test_a_standing_peer_keeps_its_old_address_where_the_new_one_gets_no_rules(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(diff: object) -> dict[object, KernelError]:
        raise KernelError("no memory")

    box.change(account(2))
    with monkeypatch.context() as broken:
        broken.setattr(box.kernel.marks, "apply", fail)
        box.change(account(2, address=IPv4Address("10.0.1.99")))
    assert {peer.address for peer in box.kernel.peers.held.values()} == {IPv4Address("10.0.1.2")}
    assert set(box.kernel.marks.held) == {IPv4Address("10.0.1.2")}
    box.kernel.pass_traffic("10.0.1.2", 100, 1)
    box.full()
    box.kernel.pass_traffic("10.0.1.99", 20, 2)
    box.writer.sample(box.desired)
    assert box.is_right() and box.keeper.total(2) == Used(120, 3)


def test_whose_new_rules_are_refused_keeps_the_old_ones(box: Box) -> None:
    box.change(account(2))
    box.kernel.refuses["marks", "add", IPv4Address("10.0.1.99")] = "no memory"
    box.change(account(2, address=IPv4Address("10.0.1.99")))
    assert (
        {peer.address for peer in box.kernel.peers.held.values()} == set(box.kernel.marks.held) == {account(2).address}
    )
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right()


def test_a_rule_never_leads_to_a_class_that_is_not_there_yet(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.change(account(2))
    real = box.kernel.classes.apply

    def slow(diff: Diff[Any, Any]) -> Mapping[Any, KernelError]:
        time.sleep(0.05)
        return real(diff)

    monkeypatch.setattr(box.kernel.classes, "apply", slow)
    written = box.change(account(2, mark=164), account(3))
    assert written.index("change marks 10.0.1.2") > max(i for i, line in enumerate(written) if "add classes" in line)
    assert box.is_right()


@pytest.mark.parametrize("part", ["classes", "marks"])
def test_a_bug_in_either_of_them_is_not_swallowed(box: Box, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    monkeypatch.setattr(getattr(box.kernel, part), "apply", lambda diff: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        box.change(account(2))
    assert not box.writer.knows_kernel(box.desired)


@pytest.mark.parametrize("part", ["classes", "marks"])
def test_where_one_of_them_cannot_be_written_at_all_nobody_gets_in(
    box: Box, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(diff: object) -> dict[object, KernelError]:
        raise KernelError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(getattr(box.kernel, part), "apply", fail)
        box.change(account(2), account(3))
    assert {one.account_id for one in box.report.failures.values()} == {0, 2, 3} and not box.kernel.peers.held
    assert (0, "", f"{part}: no memory") in box.failed()
    box.full()
    assert box.is_right()


def test_at_a_boot_those_who_were_last_seen_come_first_and_do_not_wait_for_the_others(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.steps.SLICE", 2)
    box.change(*(account(number) for number in range(2, 7)))
    for number in (3, 5):
        box.kernel.pass_traffic(f"10.0.1.{number}", 100, 10)
        box.writer.sample(box.desired)
    box.kernel.reboot()
    box.restart()
    written = box.full()
    assert [line for line in written if "peers" in line][:2] == [f"add peers wg1 {key(n)[:6]}" for n in (5, 3)]
    first, last = written.index(f"add peers wg1 {key(3)[:6]}"), len(written) - 1
    assert not any(f"10.0.1.{number}" in line for line in written[:first] for number in (2, 4, 6))
    assert last == 4 + 5 * 4 - 1 and box.is_right()


def test_restart_touches_nothing(box: Box) -> None:
    box.change(account(2), account(3, enabled=False), account(4, download=0))
    box.restart()
    assert box.full() == []


def test_a_pass_over_some_accounts_is_only_for_servers_that_are_as_they_were_and_after_a_pass_that_ended(
    box: Box,
) -> None:
    assert box.writer.knows_kernel(box.desired)
    box.change(account(2))
    assert box.writer.knows_kernel(box.desired) and box.report.uplink == "eth0"
    assert not box.writer.knows_kernel(Desired.of(EPOCH, Snapshot(9, (server(mtu=1300),), (account(2),))))
    box.kernel.fail_at = 0
    with pytest.raises(KernelError):
        box.full()
    assert not box.writer.knows_kernel(box.desired)
    box.restart()
    assert not box.writer.knows_kernel(box.desired)


def test_a_rate_change_touches_one_class(box: Box) -> None:
    box.change(account(2))
    assert box.change(account(2, download=50)) == ["change classes wg1 100"]


def test_disable_removes_all_of_an_account_and_enable_brings_it_back_with_its_numbers(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    off = box.change(account(2, enabled=False))
    assert off[:3] == [f"remove peers wg1 {key(2)[:6]}", "forget 10.0.1.2", "remove marks 10.0.1.2"] and len(off) == 5
    assert box.keeper.total(2) == Used(1000, 10)
    box.restart()
    box.full()
    assert box.change(account(2))[-2:] == ["add marks 10.0.1.2", f"add peers wg1 {key(2)[:6]}"]
    box.kernel.pass_traffic("10.0.1.2", 5, 5)
    box.writer.sample(box.desired)
    assert box.kernel.marks.held[IPv4Address("10.0.1.2")].counters.download_bytes == 1005
    assert box.keeper.total(2) == Used(1005, 15)


def test_the_numbers_of_a_disabled_account_go_with_it(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.change(account(2, enabled=False))
    box.change(remove=(2,))
    assert not box.keeper.baselines


@pytest.mark.parametrize("enabled", [True, False])
def test_a_disabled_heir_starts_from_zero_too(box: Box, enabled: bool) -> None:
    box.change(account(2, enabled=enabled))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    heir = account(7, address=IPv4Address("10.0.1.2"), mark=100, enabled=False)
    box.change(heir, remove=(2,))
    box.restart()
    box.full()
    box.change(replace(heir, enabled=True))
    box.kernel.pass_traffic("10.0.1.2", 5, 6)
    box.writer.sample(box.desired)
    assert (box.keeper.total(2), box.keeper.total(7)) == (Used(1000, 10) if enabled else Used(), Used(5, 6))


def test_the_last_byte_before_removal_is_counted(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.change(remove=(2,))
    assert box.keeper.total(2) == Used(1000, 10) and not box.keeper.baselines


def test_the_heir_of_an_address_starts_from_zero(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.change(account(7, address=IPv4Address("10.0.1.2"), mark=100), remove=(2,))
    assert box.kernel.marks.held[IPv4Address("10.0.1.2")].counters.download_bytes == 0
    box.kernel.pass_traffic("10.0.1.2", 5, 6)
    box.writer.sample(box.desired)
    assert (box.keeper.total(2), box.keeper.total(7)) == (Used(1000, 10), Used(5, 6))


def test_a_removal_right_after_midnight_leaves_what_others_used_to_the_old_day(box: Box) -> None:
    midnight = now = 1_700_006_400.0
    now -= 5
    box.writer = Writer(box.kernel, Usage(box.keeper, lambda: now))
    box.full()
    box.change(account(2), account(3))
    for number in (2, 3):
        box.kernel.pass_traffic(f"10.0.1.{number}", 100, 10)
    now = midnight + 1
    box.change(remove=(2,))
    box.writer.sample(box.desired)
    assert box.keeper.days == {(2, 20231114): Used(100, 10), (3, 20231114): Used(100, 10)}


def test_an_account_that_gets_another_mark_keeps_counting(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 100, 1)
    box.change(account(2, mark=164))
    box.writer.sample(box.desired)
    assert box.keeper.total(2) == Used(100, 1) and box.is_right()


def test_an_account_that_moves_keeps_counting(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 100, 1)
    box.change(account(2, address=IPv4Address("10.0.1.99")))
    box.kernel.pass_traffic("10.0.1.99", 20, 2)
    box.writer.sample(box.desired)
    assert box.keeper.total(2) == Used(120, 3) and box.is_right()


def test_flushed_rules_come_back_with_their_numbers(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.writer.sample(box.desired)
    box.kernel.marks.held.clear()
    assert box.full() == ["add marks 10.0.1.2"]
    assert box.kernel.marks.held[IPv4Address("10.0.1.2")].counters.download_bytes == 1000
    box.kernel.pass_traffic("10.0.1.2", 1, 1)
    box.writer.sample(box.desired)
    assert box.keeper.total(2) == Used(1001, 11)


def test_a_reboot_neither_loses_nor_doubles_a_byte(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.writer.sample(box.desired)
    box.kernel.reboot()
    box.restart()
    box.full()
    box.kernel.pass_traffic("10.0.1.2", 500, 5)
    box.writer.sample(box.desired)
    assert box.keeper.total(2) == Used(1500, 15)


def test_a_new_file_does_not_count_again_what_the_rules_show(box: Box) -> None:
    box.change(account(2))
    box.kernel.pass_traffic("10.0.1.2", 1000, 10)
    box.keeper = MemoryKeeper()
    box.restart()
    box.full()
    box.kernel.pass_traffic("10.0.1.2", 7, 7)
    box.writer.sample(box.desired)
    assert box.keeper.total(2) == Used(7, 7)


def test_one_bad_account_spoils_only_itself(box: Box) -> None:
    box.kernel.refuses["classes", "add", ("wg1", 0x100)] = "no room"
    box.change(account(2), account(3))
    assert [(f.account_id, f.reason) for f in box.report.failures.values()] == [(2, "no room")]
    assert {peer.address for peer in box.kernel.peers.held.values()} == {IPv4Address("10.0.1.3")}
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right()


@pytest.mark.parametrize("first", [True, False])
def test_a_server_that_fails_keeps_only_its_own_accounts_out(box: Box, first: bool) -> None:
    if first:  # of both servers nothing is there yet
        box.kernel.reboot()
    box.desired = Desired.of(
        EPOCH,
        Snapshot(2, (server(1), server(2)), (account(2), account(3, server="s2", address=IPv4Address("10.0.2.3")))),
    )
    box.kernel.refuses["links", "add", "wg2"] = "the name is taken"
    box.full()
    assert {f.subject for f in box.report.failures.values()} >= {"s2"}
    assert {peer.interface for peer in box.kernel.peers.held.values()} == {"wg1"} == box.kernel.forwarding.held.keys()
    assert set(box.kernel.marks.held) == {IPv4Address("10.0.1.2")}, "nothing is made of whose way in is not there"


def test_a_peer_that_cannot_be_removed_keeps_its_marks(box: Box) -> None:
    box.change(account(2))
    box.kernel.refuses["peers", "remove", ("wg1", key(2))] = "busy"
    box.change(remove=(2,))
    assert IPv4Address("10.0.1.2") in box.kernel.marks.held
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right() and not box.kernel.leaked


def test_a_refused_removal_is_the_account_s_own_failure_and_leaves_it_shaped_and_counted(box: Box) -> None:
    box.change(account(2))
    box.full()  # what is found after this does not know its owner
    box.kernel.refuses["peers", "remove", ("wg1", key(2))] = "busy"
    box.change(account(2, enabled=False))
    assert [(f.account_id, f.subject) for f in box.report.failures.values()] == [(2, "a2")]
    assert len(box.kernel.classes.held) == 2 and len(box.kernel.marks.held) == 1


@pytest.mark.parametrize("known_by", ["what was desired before", "what is desired now", "what was found"])
def test_a_refused_removal_is_told_of_whose_it_was(box: Box, known_by: str) -> None:
    """Linux does not know it."""
    box.change(account(2))
    box.kernel.refuses["peers", "remove", ("wg1", key(2))] = "busy"
    heir = account(7, public_key=key(2), enabled=False)
    match known_by:
        case "what was desired before":
            box.full()
            box.change(remove=(2,))
            assert box.failed() == [(2, "a2", "busy")]
        case "what is desired now":
            box.kernel.watch = lambda *_: None  # it has no marks
            box.kernel.peers.held["wg1", key(5)] = Peer("wg1", key(5), IPv4Address("10.0.1.5"))
            box.kernel.refuses["peers", "remove", ("wg1", key(5))] = "busy"
            box.desired = box.desired.patched(box.patch(account(5, enabled=False)))
            box.full()
            assert box.failed() == [(5, "a5", "busy")]
        case _:
            box.change(heir, remove=(2,))
            assert box.failed() == [(2, "a2", "busy")]


def test_what_is_nobodys_and_cannot_be_removed_keeps_no_new_server_out(box: Box) -> None:
    box.kernel.watch = lambda *_: None  # it has no marks
    box.kernel.peers.held["wg1", key(99)] = Peer("wg1", key(99), None)
    box.kernel.refuses["peers", "remove", ("wg1", key(99))] = "busy"
    second = account(3, server="s2", address=IPv4Address("10.0.2.3"))
    box.desired = box.desired.patched(Patch(EPOCH, 1, 2, (server(2),), put_accounts=(second,)))
    box.full()
    assert box.failed() == [(0, "", "busy")]
    assert "wg2" in box.kernel.forwarding.held and ("wg2", key(3)) in box.kernel.peers.held


def test_a_server_that_cannot_be_removed_is_not_taken_for_removed(box: Box) -> None:
    box.desired = Desired.of(EPOCH, Snapshot(2, (), ()))
    box.kernel.refuses["links", "remove", "wg1"] = "busy"
    box.full()
    assert [f.subject for f in box.report.failures.values()] == ["s1"]


def test_a_new_server_may_take_the_port_of_one_that_goes(box: Box) -> None:
    box.desired = Desired.of(EPOCH, Snapshot(2, (server(2, listen_port=51821),), ()))
    written = box.full()
    assert written.index("remove links wg1") < written.index("add links wg2")


def test_without_a_way_out_who_is_disabled_is_cut_off_all_the_same(box: Box) -> None:
    box.change(account(2), account(3))
    box.desired = box.desired.patched(Patch(EPOCH, 2, 3, put_accounts=(account(2, enabled=False),)))
    box.kernel.fail_at = 0  # the uplink is read first
    with pytest.raises(KernelError):
        box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == {IPv4Address("10.0.1.3")}
    box.full()
    assert box.is_right()


def test_an_uplink_that_moves_is_opened_when_its_classes_are_there_and_the_former_one_is_cleaned(box: Box) -> None:
    box.change(account(2), account(3))
    box.kernel.uplink_name = "ppp0"
    written = box.full()
    opened = written.index("change forwarding wg1")
    assert {"add qdiscs ppp0", "add classes ppp0 100", "add classes ppp0 101"} <= set(written[:opened])
    assert written[opened + 1 :] == ["remove qdiscs eth0"]
    assert box.report.uplink == "ppp0"
    assert box.full() == []


def test_links_follow_what_the_uplink_carries_but_for_those_whose_server_names_a_size(box: Box) -> None:
    box.kernel.mtu = 1380
    assert "change links wg1" in box.full()
    assert (box.kernel.links.held["wg1"].mtu, box.report.tunnel_mtu) == (1380, 1380)
    box.desired = box.desired.patched(Patch(EPOCH, box.desired.revision, 99, put_servers=(server(mtu=1300),)))
    box.full()
    assert (box.kernel.links.held["wg1"].mtu, box.report.tunnel_mtu) == (1300, 1380)


def test_whose_class_is_refused_on_a_new_uplink_is_let_in_again_when_it_is_there(box: Box) -> None:
    box.change(account(2, download=20, upload=10), account(3, download=20, upload=10))
    first, second = box.desired.accounts[2], box.desired.accounts[3]
    box.kernel.uplink_name = "ppp0"
    box.kernel.refuses["classes", "add", ("ppp0", minor(first.mark))] = "no buffer space"
    box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == {second.address}
    assert box.kernel.forwarding.held["wg1"].uplink == "ppp0"  # the others have the internet
    assert [failure.account_id for failure in box.report.failures.values()] == [2]
    box.kernel.refuses.clear()
    box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == {first.address, second.address}
    assert ("ppp0", minor(first.mark)) in box.kernel.classes.held


@pytest.mark.parametrize("device", ["wg1", "eth0"])
@pytest.mark.parametrize("lost", ["class", "root"])
def test_who_has_lost_a_class_that_is_refused_is_cut_off_until_it_is_there(box: Box, device: str, lost: str) -> None:
    box.change(account(2, download=20, upload=10), account(3, download=20, upload=10), account(4, download=0, upload=0))
    first, others = box.desired.accounts[2], {IPv4Address("10.0.1.3"), IPv4Address("10.0.1.4")}
    if lost == "root":  # as by `tc qdisc del`: its classes go along
        del box.kernel.qdiscs.held[device]
        for key_ in [one for one in box.kernel.classes.held if one[0] == device]:
            del box.kernel.classes.held[key_]
    else:
        del box.kernel.classes.held[device, minor(first.mark)]
    box.kernel.refuses["classes", "add", (device, minor(first.mark))] = "no buffer space"
    box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == others
    box.kernel.refuses.clear()
    box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == {first.address, *others}
    assert box.is_right()


@pytest.mark.parametrize("device", ["wg1", "eth0"])
def test_where_somebody_else_s_root_takes_the_place_of_ours_only_who_has_no_limit_passes(box: Box, device: str) -> None:
    box.change(account(2, download=20, upload=10), account(4, download=0, upload=0))
    del box.kernel.qdiscs.held[device]
    for key_ in [one for one in box.kernel.classes.held if one[0] == device]:
        del box.kernel.classes.held[key_]
    box.kernel.refuses["qdiscs", "add", device] = "somebody's root"
    box.full()
    assert {peer.address for peer in box.kernel.peers.held.values()} == {IPv4Address("10.0.1.4")}
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right()


def test_who_gets_a_limit_that_is_refused_is_cut_off_until_it_is_there(box: Box) -> None:
    box.change(account(2, download=0, upload=0))
    box.kernel.refuses["classes", "add", ("eth0", 0x100)] = "no buffer space"
    box.change(account(2, download=20, upload=10))
    assert box.kernel.peers.held == {}
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right() and box.kernel.peers.held


def test_an_uplink_that_refuses_our_root_is_not_opened_and_the_former_one_stays_shaped(box: Box) -> None:
    box.change(account(2))
    box.kernel.uplink_name = "ppp0"
    box.kernel.refuses["qdiscs", "add", "ppp0"] = "somebody's root"
    box.full()
    assert box.kernel.forwarding.held["wg1"].uplink == "eth0"
    assert "eth0" in box.kernel.qdiscs.held
    box.kernel.refuses.clear()
    box.full()
    assert box.kernel.forwarding.held["wg1"].uplink == "ppp0"
    assert set(box.kernel.qdiscs.held) == {"wg1", "ppp0"}


def test_a_former_uplink_is_cleaned_also_where_the_last_server_has_gone_and_by_an_agent_that_never_knew_it(
    box: Box,
) -> None:
    box.kernel.uplink_name = "ppp0"
    box.desired = Desired.of(EPOCH, Snapshot(2, (), ()))
    box.restart()
    box.full()
    assert box.kernel.qdiscs.held == box.kernel.forwarding.held == {}


def test_an_uplink_that_is_gone_comes_back_closed_until_its_classes_are_there(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.change(account(2))
    with monkeypatch.context() as away:
        away.setattr(box.kernel, "uplink", lambda: box.kernel.called("uplink", "read"))
        box.kernel.fail_at = 0
        with pytest.raises(KernelError):
            box.full()
    assert box.kernel.forwarding.held["wg1"].uplink == ""
    box.kernel.gone("qdiscs", "eth0")
    box.kernel.qdiscs.held.pop("eth0")
    written = box.full()
    assert written.index("add classes eth0 100") < written.index("change forwarding wg1")
    assert box.is_right()


def test_what_the_node_itself_could_not_do_is_the_node_s_failure(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[bool] = []

    def refuse(serves: bool) -> KernelError:
        served.append(serves)
        return KernelError("no answers")

    def forget(addresses: object) -> None:
        if addresses:
            raise KernelError("no conntrack")

    box.change(account(2))
    monkeypatch.setattr(box.kernel, "forget_connections", forget)
    box.change(remove=(2,))
    assert [(f.account_id, f.subject, f.reason) for f in box.report.failures.values()] == [(0, "", "no conntrack")]
    monkeypatch.setattr(box.kernel, "keep_answers", refuse)
    box.full()
    assert [(f.account_id, f.subject, f.reason) for f in box.report.failures.values()] == [(0, "", "no answers")]
    box.desired = Desired.of(EPOCH, Snapshot(9, (), ()))
    box.full()
    assert served == [True, False]


def test_whoever_looks_around_is_told_where_we_are(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    scopes: list[Scope] = []

    def look(scope: Scope) -> tuple[str, ...]:
        scopes.append(scope)
        return ()

    monkeypatch.setattr(box.kernel, "warnings", look)
    monkeypatch.setattr(box.kernel, "problem", lambda scope: "".join(look(scope)))
    monkeypatch.setattr(box.kernel, "tunnel_mtu", lambda uplink: {"eth0": 1337}[uplink])
    box.full()
    assert scopes == [Scope(frozenset({"wg1"}), "eth0")] * 2 and box.kernel.links.held["wg1"].mtu == 1337


def scopes_of(box: Box, monkeypatch: pytest.MonkeyPatch) -> dict[Part[Any, Any], Scope]:
    """Where each part is looked for from now on. A link is there that nobody wants."""
    box.kernel.links.held["wg7"] = replace(box.kernel.links.held["wg1"], interface="wg7")
    scopes: dict[Part[Any, Any], Scope] = {}
    for part in PARTS:
        real = box.kernel.door(part).read

        def read(scope: Scope, real: Any = real, part: Part[Any, Any] = part) -> Any:
            scopes[part] = scope
            return real(scope)

        monkeypatch.setattr(box.kernel.door(part), "read", read)
    return scopes


def test_links_are_looked_for_by_what_is_wanted_and_the_rest_on_all_of_them(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes = scopes_of(box, monkeypatch)
    box.full()
    begin = scope_of(wanted(box.desired, "eth0"), "eth0")
    rest = Scope(frozenset({"wg1", "wg7"}), "eth0")
    assert scopes == {part: begin if part in (LINKS, RESPONDER) else rest for part in PARTS}


def test_who_is_cut_off_without_an_uplink_is_looked_for_on_all_links_and_on_no_uplink(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    scopes = scopes_of(box, monkeypatch)
    box.kernel.fail_at = 0
    with pytest.raises(KernelError):
        box.full()
    rest = Scope(frozenset({"wg1", "wg7"}), "")
    begin = scope_of(wanted(box.desired, ""), "")
    assert scopes == {LINKS: begin, **dict.fromkeys((PEERS, LOGINS, FORWARDING), rest)}


def test_a_plan_is_what_a_full_pass_would_change_and_changes_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.change(account(2), account(3))
    monkeypatch.setattr(box.kernel, "tunnel_mtu", lambda uplink: {"eth0": 1380}[uplink])
    del box.kernel.peers.held["wg1", key(2)]
    box.kernel.marks.held[IPv4Address("10.0.1.3")] = Mark(IPv4Address("10.0.1.3"), 4711)
    box.kernel.qdiscs.held["eth9"] = Qdisc("eth9")
    before = box.kernel.shown()
    box.kernel.writes.clear()
    planned = box.writer.plan(box.desired)
    assert box.kernel.writes == [] and box.kernel.shown() == before
    told = [f"{verb} {part.name} {key}" for part in PARTS for verb, of in planned[part].by_verb() for key in of]
    assert sorted(told) == sorted(
        [
            "change links wg1",
            "remove qdiscs eth9",
            "change marks 10.0.1.3",
            f"add peers {('wg1', key(2))}",
        ]
    )
    box.full()
    assert all(not box.writer.plan(box.desired)[part] for part in PARTS)


def test_rules_that_are_nobodys_count_for_nobody(box: Box) -> None:
    box.change(account(2))
    stray = IPv4Address("10.0.1.77")
    box.kernel.marks.held[stray] = Mark(stray, 177, counters=Counters(1, 10, 1, 10))
    box.writer.sample(box.desired)
    assert box.keeper.days == {} and stray not in box.keeper.baselines


def test_a_full_disk_is_told_after_customers_are_back(box: Box) -> None:
    box.change(account(2))
    box.kernel.reboot()
    box.keeper.save_sample = full_disk  # type: ignore[method-assign,assignment]
    box.restart()
    with pytest.raises(StoreError, match="full"):
        box.full()
    assert box.is_right()


def full_disk(*_: object) -> None:
    raise StoreError("database or disk is full")


def test_whatever_call_fails_the_next_full_pass_makes_it_right_and_nothing_leaks() -> None:
    for fail_at in range(40):
        box = Box()
        box.full()
        box.change(account(2), account(3))
        box.kernel.pass_traffic("10.0.1.2", 100, 10)
        box.kernel.fail_at = fail_at
        try:
            box.change(account(3, download=5), account(7, address=IPv4Address("10.0.1.2"), mark=100), remove=(2,))
        except KernelError:
            box.kernel.pass_traffic("10.0.1.2", 1, 1)
        failed = box.kernel.fail_at is None
        box.kernel.fail_at = None
        box.restart()
        box.full()
        box.writer.sample(box.desired)
        assert box.is_right(), f"call {fail_at}"
        assert not box.kernel.leaked
        assert box.keeper.total(2).download >= 100, f"call {fail_at}"
        assert (box.keeper.total(2) + box.keeper.total(7)).download in (100, 101), f"call {fail_at}"
        if not failed:
            return
    raise AssertionError("the pass never came to its end")


@pytest.mark.parametrize("many", [0, 4_000])
@pytest.mark.parametrize("seed", range(30))
def test_random_walks_end_where_a_fresh_kernel_would(seed: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes in any order, with failures, reboots, drift and restarts in between."""
    monkeypatch.setattr("agent.steps.MANY_CLASSES", many)
    dice, box = random.Random(seed), Box()
    box.full()
    for _ in range(60):
        for number in range(2, 7):
            box.kernel.pass_traffic(f"10.0.1.{number}", dice.randrange(1000), dice.randrange(100))
        _random_step(dice, box)
    box.kernel.fail_at = None
    box.kernel.refuses.clear()
    box.full()
    assert box.is_right() and not box.kernel.leaked
    assert box.full() == []


def _random_step(dice: random.Random, box: Box) -> None:
    number = dice.randrange(2, 7)
    match dice.randrange(8):
        case 0 | 1:
            rates = {"download": dice.choice([0, 5, 20]), "enabled": dice.random() < 0.7}
            free = not any(i != number and i % 100 == number for i in box.desired.accounts)
            put = account(number, **rates) if free else None
            _try(box, lambda: box.change(*([put] if put else [])))
        case 2:
            heir = number + 100 * dice.randrange(1, 50)
            holders = tuple(i for i in box.desired.accounts if i % 100 == number)
            if heir not in holders:
                new = account(heir, address=IPv4Address(f"10.0.1.{number}"), mark=98 + number)
                _try(box, lambda: box.change(new, remove=holders))
        case 3:
            _try(box, lambda: box.change(remove=(number,)))
        case 4:
            box.kernel.fail_at = dice.randrange(12)
        case 5:
            part = dice.choice([box.kernel.marks, box.kernel.classes, box.kernel.peers])
            if part is box.kernel.peers or not box.kernel.peers.held:
                part.held.clear()
                box.kernel.fail_at = None
                box.full()  # the resync, before anybody builds on what is gone
        case 6:
            box.restart()
            _try(box, box.full)
        case _:
            _try(box, box.full)


def _try(box: Box, step: object) -> None:
    """A step as the loop would do it: a full pass where the last reading cannot be trusted."""
    try:
        if not box.writer.knows_kernel(box.desired):
            box.full()
        step()  # type: ignore[operator]
    except KernelError:
        return


def port_opened(box: Box) -> int | None:
    found = box.kernel.forwarding.held.get("wg1")
    return found and int(found.listen_port)


def with_server(box: Box, **changes: Any) -> None:
    desired = box.desired
    box.desired = desired.patched(Patch(EPOCH, desired.revision, desired.revision + 1, (server(**changes),)))


def test_a_port_that_a_new_link_could_not_take_is_not_opened() -> None:
    box = Box()
    box.kernel.refuses["links", "add", "wg1"] = "UDP port 51821 is busy"
    for _ in range(2):
        box.full()
        assert port_opened(box) is None
    # It was made, and stands there without its port.
    box.kernel.links.held["wg1"] = replace(wanted(box.desired, "eth0")[LINKS]["wg1"], listen_port=0)
    box.kernel.refuses["links", "change", "wg1"] = "UDP port 51821 is busy"
    box.full()
    assert port_opened(box) is None
    box.kernel.refuses.clear()
    box.full()
    assert port_opened(box) == 51821


def test_a_port_that_a_link_could_not_change_to_is_not_opened_and_the_rest_is_changed() -> None:
    box = Box()
    box.full()
    box.kernel.refuses["links", "change", "wg1"] = "UDP port 5353 is busy"
    with_server(box, listen_port=5353, internal_traffic=True)
    box.full()
    assert port_opened(box) == 51821
    assert box.kernel.forwarding.held["wg1"].internal_traffic
    assert [f.subject for f in box.report.failures.values()] == ["s1"]
    assert box.full() == [], "what cannot be is not written again and again"
    box.kernel.refuses.clear()
    box.full()
    assert port_opened(box) == 5353 and box.is_right()


@pytest.mark.parametrize("verb", ["change", "add"])
def test_a_port_that_another_program_took_from_a_link_is_closed(verb: str) -> None:
    box = Box()
    box.full()
    link = box.kernel.links.held.pop("wg1")
    if verb == "change":
        box.kernel.links.held["wg1"] = replace(link, listen_port=0)
    box.kernel.refuses["links", verb, "wg1"] = "UDP port 51821 is busy"
    box.full()
    assert port_opened(box) == 0
    assert box.full() == []
    box.kernel.refuses.clear()
    box.full()
    assert port_opened(box) == 51821 and box.is_right()


def test_marks_and_classes_stay_while_a_link_that_could_not_be_made_right_may_still_let_in() -> None:
    """Nobody knows what it holds: its peers were not even read."""
    box = Box()
    box.full()
    other = account(4, server="s2", address=IPv4Address("10.0.2.4"))
    box.desired = box.desired.patched(Patch(EPOCH, 1, 2, (server(2),), put_accounts=(other,)))
    box.full()
    box.change(account(2), account(3))
    box.kernel.refuses["links", "change", "wg1"] = "it does not answer"
    box.desired = box.desired.patched(box.patch(account(2, enabled=False), remove=(4,)))
    box.kernel.links.held["wg1"] = replace(box.kernel.links.held["wg1"], mtu=1)  # and it differs
    box.kernel.peers.sees = lambda key, scope: key[0] != "wg1"  # type: ignore[method-assign]
    box.full()
    assert account(2).address in box.kernel.marks.held
    assert ("wg1", minor(account(2).mark)) in box.kernel.classes.held
    assert other.address not in box.kernel.marks.held, "its link is as it should be"
    box.kernel.refuses.clear()
    del box.kernel.peers.sees
    box.full()
    assert account(2).address not in box.kernel.marks.held and ("wg1", key(2)) not in box.kernel.peers.held


def test_a_filter_that_linux_refuses_keeps_nobody_out_and_is_told_of_the_node() -> None:
    box = Box()
    rules = (FilterRule(False, EVERYWHERE, EVERYWHERE, "tcp", 0, 25),)
    box.desired = Desired.of(EPOCH, Snapshot(1, (server(filter=rules),), (account(2),)))
    box.kernel.refuses["filter", "add", FILTER_KEY] = "no nf_tables"
    box.full()
    assert [(one.account_id, one.subject, one.reason) for one in box.report.failures.values()] == [
        (0, "", "no nf_tables")
    ]
    assert len(box.kernel.peers.held) == 1 and not box.kernel.filter.held
    box.kernel.refuses.clear()
    assert box.full() == ["add filter filter"] and not box.report.failures
