"""The pure decision of the sync in a simulated world: a database, an agent and gateways, on a clock that a test turns.

Everything between them takes time and can get lost. What may never be is checked as it happens (`Gateway.feed`); the
truth that it is checked against (which revision came after which) is kept here, not asked of what is tested.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Coroutine
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any, TypeVar

from gateway import decision, origin
from gateway.agents import AgentRefused, StaleAgent
from gateway.decision import Ask, Call, Compare, Release, Remind, Send, State, Step, Waiter
from gateway.errors import AgentUnreachable
from gateway.model import Applied, Compared, Held, Node, Origin, Patch, Snapshot
from tests.fakes.agents import FakeAgent

NODE, IDENTITY, POLL, SETTLE, WIRE, CLAIM = "n", "ours", 2.0, 2.0, 0.01, 5.0
T = TypeVar("T")


def now(call: Coroutine[Any, Any, T]) -> T:
    """What a call of the fake agent answers, that has nothing to wait for."""
    try:
        call.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


@dataclass
class Database:
    """A node's row and the marks of its revisions; the last of `history` is the present."""

    history: list[int] = field(default_factory=lambda: [0])  # marks, by revision
    horizon: int = 0
    node: Node = field(default_factory=lambda: Node(1, NODE, "unix:/a"))

    def commit(self, mark: int) -> int:
        self.history.append(mark)
        self.node = replace(self.node, revision=len(self.history) - 1)
        return self.node.revision

    def resync(self, held: Held, new: Callable[[], int]) -> None:
        """The operator's word."""
        while self.commit(new()) <= held.revision:
            pass
        self.horizon = self.node.revision
        self.node = replace(self.node, epoch="", replaces=origin.word(held))

    def compared(self, held: Held) -> Compared:
        known = 0 <= held.revision <= self.node.revision
        why = origin.contested(self.node, IDENTITY, held, self.history[held.revision] if known else None)
        if why:
            is_said = self.node.replaces == origin.word(held)
            return Compared(self.node, None, "" if is_said else why, is_said)
        if not known or held.epoch != self.node.epoch or held.revision < self.horizon:
            return Compared(self.node, None, is_said=held.is_emptied)
        if held.origin.identity and self.history[held.revision] != held.origin.mark:
            return Compared(self.node, None, is_said=held.is_emptied)
        missing = tuple(range(held.revision + 1, self.node.revision + 1))
        patch = Patch(held.epoch, held.revision, self.node.revision, remove_accounts=missing, origin=self._origin)
        return Compared(self.node, replace(patch, base_mark=self.history[held.revision]))

    def snapshot(self, server: Any) -> Snapshot:
        return Snapshot(self.node.revision, servers=(server,), origin=self._origin)

    def acknowledge(self, epoch: str, revision: int) -> None:
        held = max(self.node.acknowledged, revision) if epoch == self.node.epoch else revision
        self.node = replace(self.node, epoch=epoch, acknowledged=min(held, self.node.revision))

    @property
    def row(self) -> origin.Row:
        return origin.Row(self.node, self._origin)

    @property
    def _origin(self) -> Origin:
        return Origin(IDENTITY, self.history[-1], NODE)


