"""The loop that makes Linux equal to the desired state, and keeps it so.

Model. There is one desired state, one revision, one loop. RPC handlers, timers and the link watcher never touch the
kernel; they change the desired state or ask for a resync, and wake the loop. A pass looks either at the accounts that
changed (when the last reading can be trusted and no server changed) or at everything.

Order. The order inside a pass is steps.py's. Between passes: whatever was asked for while one ran is taken together
by the next (a thousand changes cost a few passes). A revision is *applied* when a pass that started after it was
accepted has ended.

Failure. A pass that could not read, or in which Linux refused something, is followed by a full one: after one second
at first, then at doubling intervals up to the resync interval. What was refused is in the status until a pass succeeds.
Who is switched off by a change that the disk does not take is cut off all the same: the gateway holds that change and
sends it again. Nobody is let in before it is written; a restart meanwhile lets those back in until the gateway's call.
While there is no desired state at all (a new or a broken file) the kernel is left exactly as it is until a snapshot
arrives. A bug (any other exception) ends the process: it is started again, and the first pass repairs.

Drift. A difference that a full pass finds, once the kernel was right, in something that nobody asked to change. It is
repaired, counted and logged in one line a pass.

Concurrency. Everything here runs on one event loop, except what is handed to the writer thread: passes and samples,
one at a time. Accepting a change needs the store only, so it is durable while a long pass still runs. Every wait of a
caller has a deadline; running out of it means "pending", never "lost".
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Protocol, TypeVar

from agent import garbage
from agent.desired import Desired, Patch, Snapshot
from agent.errors import BrokenStore, KernelError, StaleRevision, StoreError
from agent.origin import NOBODY
from agent.report import Report
from agent.status import Failure, Outcome, Settled, Status, of_accounts
from agent.writer import Writer

T = TypeVar("T")

log = logging.getLogger("agent.reconcile")

FIRST_RETRY_SECONDS = 1.0
CUT_OFF = "cut off from all gateways for too long (cut_off in agent.toml): nobody is served until one calls"
LATE_SECONDS = 1.0  # a disk that takes longer is not waited for with those who are switched off
LOGGED_OBJECTS = 20  # more changes or refusals than this in one pass are only counted


class DesiredKeeper(Protocol):
    """The durable side, in agent/store.py. Each call is one transaction, durable when it returns."""

    def save_snapshot(self, desired: Desired) -> None: ...
    def save_patch(self, desired: Desired, patch: Patch) -> None: ...


class Reconciler:
    """`desired`: what the store held, None = nothing. `resync_seconds`: the longest time that drift can last.
    `about`: what of the status never changes (epoch, which WireGuard, which marks)."""

    def __init__(
        self,
        writer: Writer,
        keeper: DesiredKeeper,
        writer_thread: Executor,
        *,
        desired: Desired | None,
        resync_seconds: float,
        clock: Callable[[], float],
        about: Status,
    ) -> None:
        self._writer = writer
        self._keeper = keeper
        self._thread = writer_thread
        self._epoch = about.epoch
        self._desired = desired
        self._resync_seconds = resync_seconds
        self._clock = clock
        self._accepting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._sampling = asyncio.Lock()
        self._next_sample: asyncio.Task[None] | None = None
        self._passed = asyncio.Condition()
        self._touched: set[int] = set()  # accounts changed since the last pass began
        self._touched_servers = False
        self._leaving: frozenset[int] = frozenset()  # whom the change that is being written switches off
        self._cut: frozenset[int] = frozenset()  # switched off by a change that is not written yet
        self._asks = False  # nobody is served before a gateway has said that what is held stands
        self._missed: dict[str, str] = {}  # what could not be written, and why
        self._full_due = True
        self._retry_seconds = 0.0
        self._failures: dict[tuple[int, str], Failure] = {}
        self._generation, self._applied_generation = 1, 0  # counts what was accepted; revisions may go back
        self._snapshot_generation = 0  # of the last snapshot
        self._said: set[Failure] = set()  # refusals that are in the log already
        self._trouble = ""  # what the last full pass saw of others that is a problem of the node
        self._was_right = False  # has a full pass succeeded yet; before that, differences are no drift
        self._status = about

    # -- what others may ask --

    @property
    def desired(self) -> Desired | None:
        return self._desired

    def status(self) -> Status:
        desired = self._desired
        is_of_this = self._applied_generation >= self._snapshot_generation  # else of a state that may be gone
        problems = (self._status.problem, *self._missed.values(), CUT_OFF if self._asks else "")
        return replace(
            self._status,
            revision=desired.revision if desired else 0,
            applied_revision=self._status.applied_revision if is_of_this else 0,
            needs_snapshot=desired is None,
            failures=tuple(self._failures.values()),
            problem="; ".join(dict.fromkeys(filter(None, problems))),
            asks=self._asks,
            accounts=len(desired.accounts) if desired else 0,
            servers=len(desired.servers) if desired else 0,
            time_zone=desired.time_zone if desired else "",
            origin=desired.origin if desired else NOBODY,
            time=self._clock(),
            counted_download=self._writer.counted.download,
            counted_upload=self._writer.counted.upload,
        )

    def certified(self, until: int) -> None:
        """What gateways on other hosts are shown holds until then (Unix seconds): for the status."""
        self._status = replace(self._status, certificate_expires=until)

    async def accept_patch(self, patch: Patch, settle_seconds: float) -> Settled:
        """Makes a patch durable, then waits for the kernel. Raises StaleRevision, InvalidValue, StoreError."""
        # Shielded: a caller who hangs up must not leave the disk ahead of the memory.
        generation = await asyncio.shield(self._take_patch(patch))
        # An account needs its server: what failed for the one has failed for the other.
        servers = patch.server_names | {account.server for account in patch.put_accounts}
        return await self._settled(generation, settle_seconds, patch.account_ids, servers)

    async def _take_patch(self, patch: Patch) -> int:
        async with self._accepting:
            if self._desired is None:
                raise StaleRevision("this agent holds no desired state yet")
            desired = await self._saved(self._read_patch, self._desired, patch)
            answers = self._asks and patch.revision >= desired.revision  # an older word is not about what is here
            if answers or desired is not self._desired:
                self._asks = self._asks and not answers
                self._take(desired, set(patch.account_ids), answers or bool(patch.server_names))
            return self._generation

    def _read_patch(self, before: Desired, patch: Patch) -> Desired:
        """On a thread of its own: the disk takes its time, and so may a patch of thousands."""
        desired = before.patched(patch)
        if desired is not before:
            self._leaving = before.leaving(desired, patch.account_ids)
            self._keeper.save_patch(desired, patch)
        return desired

    async def accept_snapshot(self, snapshot: Snapshot, settle_seconds: float) -> Settled:
        """Makes a snapshot durable in place of what was there, then waits for the kernel. Raises like accept_patch."""
        generation, desired = await asyncio.shield(self._take_snapshot(snapshot))
        return await self._settled(generation, settle_seconds, frozenset(desired.accounts), frozenset(desired.servers))

    async def _take_snapshot(self, snapshot: Snapshot) -> tuple[int, Desired]:
        async with self._accepting:
            desired, changed = await self._saved(self._read_snapshot, snapshot)
            changed |= self._cut
            self._asks = False
            self._take(desired, changed, True)
            self._snapshot_generation = self._generation
            return self._generation, desired

    def _read_snapshot(self, snapshot: Snapshot) -> tuple[Desired, set[int]]:
        """On a thread of its own: ten thousand accounts take a fifth of a second, which no RPC is to wait for."""
        before = self._desired
        if before is not None:
            before.check_replaced(snapshot)
        desired = Desired.of(self._epoch, snapshot)
        self._leaving = before.leaving(desired, before.accounts) if before else frozenset()
        self._keeper.save_snapshot(desired)
        if before is None:
            return desired, set(desired.accounts)
        ids = {*desired.accounts, *before.accounts}
        return desired, {i for i in ids if before.accounts.get(i) != desired.accounts.get(i)}

    async def _saved(self, save: Callable[..., T], *arguments: object) -> T:
        """Writes a change down, on a thread of its own. Who is switched off is cut off also where the disk fails."""
        self._leaving = frozenset()
        late = asyncio.get_running_loop().call_later(LATE_SECONDS, self._cut_off)
        try:
            saved = await asyncio.to_thread(save, *arguments)
        except StoreError as error:
            self._cut_off()
            self._note("change", str(error))
            raise
        finally:
            late.cancel()
        self._note("change", "")
        return saved

    def _cut_off(self) -> None:
        """Those who are leaving, before it is written."""
        new = self._leaving - self._cut
        if new:
            log.warning("cut off before it is written accounts=%d", len(new))
            self._cut |= new
            self._touched |= new
            self._wake.set()

    def _note(self, what: str, problem: str) -> None:
        """What could not be written: in the status until it can, and in the log once."""
        if problem and problem != self._missed.get(what):
            log.error("%s missed reason=%r", what, problem)
        elif not problem and what in self._missed:
            log.info("%s written again", what)
        self._missed = {key: value for key, value in (self._missed | {what: problem}).items() if value}

    def ask_first(self) -> None:
        """Nobody is served until a patch or a snapshot says that what is held stands; see contact.py."""
        self._asks = self._touched_servers = True
        self._wake.set()

    def request_resync(self) -> None:
        """A full pass as soon as possible."""
        self._full_due = True
        self._wake.set()

    async def sample(self) -> None:
        """Takes the kernel's counters into the totals, as they are after the call. Raises KernelError, StoreError.

        Callers that come while a sample waits for its turn share it; one that has begun may have read too early.
        """
        if self._next_sample is None:
            self._next_sample = asyncio.create_task(self._sample_in_turn())
        await asyncio.shield(self._next_sample)

    async def _sample_in_turn(self) -> None:
        async with self._sampling:
            self._next_sample = None
            if self._desired is not None:
                try:
                    await self._on_writer_thread(lambda: self._writer.sample(self._current()))
                except (KernelError, StoreError) as error:
                    self._note("sample", str(error))
                    raise
                self._note("sample", "")
                self._status = replace(self._status, last_sample_time=int(self._clock()))

    # -- the loop --

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._retry_seconds or None):
                    await self._wake.wait()
            except TimeoutError:
                self._full_due = True
            self._wake.clear()
            if self._desired is not None:
                await self._pass(self._desired.without(self._desired.accounts if self._asks else self._cut))

    async def first_pass(self, seconds: float) -> None:
        """Waits until a first pass has ended, well or not, or the time is over, or there is nothing to do."""
        self._wake.set()
        async with self._passed:
            try:
                async with asyncio.timeout(seconds):
                    await self._passed.wait_for(lambda: self._desired is None or self._status.last_resync_time > 0)
            except TimeoutError:
                log.warning("first-pass slow seconds=%g", seconds)

    async def _pass(self, desired: Desired) -> None:
        generation = self._generation
        touched, servers, full = self._touched, self._touched_servers, self._full_due
        self._touched, self._touched_servers, self._full_due = set(), False, False
        known = self._writer.knows_kernel(desired)
        try:
            if touched and known:
                uplink = self._status.uplink
                report = await self._on_writer_thread(lambda: self._writer.touched(desired, touched, uplink))
                self._failures = {key: value for key, value in self._failures.items() if key[0] not in touched}
                self._ended(report, drift=0)
            if full or servers or not known:
                report = await self._on_writer_thread(lambda: self._writer.full(desired))
                garbage.keep()
                retried = bool(self._failures or self._status.problem != self._trouble)
                asked = servers or (touched and not known) or retried or not self._was_right
                self._failures = {}
                self._was_right = self._was_right or not report.failures
                self._ended(report, drift=0 if asked else len(report.changes))
                now = int(self._clock())
                self._status = replace(self._status, last_resync_time=now, last_sample_time=now)
        except BrokenStore:
            raise  # the next start puts the file aside
        except (KernelError, StoreError) as error:
            self._failed(str(error), touched, servers)
        else:
            self._applied_generation = generation
            self._status = replace(self._status, applied_revision=desired.revision, problem=self._trouble)
            self._retry_seconds = self._backed_off() if self._failures else 0.0
        async with self._passed:
            self._passed.notify_all()

    def _failed(self, problem: str, touched: set[int], servers: bool) -> None:
        """Nothing could be done: everything is still to do."""
        self._touched |= touched
        self._touched_servers |= servers
        self._full_due = True
        if problem != self._status.problem:
            log.error("pass failed problem=%r", problem)
        self._status = replace(self._status, problem=problem, last_resync_time=int(self._clock()))
        self._retry_seconds = self._backed_off()

    def _backed_off(self) -> float:
        return min(self._retry_seconds * 2 or FIRST_RETRY_SECONDS, self._resync_seconds)

    def _ended(self, report: Report, drift: int) -> None:
        self._failures.update(report.failures)
        self._log(report)
        if drift:
            log.warning("drift repaired objects=%d", drift)
            count = self._status.drift_count + drift
            self._status = replace(self._status, drift_count=count, drift_last_time=int(self._clock()))
        self._status = replace(self._status, uplink=report.uplink)
        if report.problem is not None:
            if report.problem and report.problem != self._trouble:
                log.error("problem of the node: %s", report.problem)
            self._trouble = report.problem
        if report.warnings is not None:
            for warning in report.warnings:
                if warning not in self._status.warnings:
                    log.warning("beside ours: %s", warning)
            self._status = replace(
                self._status,
                warnings=report.warnings,
                refused_connections=report.refused_connections,
                networks=report.networks,
                listening=report.listening,
                tunnel_mtu=report.tunnel_mtu,
                responder=report.responder,
            )

    def _log(self, report: Report) -> None:
        new = [failure for failure in report.failures.values() if failure not in self._said]
        for one in new[:LOGGED_OBJECTS]:
            log.error("refused account=%d subject=%s reason=%r", one.account_id, one.subject or "node", one.reason)
        if len(new) > LOGGED_OBJECTS:
            log.error("refused more=%d", len(new) - LOGGED_OBJECTS)
        self._said = self._said & set(self._failures.values()) | set(report.failures.values())
        if len(report.changes) <= LOGGED_OBJECTS:
            for change in report.changes:
                log.info("%s part=%s key=%s account=%d", change.verb, change.part, _text_of(change.key), change.owner)
        if report.changes:
            counts = Counter(f"{change.part}-{change.verb}" for change in report.changes)
            total = " ".join(f"{name}={count}" for name, count in sorted(counts.items()))
            log.info("pass failures=%d %s", len(report.failures), total)

    # -- details --

    def _take(self, desired: Desired, touched: set[int], servers: bool) -> None:
        self._desired = desired
        self._cut -= touched
        self._generation += 1
        self._touched |= touched
        self._touched_servers |= servers
        self._wake.set()

    async def _settled(
        self, generation: int, seconds: float, account_ids: frozenset[int], names: frozenset[str]
    ) -> Settled:
        async with self._passed:
            try:
                async with asyncio.timeout(seconds):
                    await self._passed.wait_for(lambda: self._applied_generation >= generation)
            except TimeoutError:
                return self._answer(Outcome.PENDING)
        failures = of_accounts(self._failures.values(), account_ids, names)
        outcome = Outcome.FAILED if failures else Outcome.APPLIED
        return self._answer(outcome, failures)

    def _answer(self, outcome: Outcome, failures: tuple[Failure, ...] = ()) -> Settled:
        held = self._current()
        return Settled(outcome, self._epoch, held.revision, failures, held.origin)

    def _current(self) -> Desired:
        assert self._desired is not None
        return self._desired

    async def _on_writer_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _text_of(key: object) -> str:
    return ":".join(map(str, key)) if isinstance(key, tuple) else str(key)
