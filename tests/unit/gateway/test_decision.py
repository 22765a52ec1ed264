"""What the sync decides, event by event: who is told when, what is sent, how long it rests, and what is said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from logging import DEBUG, ERROR, INFO, WARNING

import pytest

from gateway import decision
from gateway.decision import Acknowledge, Ask, Command, Compare, Release, Remind, Say, Send, State, Step, Waiter
from gateway.errors import AgentUnreachable
from gateway.model import AgentStatus, Applied, Compared, Failure, Held, Node, Origin, Patch, Snapshot
from gateway.origin import Row

OURS = Origin("ours", 7, "n")
HOLDS = Held("e", 5, OURS, 1)
STATUS = AgentStatus("e", 5, 5, False, origin=OURS, accounts=1)


def node(revision: int = 5, acknowledged: int = 5, epoch: str = "e") -> Node:
    return Node(1, "n", "unix:/a", revision=revision, epoch=epoch, acknowledged=acknowledged)


def patch(revision: int, changes: int = 1) -> Patch:
    return Patch("e", 5, revision, remove_accounts=tuple(range(changes)))


def resting(**changes: object) -> State:
    """At 10.0 it looked and all was well; its status is due at 11.0."""
    state = State(2.0, wanted=5, shown=5, held=HOLDS, status=STATUS, status_due=11.0, rests_until=(10.0, 11.0))
    return replace(state, **changes)  # type: ignore[arg-type]


def waiting(*revisions: int, **changes: object) -> State:
    waiters = tuple(Waiter(number, revision) for number, revision in enumerate(revisions))
    return resting(waiters=waiters, wanted=max(revisions), **changes)


def saw(state: State, compared: Compared, at: float = 10.0) -> Step:
    held = state.held
    assert held is not None
    return decision.saw(state, at, Compare(held, state.shown, is_fresh=True), compared)


def answered(
    state: State,
    sent: Patch | Snapshot,
    at: float = 10.0,
    began: float = 10.0,
    outcome: str = "applied",
    acked: int = 5,
) -> Step:
    revision = sent.revision
    call = Send(began, node(revision, acked), sent if isinstance(sent, Patch) else None, None)
    return decision.answered(replace(state, call=call), at, call, sent, Applied(outcome, "e", revision, (), OURS))


def failed(state: State, what: str, at: float = 10.0, reason: str = "why") -> Step:
    return decision.failed(state, at, RuntimeError(reason), what, 1.0)


def told(commands: Iterable[Command]) -> list[tuple[int, str]]:
    return [(each.number, each.outcome) for each in commands if isinstance(each, Release)]


def said(commands: Iterable[Command]) -> list[tuple[int, str]]:
    return [(each.level, each.text) for each in commands if isinstance(each, Say)]


# -- who is told when --------------------------------------------------------------------------------------------------


def test_what_is_shown_already_is_told_at_once_and_anything_else_waits_and_wakes() -> None:
    state, commands = decision.came(resting(), Waiter(1, 5))
    assert (state, commands) == (resting(), (Release(1, "applied"),))
    state, commands = decision.came(resting(), Waiter(1, 6))
    assert (commands, state.waiters, state.wanted, state.woken) == ((), (Waiter(1, 6),), 6, True)
    assert decision.came(state, Waiter(2, 4))[0].wanted == 6


def test_once_somebody_waited_in_vain_and_the_agent_said_nothing_the_next_hear_pending_at_once() -> None:
    state, _ = decision.left(decision.came(resting(heard=4), Waiter(1, 6))[0], 1, in_vain=True)
    assert state.silent
    state, commands = decision.came(state, Waiter(2, 7))
    assert (told(commands), state.waiters, state.wanted, state.woken) == ([(2, "pending")], (), 7, True)
    for spoken, _ in (decision.told(state, 11.0, STATUS, 1.0), answered(state, patch(7))):
        assert decision.came(spoken, Waiter(3, 8))[1] == ()


def test_who_leaves_early_or_heard_the_agent_meanwhile_makes_nobody_silent() -> None:
    came, _ = decision.came(resting(), Waiter(1, 6))
    assert not decision.left(came, 1)[0].silent
    told, _ = decision.told(came, 11.0, STATUS, 1.0)
    heard, _ = answered(came, patch(5), outcome="pending")
    both, _ = answered(told, patch(5), outcome="pending")
    assert not any(decision.left(state, 1, in_vain=True)[0].silent for state in (told, heard, both))
    assert not decision.left(resting(), 1, in_vain=True)[0].silent  # it was released just then


def test_an_agent_that_is_away_answers_for_nothing() -> None:
    state, commands = decision.came(resting(status=None), Waiter(1, 5))
    assert (told(commands), len(state.waiters)) == ([], 1)


def test_who_leaves_is_forgotten_and_nobody_else() -> None:
    assert decision.left(waiting(6, 7), 0)[0].waiters == (Waiter(1, 7),)


def test_an_answer_is_told_at_once_when_nobody_else_asked_meanwhile() -> None:
    state, commands = answered(waiting(6), patch(6))
    assert (told(commands), state.waiters, state.holds_until) == ([(0, "applied")], (), None)


def test_an_answer_is_kept_for_the_next_call_to_leave_first_and_told_beside_it() -> None:
    """To tell thirty callers takes as long as the agent needs for one."""
    state, commands = answered(waiting(6, 7, woken=True), patch(6), at=10.0)
    assert told(commands) == [] and Remind(10.02) in commands
    state, commands = decision.ticked(state, 10.0)
    assert (state.call, told(commands)) == (Compare(Held("e", 6, OURS, 1), 6), [])
    state, commands = saw(state, Compared(node(7), patch(7)), 10.001)
    assert isinstance(state.call, Send)
    assert (told(commands), state.waiters, state.holds_until) == ([(0, "applied")], (Waiter(1, 7),), None)


def test_an_answer_is_kept_only_so_long() -> None:
    state, _ = answered(waiting(6, 7, woken=True), patch(6), at=10.0)
    state, commands = decision.ticked(state, 10.019)
    assert told(commands) == []
    state, commands = decision.ticked(state, 10.02)
    assert (told(commands), state.waiters) == ([(0, "applied")], (Waiter(1, 7),))
    assert isinstance(state.call, Compare)  # the pass goes on beside it


def test_an_answer_is_kept_for_nobody_who_is_not_behind_or_did_not_come_meanwhile() -> None:
    assert told(answered(waiting(6, 7), patch(6))[1]) == [(0, "applied")]  # the other came before, and is in no hurry
    assert told(answered(waiting(6, woken=True), patch(6))[1]) == [(0, "applied")]


@pytest.mark.parametrize(
    "compared",
    [
        Compared(node(7), None, contested="of another database"),
        Compared(node(7, epoch="another"), None),
        Compared(node(7), None, is_said=True),
    ],
)
def test_those_whom_it_had_answered_are_let_go_when_the_agent_turns_out_not_to_be_ours(compared: Compared) -> None:
    state, _ = answered(waiting(6, 7, woken=True), patch(6), at=10.0)
    if compared.is_said:
        state = replace(state, held=Held("theirs", 90, OURS, 1))
    state, commands = saw(state, compared)
    assert told(commands) == [(0, "applied"), *([(1, "pending")] if compared.contested else [])]
    assert (state.shown, state.behind) == (0, True)


def test_what_an_agent_shows_that_is_not_ours_is_nothing_of_ours() -> None:
    for held in (Held("e", 8, OURS, 1), Held("e", -1), Held("other", 5, OURS, 1)):
        state, commands = decision.saw(waiting(6), 10.0, Compare(held, 8, is_fresh=True), Compared(node(7), None))
        assert (state.shown, told(commands)) == (0, []), held
    state, commands = decision.saw(waiting(6), 10.0, Compare(Held("e", 0, OURS, 1), 0), Compared(node(7), patch(7)))
    assert state.call is not None and state.wanted == 7


def test_it_is_behind_as_long_as_somebody_waits_for_more_than_the_database_shows() -> None:
    assert saw(waiting(6, 9), Compared(node(7), patch(7)))[0].wanted == 9
    restored, _ = saw(resting(wanted=9, shown=0, held=Held("e", 0, OURS, 1)), Compared(node(0, 0), patch(0, 0)))
    assert (restored.wanted, restored.behind) == (0, False)


def test_what_another_gateway_sent_is_told_and_nothing_is_sent() -> None:
    held = Held("e", 6, OURS, 1)
    state, commands = decision.saw(waiting(6), 10.0, Compare(held, 6), Compared(node(6, 6), patch(6)))
    assert (told(commands), state.call, state.waiters) == ([(0, "applied")], None, ())
    state, commands = decision.saw(waiting(6, held=held), 10.0, Compare(held, 5), Compared(node(6, 6), patch(6)))
    assert (told(commands), state.status_due) == ([], 10.05)  # its kernel is slow: looked at again soon


def test_a_refusal_is_heard_by_whom_it_concerns() -> None:
    state = resting(waiters=(Waiter(0, 6, (1,)), Waiter(1, 6, (2,))), wanted=6)
    call, sent = Send(10.0, node(6), None, None), replace(patch(6), remove_accounts=(1, 2))
    refusal, of_node = Failure(1, "a1", "no room"), Failure(0, "", "no uplink")
    applied = Applied("failed", "e", 6, (refusal,), OURS)
    after, commands = decision.answered(state, 10.0, call, sent, applied)
    assert told(commands) == [(0, "failed"), (1, "applied")]
    assert after.status == replace(STATUS, revision=6, applied_revision=6, failures=(refusal,))
    assert (WARNING, "event=failed subject=a1 reason='no room'") in said(commands)
    assert told(decision.came(after, Waiter(2, 6, (1,)))[1]) == [(2, "failed")]
    _, commands = decision.answered(state, 10.0, call, sent, replace(applied, failures=(of_node,)))
    assert (WARNING, "event=failed subject=node reason='no uplink'") in said(commands)


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_a_status_is_read_when_it_is_due_and_after_anything_odd() -> None:
    assert decision.ticked(resting(rests_until=(10.0, 10.9)), 10.9)[0].call == Compare(HOLDS, 5)
    state, _ = decision.ticked(resting(), 11.0)
    assert (state.call, state.held) == (Ask(), None)  # in case it does not answer
    assert decision.ticked(resting(held=None), 11.0)[0].call == Ask()
    state, _ = decision.told(state, 11.0, STATUS, 0.9)
    assert (state.call, state.held, state.status) == (Compare(HOLDS, 5, is_fresh=True), HOLDS, STATUS)
    assert state.status_due == 12.8


def asked(**changes: object) -> Step:
    """A status arrives that is what the node's row says."""
    state = resting(held=None, call=Ask(), row=Row(node(), OURS))
    return decision.told(replace(state, **changes), 11.0, STATUS, 0.9)  # type: ignore[arg-type]


