"""PURE: what to do next about one node's agent. (state, event) -> (state, commands).

A public function is an event: what it was about is what it is given beside the state. No clock and no I/O: `at` says
when it happened (seconds of a clock that only goes forward), `spread` how the dice fell (around 1.0). `State.call` is
the one call in flight; its answer or its failure comes back as an event. Called by sync.py, whose text tells the model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from logging import DEBUG, ERROR, INFO, WARNING

from gateway.errors import AgentUnreachable
from gateway.model import AgentStatus, Applied, Compared, Failure, Held, Node, Patch, Snapshot
from gateway.origin import Row
from gateway.outcome import MOST_LOGGED, outcome, size, standing, weight

# Seconds.
FIRST_PAUSE = 0.1  # after a pass that failed; then doubled ...
LONGEST_PAUSE = 2.0  # ... up to this
WAITED_PAUSE = 0.25  # the shortest pause in trouble, however many changes come; and while another gateway sends
LONGEST_BREATH = 0.02  # after a call that carried several changes; a tenth of what it took, if that is shorter
LONGEST_HOLD = 0.02  # that an answer is kept for the next call to leave first
KERNEL_PAUSE = 0.05  # between looks at an agent whose kernel is slow, while somebody waits

STALE_TRIES = 3  # in one pass; more means that two gateways are at odds, and a pause is due
AWAY, UNSENT = "away", "unsent"  # troubles without a text: it does not tell its status; it did not take what we sent

# When the agent's word is written down: after so many seconds without another call, or so many revisions at the latest.
ACKNOWLEDGE_PAUSE = 0.2
ACKNOWLEDGE_WITHIN = 1_000

LARGEST_PATCH = 10_000  # accounts, or what is as long: 2.5 MB. A message may have 4 MB; a snapshot has no limit

# -- calls, of which one is in flight at a time; and commands ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """The agent's status."""


@dataclass(frozen=True, slots=True)
class Compare:
    """The database with what the agent holds. `shown`: the revision that its kernel shows, whosever that is.

    `is_fresh`: its status was read just before. What is remembered may be old: another gateway sends, too.
    """

    held: Held
    shown: int
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """A patch; None = a snapshot, by an operator's word in the place of what it `replaces`. `at`: when it began."""

    at: float
    node: Node
    patch: Patch | None
    replaces: Held | None


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """That the agent holds this, written down in the database."""

    epoch: str
    revision: int


@dataclass(frozen=True, slots=True)
class Release:
    number: int  # the waiter's
    outcome: str


@dataclass(frozen=True, slots=True)
class Remind:
    """Tick at this time, whatever is in flight then."""

    at: float


@dataclass(frozen=True, slots=True)
class Say:
    level: int
    text: str
    error: Exception | None = None


Call = Ask | Compare | Send | Acknowledge
Command = Release | Remind | Say

# -- state -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiter:
    number: int
    revision: int
    about: Collection[int | str] = ()  # ids of accounts and names of servers
    heard: int = 0  # how often the agent had spoken when it came


@dataclass(frozen=True, slots=True)
class Trouble:
    said: str = ""  # what went wrong in the last pass, as it was logged
    away: bool = False  # that was logged, and not yet that it is back
    pause: float = FIRST_PAUSE  # after the next failure


FINE = Trouble()


@dataclass(frozen=True, slots=True)
class State:
    """What is known of one node's agent, who waits for it, and what is done about it."""

    poll: float  # seconds between looks at an agent that has everything
    row: Row | None = None  # older than what is compared
    waiters: tuple[Waiter, ...] = ()
    wanted: int = 0  # the highest revision that we know was committed
    shown: int = 0  # the revision that the kernel of the node is known to show
    held: Held | None = None  # what the agent holds; None = read its status first
    status: AgentStatus | None = None  # what it last said of itself; None = it is away ...
    away: tuple[str, str] = ("", "")  # ... why, and that in a word; "" = it was not asked yet
    contested: str = ""  # why nothing may be sent
    status_due: float = 0.0
    snapshot_due: bool = False  # a patch was refused as wrong: what it builds on may be
    trouble: Trouble = FINE
    heard: int = 0  # how often the agent spoke
    silent: bool = False  # not a word while somebody waited, to the end: nobody waits until it speaks again
    call: Call | None = None  # in flight; None = it rests ...
    rests_until: tuple[float, float] = (0.0, 0.0)  # ... woken or not; if nobody wakes it
    woken: bool = False
    stale: int = 0  # times in this pass
    sent_at: float = 0.0
    breath: float = 0.0  # seconds before the next call
    holds_until: float | None = None  # those are kept whom the last call answered

    @property
    def behind(self) -> bool:
        return self.shown < self.wanted

    @property
    def next_pass(self) -> float:
        return self.rests_until[0 if self.woken else 1]


