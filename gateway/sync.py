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

Order. An agent's status is read before the node's row, never after: everything an agent can hold was committed first,
so "ahead of us" cannot be another gateway's fresh commit. One call with changes is in flight per node. Callers that
commit meanwhile wait for the next one, which carries all of them (group commit): a thousand waiters cost a few
patches. The next call leaves before those are told whom the last one answered, so the agent does not wait for them.

Several gateways may do this to one agent at once. A patch that brings nothing new is answered like the first time;
one that starts where the agent is not is refused as stale, and its status is read again. So is a snapshot that was
overtaken by a newer patch: it is older than what the agent holds.

Failure. The commit was the decision; nothing here can undo it. A waiter gets "applied", "failed" (durable, but the
kernel refused some of it; the agent tries again) or, at its deadline, "pending"; never an exception. An agent that is
away is tried with a growing, bounded pause; one line is logged when it goes and one when it is back. Any other error
of one pass is logged once with its traceback and the pass is tried again. An error outside the passes is a bug and
ends the process.

Concurrency. Everything runs on one loop. A node's state (`_NodeLoop`) is changed by its own task, except for its
waiters. Changes that other processes commit (another gateway, the command line) are found by polling.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway.agents import AgentRefused, StaleAgent
from gateway.errors import AgentUnreachable, Contested, NotFound
from gateway.model import AgentStatus, Applied, Compared, Failure, Held, Node, Patch, Snapshot
from gateway.outcome import outcome, size, standing

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.store import Store

log = logging.getLogger(__name__)

# Seconds.
POLL_SECONDS = 2.0  # between looks at an agent that has everything
FIRST_PAUSE = 0.1  # after a pass that failed; then doubled ...
LONGEST_PAUSE = 2.0  # ... up to this
WAITED_PAUSE = 0.25  # the shortest pause in trouble, however many changes come
LONGEST_BREATH = 0.02  # after a call that carried several changes; a tenth of what it took, if that is shorter
LONGEST_HOLD = 0.02  # that an answer is kept for the next call to leave first
KERNEL_PAUSE = 0.05  # between looks at an agent whose kernel is slow, while somebody waits

STALE_TRIES = 3  # in one pass; more means that two gateways are at odds, and a pause is due

# Troubles that have no text of their own.
AWAY = "away"  # it does not even tell its status
UNSENT = "unsent"  # it did not take what we sent; perhaps it is away, its status will tell

# When the agent's word is written down: after so many seconds without another call, or so many revisions at the latest.
ACKNOWLEDGE_PAUSE = 0.2
ACKNOWLEDGE_WITHIN = 1_000

LARGEST_PATCH = 10_000  # changes; about 2.5 MB at most. A message may have 4 MB; a snapshot has no limit