def test_an_agent_that_holds_just_what_its_row_says_costs_the_database_nothing() -> None:
    state, commands = asked(trouble=decision.Trouble("away", True, 0.4), wanted=9, shown=3, contested="theirs")
    assert (state.call, state.held, state.next_pass, said(commands)) == (None, HOLDS, 12.8, [(INFO, "event=back")])
    assert (state.wanted, state.shown, state.contested) == (5, 5, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"row": None},
        {"row": Row(node(6, 5), OURS)},
        {"row": Row(node(5, 4), OURS)},  # not written down yet
        {"row": Row(node(5, 5, "another"), OURS)},
        {"row": Row(node(), replace(OURS, mark=8))},
        {"waiters": (Waiter(1, 6),)},
        {"woken": True},
    ],
)
def test_any_other_agent_is_compared(changes: dict[str, object]) -> None:
    assert asked(**changes)[0].call == Compare(HOLDS, 5, is_fresh=True)


def test_what_another_process_commits_shows_in_the_row_and_wakes() -> None:
    assert decision.read(resting(), Row(node(6), OURS))[0].woken
    assert not decision.read(resting(), Row(node(5), OURS))[0].woken
    assert not decision.read(resting(held=None), Row(node(6), OURS))[0].woken  # in trouble it has its own pace
    state, _ = decision.read(resting(held=None, call=Ask()), Row(node(), OURS))
    assert decision.told(state, 11.0, STATUS, 0.9)[0].call is None  # it holds just that