class Gateway:
    """A decision, its callers, and its one call in flight."""

    def __init__(self, world: World) -> None:
        self.state = State(POLL)
        self.waiting: dict[int, int] = {}  # waiter -> the mark of the revision that it waits for
        self.outcomes: list[str] = []
        self._world = world
        self._in_flight: Call | None = None
        self._compared = Held("", -1)
        self._alarm = -1.0
        self._failures = 0
        self._failed_at: float | None = None
        self._launched: list[type[Call]] = []
        self._spoke_at = self._in_vain_at = -1.0  # the agent last; and who last waited to the end without a word
        self.feed(lambda state: decision.began(state, world.at))
        world.later(0.0, self._read)

    def feed(self, event: Callable[[State], Step]) -> None:
        self.state, commands = event(self.state)
        for command in commands:
            match command:
                case Release(number, "pending"):
                    in_vain = self._in_vain_at > self._spoke_at
                    assert in_vain or self.state.contested, "pending at once, and nobody had waited in vain"
                    self.waiting.pop(number)
                    self.outcomes.append("pending")
                case Release():
                    mark = self.waiting.pop(command.number)
                    assert mark in self._world.seen, "success, and the agent never showed it"
                    self.outcomes.append(command.outcome)
                case Remind():
                    self._world.when(command.at, self.tick)
        assert {who.number for who in self.state.waiters} == set(self.waiting), "a waiter is left behind"
        if self._in_flight is not None:
            assert self.state.call is self._in_flight, "a second call"
        elif self.state.call is not None:
            self._launch(self.state.call)
        elif self._alarm != self.state.next_pass:
            self._alarm = self.state.next_pass
            self._world.when(self._alarm, self.tick)

    def tick(self) -> None:
        if self in self._world.gateways:
            self.feed(lambda state: decision.ticked(state, self._world.at))

    def _read(self) -> None:
        """The rows of all nodes, every few seconds."""
        if self not in self._world.gateways:
            return
        row = self._world.database.row
        self._world.later(WIRE, lambda: self.feed(lambda state: decision.read(state, row)))
        self._world.later(POLL, self._read)

    def wait(self, revision: int, mark: int) -> None:
        """A caller, with the patience that callers have."""
        number = next(self._world.numbers)
        self.waiting[number] = mark
        self.feed(lambda state: decision.came(state, Waiter(number, revision)))
        self._world.later(SETTLE, lambda: self._leave(number))

    def _leave(self, number: int) -> None:
        if self.waiting.pop(number, None) is not None:
            self.outcomes.append("pending")
            if self._world.at - SETTLE >= self._spoke_at:
                self._in_vain_at = self._world.at
            self.feed(lambda state: decision.left(state, number, in_vain=True))

    def _launch(self, call: Call) -> None:
        world, self._in_flight = self._world, call
        if self._failed_at is not None:
            self._check_pause(world.at - self._failed_at)
        if isinstance(call, Compare):
            self._compared = call.held
        if isinstance(call, Send):
            assert world.is_known(self._compared), "sent to an agent that is not ours"
            assert call.patch or self._launched[-2:] == [Ask, Compare], "all of it is sent, and nobody asked the agent"
        self._launched = [*self._launched[-1:], type(call)]
        world.later(WIRE, lambda: self._reach(call))

    def _check_pause(self, pause: float) -> None:
        """It grows, and is bounded; who comes meanwhile does not make it shorter than a quarter of a second."""
        least = min(0.1 * 2 ** (self._failures - 1) * 0.8, 0.25)
        assert least - 1e-6 <= pause <= 2.0 * 1.2 + 1e-6, f"a pause of {pause} after {self._failures} failures"
        self._failed_at = None

    def _reach(self, call: Call) -> None:
        """The call does what it does; its answer is on its way back."""
        if self not in self._world.gateways:
            return  # it died with its calls
        event = self._world.made(call, self)
        self._world.later(WIRE, lambda: self._answer(event))

    def _answer(self, event: Callable[[State], Step]) -> None:
        if self not in self._world.gateways:
            return
        if isinstance(self._in_flight, Ask | Send) and not isinstance(event, Failure | Forestalled):
            self._spoke_at = self._world.at
        self._in_flight = None
        if isinstance(event, Failure) and not event.is_stale:
            self._failures, self._failed_at = self._failures + 1, self._world.at
        self.feed(event)
        is_over = not isinstance(event, Failure) or event.is_stale
        if is_over and self.state.call is None and not (self.state.status and self.state.status.problem):
            self._failures = 0  # a pass went well