Step = tuple[State, tuple[Command, ...]]


# -- those who wait ----------------------------------------------------------------------------------------------------


def came(state: State, who: Waiter) -> Step:
    """Somebody waits for a revision; for an edit that was none, or one that is carried already, waits nobody."""
    if state.status is not None and who.revision <= state.shown:
        return state, (Release(who.number, outcome(_failures(state), who.about)),)
    state = replace(state, wanted=max(state.wanted, who.revision), woken=True)
    if state.silent or state.contested:  # nothing will be heard of it before somebody does something
        return state, (Release(who.number, "pending"),)
    return replace(state, waiters=(*state.waiters, replace(who, heard=state.heard))), ()


def left(state: State, number: int, in_vain: bool = False) -> Step:
    """Released or cancelled; `in_vain`: out of patience."""
    unheard = in_vain and any(who.number == number and who.heard == state.heard for who in state.waiters)
    waiters = tuple(who for who in state.waiters if who.number != number)
    return replace(state, waiters=waiters, silent=state.silent or unheard), ()


def woken(state: State) -> Step:
    """Something was committed that nobody waits for."""
    return replace(state, woken=True), ()


def read(state: State, row: Row) -> Step:
    """The node's row was. What another process committed shows in it."""
    is_new = state.held is not None and state.held.revision < row.node.revision
    return replace(state, row=row, woken=state.woken or is_new), ()


def _released(state: State) -> Step:
    """Whoever waits for what the kernel shows by now."""
    due = [who for who in state.waiters if who.revision <= state.shown]
    left = tuple(who for who in state.waiters if who.revision > state.shown)
    failures = _failures(state)
    freed = tuple(Release(who.number, outcome(failures, who.about)) for who in due)
    return replace(state, waiters=left, holds_until=None), freed


def _failures(state: State) -> tuple[Failure, ...]:
    """What stands refused, as far as we know: as the agent said it, brought up to date by what was sent since."""
    return state.status.failures if state.status is not None else ()


# -- a pass: compares, sends, acknowledges -----------------------------------------------------------------------------


def began(state: State, at: float) -> Step:
    """The node's task did. Of a call that was in flight before, nothing will be heard."""
    return _begun(replace(state, held=None), at), ()


def ticked(state: State, at: float) -> Step:
    """It is later."""
    freed: tuple[Command, ...] = ()
    if state.holds_until is not None and at >= state.holds_until:
        state, freed = _released(state)
    if state.call is None and at >= state.next_pass:
        state = _begun(state, at)
    return state, freed


def _begun(state: State, at: float) -> State:
    """It knows nothing of the agent while it asks: if that fails, it is away."""
    state = replace(state, woken=False, stale=0, breath=0.0)
    if state.held is None or at >= state.status_due:
        return replace(state, held=None, call=Ask())
    return replace(state, call=Compare(state.held, state.shown))


def told(state: State, at: float, status: AgentStatus, spread: float) -> Step:
    """The answer to Ask."""
    held, due = status.held, at + state.poll * spread
    call = Compare(held, status.applied_revision, is_fresh=True)
    state = replace(state, status=status, away=("", ""), held=held, status_due=due, call=call)
    state = replace(state, heard=state.heard + 1, silent=False)
    if state.row is None or state.waiters or state.woken or held.asks or not state.row.is_held(held):
        return state, ()
    state = replace(state, wanted=held.revision, shown=status.applied_revision, contested="")
    return _passed(state, at, state.poll)  # a quiet node costs the database nothing