def test_a_task_that_begins_anew_waits_for_no_answer_of_before() -> None:
    state, _ = decision.began(resting(call=Compare(HOLDS, 5), woken=True, stale=2), 10.0)
    assert (state.call, state.held, state.woken, state.stale) == (Ask(), None, False, 0)


def test_it_rests_until_it_is_woken_or_due() -> None:
    assert decision.ticked(resting(), 10.99)[0].call is None
    state, _ = decision.woken(resting())
    assert decision.ticked(state, 9.99)[0].call is None
    state, _ = decision.ticked(state, 10.0)
    assert (state.call, state.woken) == (Compare(HOLDS, 5), False)
    assert decision.ticked(state, 99.0) == (state, ())  # one call at a time


def test_a_patch_goes_unless_it_is_too_large_or_was_refused() -> None:
    sent = {}
    for changes, is_due in ((10_000, False), (10_001, False), (1, True)):
        state, _ = saw(resting(snapshot_due=is_due), Compared(node(6), patch(6, changes)), 10.3)
        assert isinstance(state.call, Send)
        assert (state.call.at, state.call.node, state.call.replaces) == (10.3, node(6), None)
        sent[changes] = state.call.patch is not None
    assert sent == {10_000: True, 10_001: False, 1: False}


@pytest.mark.parametrize(
    "compared",
    [
        Compared(node(7), None),  # another gateway sent what it lacks, and its tombstones are gone
        Compared(node(20_000), patch(20_000, 10_001)),
        Compared(node(7), None, contested="of another database"),
        Compared(node(7), None, is_said=True),
    ],
)
def test_nothing_but_a_patch_is_decided_from_memory(compared: Compared) -> None:
    state, commands = decision.saw(waiting(6), 10.0, Compare(HOLDS, 5), compared)
    assert (state.call, state.held, commands) == (Ask(), None, ())


