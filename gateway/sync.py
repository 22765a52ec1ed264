"""Makes every agent's desired state equal to the database: the only sender of state.

Model. Each node has a revision in the database, and its agent holds one: (epoch, revision). The epoch is the identity
of the agent's state file. One loop task for each node compares the two and sends what is missing, again and again;
that is all. There is no queue of changes: what to send is read from the database at the moment of sending,
"everything since what the agent says it holds". So a lost answer, a restart of either side or a second gateway needs
no thought: the next comparison shows what is left.

What is sent. The agent's epoch is the one we know and its revision is ours: nothing (it is acknowledged). Behind: a
patch. Unknown epoch, an agent that holds nothing, or a revision so old that its tombstones are gone: a snapshot. What
this database never gave to this node (gateway/origin.py): nothing at all, loudly, until an operator says which side is
right. What the agent said last is remembered, so that a change costs one call; every few seconds, and after anything
odd, its status is read anew.

Order. An agent's status is read before what it is compared with, never after: everything an agent can hold was
committed first, so "ahead of us" cannot be another gateway's fresh commit. The rows of all nodes are read together
every few seconds; an agent that holds just what its row says is not compared at all, so a quiet node costs the database
nothing. One call with changes is in flight per node. Callers that
commit meanwhile wait for the next one, which carries all of them (group commit): a thousand waiters cost a few
patches. The next call leaves before those are told whom the last one answered, so the agent does not wait for them.

Several gateways may do this to one agent at once. A patch that brings nothing new is answered like the first time;
one that starts where the agent is not is refused as stale, and its status is read again. So is a snapshot that was
overtaken by a newer patch: it is older than what the agent holds. Nothing but a patch is sent to an agent as it is
remembered: its status is read once more first. And a snapshot is claimed (gateway/store/claims.py), so that two
gateways that start together do not both send all of them; whose snapshot does not get through gives the claim back.
That saves work and guards nothing.

Failure. The commit was the decision; nothing here can undo it. A waiter gets "applied", "failed" (durable, but the
kernel refused some of it; the agent tries again) or, at its deadline, "pending"; never an exception. An agent that is
away is tried with a growing, bounded pause; one line is logged when it goes and one when it is back. Any other error
of one pass is logged once with its traceback and the pass is tried again. An error outside the passes is a bug and
ends the process. Once a caller has waited in vain, and the agent has not said a word meanwhile, those who come after it
hear "pending" at once, until the agent speaks.

Concurrency. Everything runs on one loop. What to do is decided in gateway/decision.py, purely; here are the calls, the
clock and the callers. A node's task makes one call after the other; who comes and goes meanwhile is an event too.
Changes that other processes commit (another gateway, the command line) show in the rows.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from gateway import decision
from gateway.agents import AgentRefused, StaleAgent
from gateway.condition import Report
from gateway.decision import Ask, Call, Compare, Release, Remind, Say, Send, State, Step, Waiter
from gateway.errors import AgentUnreachable, DatabaseUnavailable, NotFound
from gateway.store import changes, claims
from gateway.store import nodes as node_rows
from gateway.store.servers import Touched

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.model import AgentStatus, Node, Patch
    from gateway.store import Store, Transaction

log = logging.getLogger(__name__)

Event = Callable[[State], Step]

POLL_SECONDS = 2.0  # between looks at an agent that has everything
# Snapshots of one gateway at a time: to read one keeps the loop busy, to send one waits for the link and the kernel.
READ_AT_ONCE = 2
SENT_AT_ONCE = 16
# A snapshot is one gateway's for so long: what it takes, mostly. When that gateway has died, another one sends it then.
CLAIM_SECONDS = 5.0
SNAPSHOT = "snapshot"

# What the decision hears of an error; the first that fits. Any other is "broken".
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (NotFound, "removed"),
    (StaleAgent, "stale"),
    (AgentRefused, "refused"),
    (AgentUnreachable, "unreachable"),
)


class Sync:
    """The loops of all nodes. `run` must be running for anything to be sent."""

    def __init__(
        self, store: Store, agents: Agents, settle_seconds: float = 2.0, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store = store
        self._poll_seconds = poll_seconds
        self._shared = _Shared(store, agents, settle_seconds, poll_seconds)
        self._loops: dict[str, _NodeLoop] = {}
        self._look = asyncio.Event()  # a node that we have no task for

    async def settled(self, node: str, revision: int, about: Collection[int | str] = ()) -> str:
        """Waits for a committed revision to be in the node's kernel: "applied", "failed"; at the deadline "pending".

        `about`: ids of accounts and names of servers; what fails for others is not this caller's failure.
        """
        return await self._loop(node).settled(revision, about)

    async def all_settled(self, touched: Touched) -> list[str]:
        """Waits for these servers to be so on every node; the names of those that are behind. See `settled`."""
        waits = (self.settled(node, revision, of.values()) for node, (revision, of) in touched.items())
        outcomes = await asyncio.gather(*waits)
        return [node for node, outcome in zip(touched, outcomes, strict=True) if outcome != "applied"]

    def wake(self, node: str) -> None:
        """Something was committed for this node that nobody waits for."""
        if loop := self._loops.get(node):
            loop.feed(decision.woken)

    def pending(self) -> list[str]:
        """Names of the nodes that have not applied all we know of, in order."""
        return sorted(name for name, loop in self._loops.items() if loop.state.behind)

    def statuses(self) -> dict[str, AgentStatus | None]:
        """What each agent last said of itself; None = it is away."""
        return {name: loop.state.status for name, loop in sorted(self._loops.items())}

    def absent(self) -> set[str]:
        """Names of the nodes that are known to be away: nobody need wait for them. One that nobody has asked yet is
        none of them."""
        return {name for name, loop in self._loops.items() if loop.state.silent or loop.state.trouble.away}

    def reports(self) -> dict[str, Report]:
        """What is known of each agent."""
        states = {name: loop.state for name, loop in self._loops.items()}
        return {name: Report(one.status, *one.away, one.contested) for name, one in states.items()}

    async def run(self) -> None:
        """Runs one loop task for each node, for ever. Nodes come and go at run time."""
        self._shared.agents.when_back(self.wake)
        tasks: dict[str, asyncio.Task[None]] = {}
        failed = False
        async with asyncio.TaskGroup() as group:
            while True:
                self._look.clear()
                try:
                    rows = {row.node.name: row for row in await self._store.read(changes.rows)}
                    self._shared.agents.keep([row.node for row in rows.values()])
                    names, failed = set(rows), False
                except Exception:
                    if not failed:
                        log.exception("event=nodes-unreadable cure='looks again every few seconds'")
                    failed, names, rows = True, set(tasks), {}
                for name, row in rows.items():
                    self._loop(name).feed(partial(decision.read, row=row))
                for name in names - tasks.keys():
                    tasks[name] = group.create_task(self._loop(name).run(), name=f"sync {name}")
                for name in tasks.keys() - names:
                    tasks.pop(name).cancel()
                for name in [
                    name for name, loop in self._loops.items() if name not in names and not loop.state.waiters
                ]:
                    del self._loops[name]
                await _woken(self._look, self._poll_seconds)

    def _loop(self, node: str) -> _NodeLoop:
        if node not in self._loops:
            self._look.set()  # before it has its row it has no task
            self._loops[node] = _NodeLoop(node, self._shared)
        return self._loops[node]


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the loops of one gateway have in common."""

    store: Store
    agents: Agents
    settle_seconds: float
    poll_seconds: float
    holder: str = field(default_factory=lambda: secrets.token_hex(8))  # of claims
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READ_AT_ONCE))
    sending: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SENT_AT_ONCE))