def saw(state: State, at: float, call: Compare, compared: Compared) -> Step:
    """The answer to Compare."""
    node, held, freed = compared.node, call.held, tuple[Command, ...]()
    is_ours, patch = compared.patch is not None, compared.patch
    if patch is not None and (weight(patch) > LARGEST_PATCH or state.snapshot_due):
        patch = None
    if patch is None and not call.is_fresh:  # perhaps another gateway has sent what is missing, and let go of it here
        return replace(state, held=None, call=Ask()), ()
    wanted = max([node.revision, *(who.revision for who in state.waiters)])
    state = replace(state, wanted=wanted, contested=compared.contested)
    if not is_ours:
        state, freed = _released(state)  # whom an answer of before is due
    # Whatever an agent shows that is not ours, it is nothing of ours.
    state = replace(state, shown=call.shown if is_ours else 0)
    if compared.contested:  # until somebody says which side is right
        state, said = _not_taken(replace(state, held=None), "contested", compared.contested)
        in_vain = tuple(Release(who.number, "pending") for who in state.waiters)
        return _resting(replace(state, waiters=()), at, state.poll), (*freed, *in_vain, *said)
    if is_ours and held.revision == node.revision:
        state, freed = _released(state)
        # Nobody told it yet whose state it holds, or it asks whether that stands: an empty patch does.
        if held.origin.identity and not held.asks:
            state, said = _settled(state, node, held, at)
            return state, (*freed, *said)
    state = replace(state, call=Send(at, node, patch, held if compared.is_said else None))
    # Beside it, those whom the last call answered: to tell thirty of them takes as long as the agent needs for one.
    state, answered = _released(state)
    return state, (*freed, *answered)


def answered(state: State, at: float, call: Send, sent: Patch | Snapshot, applied: Applied) -> Step:
    """The answer to Send.

    The agent may hold more than we sent (from another gateway); the outcome is only about what we sent.
    """
    refusals = ((failure.subject or "node", failure.reason) for failure in applied.failures[:MOST_LOGGED])
    said = [_sent(sent), *(Say(WARNING, f"event=failed subject={who} reason={why!r}") for who, why in refusals)]
    shown = state.shown if applied.outcome == "pending" else sent.revision
    status = state.status and replace(
        state.status,
        epoch=applied.epoch,
        revision=applied.revision,
        applied_revision=shown,
        needs_snapshot=False,
        failures=standing(_failures(state), sent, applied),
    )
    # How many accounts it holds is in its status; here it is enough that it is not nothing.
    held = Held(applied.epoch, applied.revision, applied.origin, accounts=1)
    state = replace(state, shown=shown, status=status, held=held, snapshot_due=False, sent_at=at)
    state = replace(state, heard=state.heard + 1, silent=False)
    if isinstance(sent, Snapshot) or size(sent) > 1:
        state = replace(state, breath=min((at - call.at) / 10, LONGEST_BREATH))
    freed: tuple[Command, ...]
    if state.behind and state.woken:  # they are told when the next call is on its way
        until = at + LONGEST_HOLD
        state, freed = replace(state, holds_until=until), (Remind(until),)
    else:
        state, freed = _released(state)
    state, after = _settled(state, call.node, held, at)
    return state, (*said, *freed, *after)


def forestalled(state: State, at: float) -> Step:
    """The answer to Send, instead: another gateway sends it a snapshot, or has just done so. It is looked at again."""
    soon = at + WAITED_PAUSE
    return replace(state, call=None, held=None, rests_until=(soon, soon)), ()


def noted(state: State, at: float) -> Step:
    """The answer to Acknowledge."""
    return _passed(state, at, state.poll)