def test_while_another_gateway_sends_a_snapshot_it_waits_and_then_asks() -> None:
    call = Send(10.0, node(6), None, None)
    state, commands = decision.forestalled(waiting(6, call=call, woken=True), 10.0)
    assert (state.call, state.held, state.next_pass, commands) == (None, None, 10.25, ())
    assert decision.ticked(state, 10.25)[0].call == Ask()


def test_by_an_operators_word_a_snapshot_takes_the_place_of_what_the_agent_holds() -> None:
    state, _ = saw(resting(), Compared(node(9), None, is_said=True))
    assert isinstance(state.call, Send)
    assert (state.call.patch, state.call.replaces) == (None, HOLDS)


def test_an_agent_that_nobody_told_whose_state_it_holds_is_told_by_an_empty_patch() -> None:
    held = replace(HOLDS, origin=Origin())
    state, commands = saw(waiting(5, held=held), Compared(node(5), patch(5, 0)))
    assert isinstance(state.call, Send) and told(commands) == [(0, "applied")]


def test_an_answer_is_what_the_agent_holds() -> None:
    state, commands = answered(resting(snapshot_due=True), patch(6, 3))
    assert (state.held, state.shown, state.snapshot_due) == (Held("e", 6, OURS, 1), 6, False)
    assert (DEBUG, "sent=patch base=5 changes=3") in said(commands)
    state, commands = answered(resting(status=None), Snapshot(6))
    assert (state.status, state.shown) == (None, 6)
    assert (INFO, "sent=snapshot revision=6 servers=0 accounts=0") in said(commands)
    state, _ = answered(resting(status=AgentStatus("", 0, 0, True)), Snapshot(6))
    assert state.status == AgentStatus("e", 6, 6, False)


def test_what_stood_refused_stands_after_a_patch_about_others() -> None:
    failure = Failure(9, "a9", "no room")
    state = resting(status=replace(STATUS, failures=(failure,)))
    for sent, failures in ((patch(6), (failure,)), (replace(patch(6), remove_accounts=(9,)), ()), (Snapshot(6), ())):
        after, _ = answered(state, sent)
        assert after.status is not None and after.status.failures == failures


def test_an_agent_that_is_not_done_is_asked_again_soon_while_somebody_waits() -> None:
    state, commands = answered(waiting(6), patch(6), outcome="pending")
    assert (told(commands), state.shown, state.behind) == ([], 5, True)
    assert (state.status_due, state.next_pass) == (10.05, 10.05)
    state, _ = answered(resting(wanted=6), patch(6), outcome="pending")
    assert state.status_due == 11.0


# -- when it is written down, and how long it rests --------------------------------------------------------------------