class World:
    def __init__(self, server: Any, seed: int = 0) -> None:
        self.at, self.numbers = 0.0, count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._dice, self._server = count(), random.Random(seed), server
        self.database, self.agent = Database(), FakeAgent()
        self.lag = 0.0  # seconds that the kernel takes
        self.break_next: list[Exception] = []  # instead of an answer
        self.shows: tuple[str, int] = ("", 0)  # the epoch and revision that the kernel shows
        self.seen: set[int] = set()  # every mark that it ever showed, with those before it
        self._before: dict[int, int] = {}  # mark -> the one before it
        self.claim: tuple[Gateway | None, float] = (None, 0.0)  # of a snapshot: whose, until when
        self.gateways: list[Gateway] = []
        self.add_gateway()

    # -- time ----------------------------------------------------------------------------------------------------

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        self.when(self.at + seconds, what)

    def when(self, at: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(at, self.at), next(self._order), what))

    def advance(self, seconds: float) -> None:
        end, steps = self.at + seconds, 0
        while self._events and self._events[0][0] <= end:
            self.at, _, what = heapq.heappop(self._events)
            what()
            steps += 1
            assert steps < 20_000, "it spins"
        self.at = end

    # -- what happens --------------------------------------------------------------------------------------------

    def commit(self) -> tuple[int, int]:
        mark = self._new()
        revision = self.database.commit(mark)
        self._before[mark] = self.database.history[-2]
        return revision, mark

    def say(self) -> None:
        """The operator's word: the database is right."""
        self.database.resync(self.held, self._new)
        self._before |= dict(pairwise(reversed(self.database.history)))

    def restore(self, backup: Database) -> None:
        """The gateways stand still meanwhile."""
        self.database = replace(backup, history=list(backup.history))
        self.gateways = [Gateway(self) for _ in self.gateways]

    def add_gateway(self) -> None:
        self.gateways.append(Gateway(self))

    def restart(self, gateway: Gateway) -> None:
        self.gateways = [Gateway(self) if each is gateway else each for each in self.gateways]

    def empty_file(self) -> None:
        self.agent.lose_state()
        self.shows = (self.agent.epoch, 0)

    def older_file(self, backup: FakeAgent) -> None:
        for name in ("epoch", "revision", "needs_snapshot", "origin", "servers", "accounts"):
            setattr(self.agent, name, copy(getattr(backup, name)))
        self._show()

    def another_agent(self, whose: Origin, revision: int) -> None:
        """What it holds it shows; nothing of ours has ever been seen there."""
        self.agent.origin, self.agent.revision = whose, revision
        self.shows = (self.agent.epoch, revision)

    # -- calls ---------------------------------------------------------------------------------------------------

    def made(self, call: Call, by: Gateway) -> Callable[[State], Step]:
        """What a call does now, and the event that its answer is."""
        spread = self._dice.uniform(0.8, 1.2)
        try:
            if self.break_next:
                raise self.break_next.pop()
            match call:
                case Ask():
                    status = replace(now(self.agent.status()), applied_revision=self.shows[1])
                    return lambda state: decision.told(state, self.at, status, min(spread, 1.0))
                case Compare():
                    compared = self.database.compared(call.held)
                    return lambda state: decision.saw(state, self.at, call, compared)
                case Send() if call.patch is None and not self._claimed(call.node, by):
                    return Forestalled(self)
                case Send():
                    sent, applied = self._sent(call)
                    return lambda state: decision.answered(state, self.at, call, sent, applied)
                case _:
                    self.database.acknowledge(call.epoch, call.revision)
                    return lambda state: decision.noted(state, self.at)
        except Exception as error:
            return Failure(self, error, _kind(error), spread, isinstance(call, Send))

    def _claimed(self, known: Node, by: Gateway) -> bool:
        node, (whose, until) = self.database.node, self.claim
        is_old = (node.epoch, node.acknowledged) != (known.epoch, known.acknowledged)
        if is_old or (whose is not by and self.at < until):
            return False
        self.claim = by, self.at + CLAIM
        return True

    def _sent(self, call: Send) -> tuple[Patch | Snapshot, Applied]:
        sent: Patch | Snapshot
        if (patch := call.patch) is not None:
            sent, applied = patch, self._lagging(lambda: self.agent.patch(patch, 0))
        else:
            whole = replace(self.database.snapshot(self._server), replaces=call.replaces)
            sent, applied = whole, self._lagging(lambda: self.agent.snapshot(whole, 0))
            if self.lag:  # until its pass an agent says of nothing that it is applied
                self.shows = (self.agent.epoch, 0)
        return sent, replace(applied, outcome="pending") if self.lag else applied

    def _lagging(self, send: Callable[[], Coroutine[Any, Any, Applied]]) -> Applied:
        try:
            return now(send())
        finally:  # a lost answer is no lost change
            if self.lag:
                self.later(self.lag, self._show)
            else:
                self._show()

    def _show(self) -> None:
        self.shows = (self.agent.epoch, self.agent.revision)
        mark = self.agent.origin.mark
        while mark and mark not in self.seen:
            self.seen.add(mark)
            mark = self._before.get(mark, 0)

    def is_known(self, held: Held) -> bool:
        """Nothing, or of the database's own past; or an operator said so; or of an agent whose own disk went back."""
        ours = held.origin.identity == IDENTITY and held.origin.mark in self.database.history
        node = self.database.node
        return held.is_empty or ours or node.replaces == origin.word(held) or held.revision < node.acknowledged

    @property
    def held(self) -> Held:
        agent = self.agent
        counts = len(agent.accounts), len(agent.servers)
        return Held("", -1) if agent.needs_snapshot else Held(agent.epoch, agent.revision, agent.origin, *counts)

    def _new(self) -> int:
        return next(self.numbers) + 1_000_000


class Forestalled:
    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, state: State) -> Step:
        return decision.forestalled(state, self._world.at)


class Failure:
    def __init__(self, world: World, error: Exception, what: str, spread: float, sending: bool) -> None:
        self._world, self._error, self._what, self._spread = world, error, what, spread
        self.is_stale = what == "stale" and sending  # no failure: it is asked anew

    def __call__(self, state: State) -> Step:
        return decision.failed(state, self._world.at, self._error, self._what, self._spread)


def _kind(error: Exception) -> str:
    if isinstance(error, StaleAgent):
        return "stale"
    if isinstance(error, AgentRefused):
        return "refused"
    return "unreachable" if isinstance(error, AgentUnreachable) else "broken"