class Sync:
    """The loops of all nodes. `run` must be running for anything to be sent."""

    def __init__(
        self, store: Store, agents: Agents, settle_seconds: float = 2.0, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store = store
        self._agents = agents
        self._settle_seconds = settle_seconds
        self._poll_seconds = poll_seconds
        self._loops: dict[str, _NodeLoop] = {}
        self._look = asyncio.Event()  # a node that we have no task for

    async def settled(self, node: str, revision: int, about: Collection[int | str] = ()) -> str:
        """Waits for a committed revision to be in the node's kernel: "applied", "failed"; at the deadline "pending".

        `about`: ids of accounts and names of servers; what fails for others is not this caller's failure.
        """
        loop = self._loop(node)
        if loop.shows(revision):
            return loop.outcome(about)  # an edit that was none, or one that an earlier pass has carried already
        with loop.waiting(revision, about) as waiter:
            try:
                async with asyncio.timeout(self._settle_seconds):
                    return await waiter
            except TimeoutError:
                return "pending"

    def wake(self, node: str) -> None:
        """Something was committed for this node that nobody waits for."""
        if loop := self._loops.get(node):
            loop.wake()

    def pending(self) -> list[str]:
        """Names of the nodes that have not applied all we know of, in order."""
        return sorted(name for name, loop in self._loops.items() if loop.behind)

    def statuses(self) -> dict[str, AgentStatus | None]:
        """What each agent last said of itself; None = it is away."""
        return {name: loop.status for name, loop in sorted(self._loops.items())}

    async def run(self) -> None:
        """Runs one loop task for each node, for ever. Nodes come and go at run time."""
        tasks: dict[str, asyncio.Task[None]] = {}
        failed = False
        async with asyncio.TaskGroup() as group:
            while True:
                self._look.clear()
                try:
                    names = {node.name for node in await self._store.nodes()}
                    failed = False
                except Exception:
                    if not failed:
                        log.exception("event=nodes-unreadable cure='looks again every few seconds'")
                    failed, names = True, set(tasks)
                for name in names - tasks.keys():
                    tasks[name] = group.create_task(self._loop(name).run(), name=f"sync {name}")
                for name in tasks.keys() - names:
                    tasks.pop(name).cancel()
                for name in [name for name, loop in self._loops.items() if name not in names and not loop.waited_for]:
                    del self._loops[name]
                await _woken(self._look, self._poll_seconds)

    def _loop(self, node: str) -> _NodeLoop:
        if node not in self._loops:
            self._look.set()
            self._loops[node] = _NodeLoop(node, self._store, self._agents, self._settle_seconds, self._poll_seconds)
        return self._loops[node]


class _NodeLoop:
    """One node: what we know of its agent, who waits for it, and the passes that make it equal."""

    def __init__(self, name: str, store: Store, agents: Agents, settle_seconds: float, poll_seconds: float) -> None:
        self._name = name
        self._store = store
        self._agents = agents
        self._settle_ms = round(settle_seconds * 1000)
        self._poll_seconds = poll_seconds
        self._awake = asyncio.Event()
        # -> the revision that it waits for, and what it is about
        self._waiters: dict[asyncio.Future[str], tuple[int, Collection[int | str]]] = {}
        self._wanted = 0  # the highest revision that we know was committed
        self._shown = 0  # the revision that the kernel of the node is known to show
        self._holds: Held | None = None  # what the agent holds; None = read its status first
        self._status_due = 0.0  # time of the loop's clock
        self._snapshot_due = False  # a patch was refused as wrong: what it builds on may be
        self._trouble = ""  # what went wrong in the last pass, as it was logged
        self._away = False  # it was logged, and not yet that it is back
        self._pause = FIRST_PAUSE
        self._sent_at = 0.0  # when something was last sent; time of the loop's clock, as all times here
        self._breath = 0.0  # before the next call
        self.status: AgentStatus | None = None

    # -- for those who wait --------------------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        return self._shown < self._wanted

    def shows(self, revision: int) -> bool:
        """Whether an agent that is there has said so already."""
        return self.status is not None and revision <= self._shown

    @property
    def waited_for(self) -> bool:
        return bool(self._waiters)

    def wake(self) -> None:
        self._awake.set()

    def outcome(self, about: Collection[int | str]) -> str:
        """What became of these accounts and servers in what the kernel shows by now."""
        return outcome(self._failures, about)

    @contextmanager
    def waiting(self, revision: int, about: Collection[int | str]) -> Iterator[asyncio.Future[str]]:
        """A future of the outcome; the caller brings the deadline."""
        waiter: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = revision, about
        self._wanted = max(self._wanted, revision)
        self._awake.set()
        try:
            yield waiter
        finally:
            self._waiters.pop(waiter, None)

    @property
    def _failures(self) -> tuple[Failure, ...]:
        """What stands refused, as far as we know: as the agent said it, brought up to date by what was sent since."""
        return self.status.failures if self.status is not None else ()

    def _release(self) -> None:
        """Whoever waits for what the kernel shows by now."""
        for waiter, (revision, about) in list(self._waiters.items()):
            if revision <= self._shown:
                del self._waiters[waiter]
                if not waiter.done():
                    waiter.set_result(self.outcome(about))

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        while True:
            self._awake.clear()
            rest = await self._guarded_pass()
            if self._breath and not self.behind:
                # Those who were just answered together ask again together: the first shall take the rest along.
                await asyncio.sleep(self._breath)
            if self._trouble:  # a storm of changes is no reason to try much more often
                await asyncio.sleep(min(rest, WAITED_PAUSE))
                rest -= WAITED_PAUSE
            await _woken(self._awake, rest)

    async def _guarded_pass(self) -> float:
        """One pass that cannot fail; answers how many seconds to rest."""
        try:
            rest = await self._pass()
        except NotFound:
            return self._poll_seconds  # removed a moment ago: this task is about to be cancelled
        except Contested as error:
            self._contested(str(error))
            return self._poll_seconds  # until somebody says which side is right
        except AgentRefused as error:
            self._refused(str(error))
        except AgentUnreachable as error:
            self._unreachable(str(error))
        except Exception as error:
            if self._is_new_trouble(repr(error)):
                log.exception("node=%s event=pass-failed cure='is tried again'", self._name)
        else:
            if self._away:
                log.info("node=%s event=back", self._name)
            self._away, self._trouble, self._pause = False, "", FIRST_PAUSE
            return rest
        self._holds = None
        pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        return pause * random.uniform(0.8, 1.2)

    async def _pass(self) -> float:
        """Compares, sends, acknowledges: once. Answers how many seconds to rest unless somebody wakes us."""
        self._breath = 0.0
        for _ in range(STALE_TRIES):
            shown = self._shown
            if self._holds is None or _now() >= self._status_due:
                self._holds = None  # in case it does not answer
                self._holds, shown = await self._read_status()
            compared = await self._store.compared(self._name, self._holds)
            node, revision = compared.node, self._holds.revision
            self._wanted = max(node.revision, *(revision for revision, _ in self._waiters.values()), 0)
            is_ours = self._holds.epoch == node.epoch and 0 <= revision <= node.revision and not compared.contested
            if not is_ours:
                self._release()  # whom an answer of before is due
            self._shown = shown if is_ours else 0  # whatever an agent shows that is not ours, it is nothing of ours
            if compared.contested:
                raise Contested(compared.contested)
            if is_ours and revision == node.revision:
                self._release()
                if self._holds.origin.identity:
                    break  # if nobody told it yet whose state it holds: an empty patch does
            try:
                self._holds = await self._send(compared)
                break
            except StaleAgent as error:
                log.info("node=%s event=stale reason=%r", self._name, str(error))
                self._holds = None
        else:
            return WAITED_PAUSE
        pause = self._poll_seconds
        if (self._holds.epoch, self._holds.revision) != (node.epoch, node.acknowledged):
            if self._may_wait(node, self._holds):
                pause = ACKNOWLEDGE_PAUSE
            else:
                await self._store.acknowledge(self._name, self._holds.epoch, self._holds.revision)
        if self._waiters and self._shown < self._wanted:
            self._status_due = _now() + KERNEL_PAUSE
        return min(pause, self._status_due - _now())

    def _may_wait(self, node: Node, held: Held) -> bool:
        """An acknowledgement only lets go of tombstones; written at once it would stand in the next change's way."""
        fresh = _now() - self._sent_at < ACKNOWLEDGE_PAUSE
        return held.epoch == node.epoch and held.revision - node.acknowledged < ACKNOWLEDGE_WITHIN and fresh

    async def _read_status(self) -> tuple[Held, int]:
        """Asks the agent what it holds, and which revision its kernel shows. Whose revisions these are shows later."""
        node = await self._store.node(self._name)
        self.status = status = await self._agents.status(node)
        if status.tunnel_mtu not in (0, node.tunnel_mtu):
            await self._store.note_tunnel_mtu(self._name, status.tunnel_mtu)
        # Spread, so that nodes are not asked in step.
        self._status_due = _now() + self._poll_seconds * random.uniform(0.8, 1.0)
        return status.held, status.applied_revision

    async def _send(self, compared: Compared) -> Held:
        """Sends a patch, or a snapshot where there is none or it will not do; answers what the agent holds then."""
        sent: Patch | Snapshot
        node, patch = compared.node, compared.patch
        began = _now()
        # Those whom the last call answered: to tell thirty of them takes as long as the agent needs for one.
        asyncio.get_running_loop().call_soon(self._release)
        if patch is not None and size(patch) <= LARGEST_PATCH and not self._snapshot_due:
            applied = await self._agents.patch(node, sent := patch, self._settle_ms)
            log.debug("node=%s sent=patch base=%d changes=%d", self._name, patch.base, size(patch))
        else:
            sent = await self._store.snapshot(self._name)
            if compared.is_said:
                sent = replace(sent, replaces=self._holds)
            applied = await self._agents.snapshot(node, sent, self._settle_ms)
            counts = len(sent.servers), len(sent.accounts)
            log.info("node=%s sent=snapshot revision=%d servers=%d accounts=%d", self._name, sent.revision, *counts)
        self._snapshot_due = False
        self._sent_at = _now()
        if isinstance(sent, Snapshot) or size(sent) > 1:
            self._breath = min((_now() - began) / 10, LONGEST_BREATH)
        self._take(applied, sent)
        # How many accounts it holds is in its status; here it is enough that it is not nothing.
        return Held(applied.epoch, applied.revision, applied.origin, accounts=1)

    def _take(self, applied: Applied, sent: Patch | Snapshot) -> None:
        """Notes the answer to what was sent, and releases who waited for it, now or in a moment.

        The agent may hold more than we sent (from another gateway); the outcome is only about what we sent.
        """
        for failure in applied.failures:
            log.warning(
                "node=%s event=failed subject=%s reason=%r", self._name, failure.subject or "node", failure.reason
            )
        if applied.outcome != "pending":
            self._shown = sent.revision
        if self.status is not None:
            self.status = replace(
                self.status,
                epoch=applied.epoch,
                revision=applied.revision,
                applied_revision=self._shown,
                needs_snapshot=False,
                failures=standing(self._failures, sent, applied),
            )
        if self.behind and self._awake.is_set():  # they are told when the next call is on its way, see `_send`
            asyncio.get_running_loop().call_later(LONGEST_HOLD, self._release)
        else:
            self._release()

    # -- trouble -------------------------------------------------------------------------------------------------

    def _is_new_trouble(self, trouble: str) -> bool:
        self._trouble, before = trouble, self._trouble
        return trouble != before

    def _unreachable(self, reason: str) -> None:
        if self._holds is None:
            self.status, self._away = None, True
            if self._is_new_trouble(AWAY):
                log.warning("node=%s event=away reason=%r", self._name, reason)
        elif not self._trouble:
            self._trouble = UNSENT
        else:
            self._not_taken("not-taken", reason)

    def _contested(self, reason: str) -> None:
        self._holds = None
        self._not_taken("contested", reason)

    def _refused(self, reason: str) -> None:
        self._snapshot_due = True
        self._not_taken("refused", f"{reason}; everything is sent anew")

    def _not_taken(self, event: str, reason: str) -> None:
        if self.status is not None:
            self.status = replace(self.status, problem=reason)
        if self._is_new_trouble(reason):
            log.error("node=%s event=%s reason=%r", self._name, event, reason)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _woken(event: asyncio.Event, seconds: float) -> None:
    """Returns when somebody sets the event, or after so many seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