def test_the_agents_word_is_written_down_when_no_call_comes_for_a_while() -> None:
    """Written at once it would stand in the next change's way."""
    state, _ = answered(waiting(6), patch(6), at=0.0, began=0.0)
    assert (state.call, state.next_pass) == (None, 0.2)
    assert saw(state, Compared(node(6), patch(6, 0)), 0.19)[0].call is None
    state, commands = saw(state, Compared(node(6), patch(6, 0)), 0.2)
    assert (state.call, commands) == (Acknowledge("e", 6), ())
    state, _ = decision.noted(state, 10.26)
    assert (state.call, state.next_pass) == (None, 11.0)


def test_the_agents_word_is_written_down_at_once_when_much_hangs_on_it() -> None:
    assert answered(resting(), patch(1_004), acked=5)[0].call is None
    assert answered(resting(), patch(1_005), acked=5)[0].call == Acknowledge("e", 1_005)
    call = Send(10.0, node(6, 6, epoch=""), None, None)
    state, _ = decision.answered(resting(), 10.0, call, Snapshot(6), Applied("applied", "e", 6, (), OURS))
    assert state.call == Acknowledge("e", 6)


def test_what_is_written_down_already_is_not_written_again() -> None:
    state, _ = saw(resting(), Compared(node(5), patch(5, 0)))
    assert (state.call, state.next_pass) == (None, 11.0)
    assert saw(resting(status_due=99.0), Compared(node(5), patch(5, 0)))[0].next_pass == 12.0


@pytest.mark.parametrize(
    ("changes", "took", "breath"), [(1, 0.1, 0.0), (2, 0.1, 0.01), (2, 0.5, 0.02), (0, 0.1, 0.0)], ids=str
)
def test_after_a_call_for_several_it_takes_a_breath(changes: int, took: float, breath: float) -> None:
    """Those who were answered together ask again together: the first shall take the rest along."""
    state, _ = answered(waiting(6), patch(6, changes), at=10.0, began=10.0 - took)
    state, _ = decision.came(state, Waiter(9, 7))
    assert state.next_pass == pytest.approx(10.0 + breath)
    state, _ = decision.ticked(state, state.next_pass)
    assert (state.breath, isinstance(state.call, Compare)) == (0.0, True)


def test_after_a_snapshot_it_takes_a_breath_too_and_none_while_somebody_waits() -> None:
    state, _ = answered(resting(), Snapshot(6), at=10.0, began=9.9)
    assert state.rests_until[0] == pytest.approx(10.01)
    state, _ = answered(waiting(6, 7, woken=True), patch(6, 2), at=10.0, began=9.9)
    assert state.next_pass == 10.0