class _NodeLoop:
    """One node: the state of its decision, the call in flight, and the futures of those who wait."""

    def __init__(self, name: str, shared: _Shared) -> None:
        self.state = State(shared.poll_seconds)
        self._name = name
        self._shared = shared
        self._store = shared.store
        self._agents = shared.agents
        self._fed = asyncio.Event()
        self._numbers = count()
        self._waiting: dict[int, asyncio.Future[str]] = {}

    async def settled(self, revision: int, about: Collection[int | str]) -> str:
        """The outcome of a revision for a caller: "applied", "failed"; at the deadline "pending"."""
        number = next(self._numbers)
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        self.feed(partial(decision.came, who=Waiter(number, revision, about)))
        in_vain = False
        try:
            async with asyncio.timeout(self._shared.settle_seconds):
                return await waiter
        except TimeoutError:
            in_vain = True
            return "pending"
        finally:
            del self._waiting[number]
            self.feed(partial(decision.left, number=number, in_vain=in_vain))

    async def run(self) -> None:
        self.feed(partial(decision.began, at=_now()))
        while True:
            if self.state.call is not None:
                self.feed(await self._answer(self.state.call))
            else:
                self._fed.clear()
                await _woken(self._fed, self.state.next_pass - _now())
                self.feed(partial(decision.ticked, at=_now()))

    def feed(self, event: Event) -> None:
        self.state, commands = event(self.state)
        self._fed.set()
        loop = asyncio.get_running_loop()
        for command in commands:
            match command:
                case Release():  # a turn of the loop later: a call that was decided beside it leaves first
                    loop.call_soon(self._release, command)
                case Remind():
                    loop.call_at(command.at, self.feed, partial(decision.ticked, at=command.at))
                case Say():
                    log.log(command.level, "node=%s %s", self._name, command.text, exc_info=command.error)

    def _release(self, command: Release) -> None:
        waiter = self._waiting.get(command.number)
        if waiter is not None and not waiter.done():
            waiter.set_result(command.outcome)

    async def _answer(self, call: Call) -> Event:
        """Makes the call; what it says, or how it failed. Cannot fail itself."""
        try:
            return await self._called(call)
        except Exception as error:
            what = next((what for kind, what in FAILURES if isinstance(error, kind)), "broken")
            return partial(decision.failed, at=_now(), error=error, what=what, spread=random.uniform(0.8, 1.2))

    async def _called(self, call: Call) -> Event:
        match call:
            case Ask():
                assert self.state.row is not None, "it has a row before it has a task"
                node = self.state.row.node
                status = await self._agents.status(node)
                if (mtu := status.tunnel_mtu) not in (0, node.tunnel_mtu):
                    await self._store.change(lambda tx: node_rows.note_tunnel_mtu(tx, self._name, mtu))
                spread = random.uniform(0.8, 1.0)  # so that nodes are not asked in step
                return partial(decision.told, at=_now(), status=status, spread=spread)
            case Compare():
                compared = await self._store.read(lambda tx: changes.compared(tx, self._name, call.held))
                return partial(decision.saw, at=_now(), call=call, compared=compared)
            case Send(patch=patch):
                return await (self._patched(call, patch) if patch is not None else self._replaced(call))
            case _:
                await self._store.change(lambda tx: changes.acknowledge(tx, self._name, call.epoch, call.revision))
                return partial(decision.noted, at=_now())

    async def _patched(self, call: Send, patch: Patch) -> Event:
        applied = await self._agents.patch(call.node, patch, self._settle_ms)
        return partial(decision.answered, at=_now(), call=call, sent=patch, applied=applied)

    async def _replaced(self, call: Send) -> Event:
        async with self._shared.sending:
            if not await self._store.change(partial(self._claimed, call.node)):
                return partial(decision.forestalled, at=_now())
            async with self._shared.reading:
                snapshot = await self._store.read(lambda tx: changes.snapshot(tx, self._name))
            sent = replace(snapshot, replaces=call.replaces)
            try:
                applied = await self._agents.snapshot(call.node, sent, self._settle_ms)
            except AgentUnreachable:
                await self._give_way(call.node)
                raise
        return partial(decision.answered, at=_now(), call=call, sent=sent, applied=applied)

    async def _give_way(self, node: Node) -> None:
        """It did not get through from here, over a path that takes short calls perhaps; from there it may."""
        with suppress(DatabaseUnavailable):  # then the claim runs out
            await self._store.change(lambda tx: claims.give_back(tx, SNAPSHOT, node.id, self._shared.holder))

    async def _claimed(self, known: Node, tx: Transaction) -> bool:
        """False: another gateway sends a snapshot, or one has been taken since the node was compared."""
        node = await node_rows.found(tx, known.name)
        if (node.epoch, node.acknowledged) != (known.epoch, known.acknowledged):
            return False
        return await claims.take(tx, SNAPSHOT, node.id, self._shared.holder, CLAIM_SECONDS)

    @property
    def _settle_ms(self) -> int:
        return round(self._shared.settle_seconds * 1000)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _woken(event: asyncio.Event, seconds: float) -> None:
    """Returns when somebody sets the event, or after so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