def _settled(state: State, node: Node, held: Held, at: float) -> Step:
    """The agent holds what we know of; its word is written down unless that may wait.

    An acknowledgement only lets go of tombstones; written at once it would stand in the next change's way.
    """
    if (held.epoch, held.revision) == (node.epoch, node.acknowledged):
        return _passed(state, at, state.poll)
    is_fresh = at - state.sent_at < ACKNOWLEDGE_PAUSE
    if is_fresh and held.epoch == node.epoch and held.revision - node.acknowledged < ACKNOWLEDGE_WITHIN:
        return _passed(state, at, ACKNOWLEDGE_PAUSE)
    return replace(state, call=Acknowledge(held.epoch, held.revision)), ()


def _passed(state: State, at: float, seconds: float) -> Step:
    """A pass went well. Rests, for so many seconds at most."""
    if state.waiters and state.behind:
        state = replace(state, status_due=at + KERNEL_PAUSE)
    said = (Say(INFO, "event=back"),) if state.trouble.away else ()
    return _resting(replace(state, trouble=FINE), at, min(seconds, state.status_due - at)), said


def _resting(state: State, at: float, seconds: float) -> State:
    # Those who were just answered together ask again together: the first shall take the rest along.
    least = 0.0 if state.behind else state.breath
    if state.trouble.said:  # a storm of changes is no reason to try much more often
        least = min(seconds, WAITED_PAUSE)
    return replace(state, call=None, rests_until=(at + least, at + max(least, seconds)))


def _sent(sent: Patch | Snapshot) -> Say:
    if isinstance(sent, Patch):
        return Say(DEBUG, f"sent=patch base={sent.base} changes={size(sent)}")
    counts = f"servers={len(sent.servers)} accounts={len(sent.accounts)}"
    return Say(INFO, f"sent=snapshot revision={sent.revision} {counts}")


# -- trouble -----------------------------------------------------------------------------------------------------------


def failed(state: State, at: float, error: Exception, what: str, spread: float) -> Step:
    """The call did. `what`: "stale" (it holds another revision), "refused", "unreachable", "removed" (the node) or
    "broken" (we are)."""
    reason = str(error)
    if what == "removed":  # a moment ago: its task is about to be cancelled
        return _resting(state, at, state.poll), ()
    if what == "stale" and isinstance(state.call, Send):
        return _was_stale(state, at, reason)
    said: tuple[Command, ...]
    if what == "refused":
        state = replace(state, snapshot_due=True)
        state, said = _not_taken(state, "refused", f"{reason}; everything is sent anew")
    elif what == "broken":
        line = Say(ERROR, "event=pass-failed cure='is tried again'", error)
        state, said = _said(state, repr(error), line)
    elif state.held is None:
        away = (reason, error.cause if isinstance(error, AgentUnreachable) else "")
        state = replace(state, status=None, away=away, trouble=replace(state.trouble, away=True))
        state, said = _said(state, AWAY, Say(WARNING, f"event=away reason={reason!r}"))
    elif not state.trouble.said:
        state, said = replace(state, trouble=replace(state.trouble, said=UNSENT)), ()
    else:
        state, said = _not_taken(state, "not-taken", reason)
    pause = state.trouble.pause
    state = replace(state, held=None, trouble=replace(state.trouble, pause=min(pause * 2, LONGEST_PAUSE)))
    return _resting(state, at, pause * spread), said


def _was_stale(state: State, at: float, reason: str) -> Step:
    line = Say(INFO, f"event=stale reason={reason!r}")
    state = replace(state, held=None, stale=state.stale + 1)
    if state.stale < STALE_TRIES:
        return replace(state, call=Ask()), (line,)
    said = (Say(INFO, "event=back"),) if state.trouble.away else ()
    return _resting(replace(state, trouble=FINE), at, WAITED_PAUSE), (line, *said)


def _not_taken(state: State, event: str, reason: str) -> Step:
    if state.status is not None:
        state = replace(state, status=replace(state.status, problem=reason))
    return _said(state, reason, Say(ERROR, f"event={event} reason={reason!r}"))


def _said(state: State, trouble: str, line: Say) -> Step:
    """Each trouble is said once."""
    is_new = trouble != state.trouble.said
    return replace(state, trouble=replace(state.trouble, said=trouble)), (line,) if is_new else ()