def test_a_breath_is_never_longer_than_the_rest() -> None:
    state, _ = answered(resting(status_due=10.005), patch(6, 2), at=10.0, began=9.0)
    assert state.rests_until == (10.02, 10.02)


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_pauses_are_doubled_and_bounded_and_woken_no_earlier_than_a_quarter_of_a_second() -> None:
    state, pauses, woken = resting(held=None), [], []
    for _ in range(7):
        state, _ = failed(state, "unreachable", at=0.0)
        pauses.append(state.rests_until[1])
        woken.append(state.rests_until[0])
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert woken == [0.1, 0.2, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert decision.failed(state, 0.0, RuntimeError(), "unreachable", 1.2)[0].rests_until[1] == 2.4
    state, _ = saw(replace(state, held=HOLDS), Compared(node(5), patch(5, 0)))
    assert failed(state, "broken", at=0.0)[0].rests_until == (0.1, 0.1)  # from the start again


def test_who_goes_away_and_comes_back_is_said_once_each() -> None:
    state, commands = failed(resting(held=None), "unreachable")
    assert said(commands) == [(WARNING, "event=away reason='why'")]
    assert (state.status, state.call) == (None, None)
    state, commands = failed(state, "unreachable", reason="another")
    assert said(commands) == []
    state, _ = decision.told(state, 10.0, STATUS, 1.0)
    state, commands = saw(state, Compared(node(5), patch(5, 0)))
    assert said(commands) == [(INFO, "event=back")]
    assert said(saw(state, Compared(node(5), patch(5, 0)))[1]) == []


def test_why_it_is_away_is_known_until_it_speaks() -> None:
    error = AgentUnreachable("why", "refused")
    state, _ = decision.failed(resting(held=None), 10.0, error, "unreachable", 1.0)
    assert state.away == ("why", "refused")
    assert decision.told(state, 11.0, STATUS, 1.0)[0].away == ("", "")
    assert failed(resting(held=None), "stale")[0].away == ("why", "")


def test_an_agent_that_answers_but_takes_nothing_is_a_problem_and_not_away() -> None:
    state, commands = failed(resting(), "unreachable")
    assert (said(commands), state.held, state.status) == ([], None, STATUS)  # perhaps it is away: its status will tell
    state, _ = decision.told(state, 10.0, STATUS, 1.0)
    state, commands = failed(state, "unreachable", reason="its disk is full")
    assert said(commands) == [(ERROR, "event=not-taken reason='its disk is full'")]
    assert state.status == replace(STATUS, problem="its disk is full")
    state, _ = decision.told(state, 10.0, STATUS, 1.0)
    assert said(failed(state, "unreachable", reason="its disk is full")[1]) == []
    assert said(saw(state, Compared(node(5), patch(5, 0)))[1]) == []  # it was never away


def test_a_patch_that_is_refused_as_wrong_is_followed_by_a_snapshot() -> None:
    state, commands = failed(resting(), "refused")
    assert said(commands) == [(ERROR, "event=refused reason='why; everything is sent anew'")]
    assert (state.snapshot_due, state.held, state.rests_until) == (True, None, (10.1, 10.1))


def test_a_bug_is_said_once_with_its_traceback() -> None:
    error = RuntimeError("why")
    state, commands = decision.failed(resting(), 10.0, error, "broken", 1.0)
    assert commands == (Say(ERROR, "event=pass-failed cure='is tried again'", error),)
    assert (failed(state, "broken")[1], state.held) == ((), None)
    assert len(failed(state, "broken", reason="another")[1]) == 1


def test_what_is_contested_is_said_once_and_looked_at_again_and_again() -> None:
    state, commands = saw(resting(), Compared(node(5), None, "of another database"))
    assert said(commands) == [(ERROR, "event=contested reason='of another database'")]
    assert (state.held, state.call, state.rests_until) == (None, None, (10.25, 12.0))
    assert state.status == replace(STATUS, problem="of another database")
    assert saw(replace(state, held=HOLDS), Compared(node(5), None, "of another database"))[1] == ()


def test_nobody_waits_for_a_node_that_is_contested() -> None:
    state, commands = saw(resting(waiters=(Waiter(1, 6), Waiter(2, 7))), Compared(node(7), None, "of another database"))
    assert [c for c in commands if isinstance(c, Release)] == [Release(1, "pending"), Release(2, "pending")]
    state, commands = decision.came(state, Waiter(3, 8))
    assert (state.waiters, state.wanted, commands) == ((), 8, (Release(3, "pending"),))
    state, _ = saw(replace(state, held=HOLDS), Compared(node(8), patch(8)))  # somebody has said which side is right
    assert decision.came(state, Waiter(4, 9))[0].waiters == (Waiter(4, 9, heard=state.heard),)


def test_a_stale_agent_is_asked_anew_and_after_three_times_there_is_a_pause() -> None:
    sending = resting(call=Send(10.0, node(6), patch(6), None), trouble=decision.Trouble("away", True, 0.4))
    for stale in (0, 1):
        state, commands = failed(replace(sending, stale=stale), "stale")
        assert (state.call, state.held, state.stale) == (Ask(), None, stale + 1)
        assert said(commands) == [(INFO, "event=stale reason='why'")]
    state, commands = failed(replace(sending, stale=2), "stale")
    assert (state.call, state.held, state.next_pass, state.trouble) == (None, None, 10.25, decision.FINE)
    assert said(commands) == [(INFO, "event=stale reason='why'"), (INFO, "event=back")]
    assert said(failed(replace(sending, stale=2, trouble=decision.FINE), "stale")[1])[1:] == []
    state, _ = failed(resting(call=Ask(), held=None), "stale")  # no answer to a status
    assert (state.status, state.next_pass) == (None, 10.1)


def test_a_node_that_was_removed_a_moment_ago_is_no_trouble() -> None:
    state, commands = failed(resting(), "removed")
    assert (state, commands) == (resting(rests_until=(10.0, 12.0)), ())
