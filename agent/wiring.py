"""Builds the real objects and starts the tasks. The only file that knows all the others.

One asyncio loop, one TaskGroup. Blocking kernel calls run on two threads: the writer's (passes and samples; it has new
classes made on a third) and the reader's (live reads), each with doors of its own. A task that ends with an exception
ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from socket import socket
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from agent import garbage
from agent.changeover import Changeover
from agent.config import Config
from agent.contact import Contact
from agent.desired import Desired
from agent.errors import AgentError, BrokenStore
from agent.identity import Identity
from agent.kernel.linux import (
    ANY,
    LinuxKernel,
    Mode,
    Ownership,
    backend_doors,
    choose_esp,
    choose_mode,
    keep_routes,
    lost_processes,
    watch,
    watch_rules,
)
from agent.kernel.trials import choose_backend
from agent.live import LiveReads
from agent.metrics import MetricsServer, bound
from agent.notify import tell_systemd, watchdog_seconds
from agent.reconcile import Reconciler
from agent.renewal import Renewal
from agent.rpc.access import bind
from agent.rpc.fleet import Fleet
from agent.rpc.server import AgentServicer, RpcServer
from agent.status import Status
from agent.store import Store, only_agent, open_store_or_new
from agent.usage import Usage
from agent.writer import Writer

log = logging.getLogger("agent")

VERSION = version("wirelane")
FIRST_PASS_SECONDS = 60.0  # READY waits for the first pass at most so long; customers of a big box come back meanwhile
STOP_SECONDS = 5.0
GATHER_SECONDS = 0.2  # events come in bursts
FREE_RESYNCS, BUSY_SECONDS = 30, 30.0  # so many within this time are made at once; further ones
REST_SECONDS = 1.0  # so long after one another: an uplink that moves is followed within two all the same
RESPONDER_LOOK_SECONDS = 0.5
CLOCK_LOOK_SECONDS = 1.0
CLOCK_STEP_SECONDS = 2.0  # a wall clock that moves by more than this against the monotonic one was set


def linux(config: Config, mode: Mode, backend: str, owned: Ownership | None = None) -> LinuxKernel:
    """`owned`: shared by the doors of all threads, so that each knows whose a link is."""
    return LinuxKernel(
        mode,
        config.uplink,
        backend,
        config.connections_per_account,
        config.opened,
        owned or Ownership(),
        config.public_networks,
        config.ikev2_folder,
        choose_esp(config.ikev2_esp),
    )


def set_up_logging(level: str) -> None:
    """key=value lines on standard error; systemd adds the time."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format="level=%(levelname)s %(name)s: %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.WARNING)


async def serve(config: Config) -> None:
    """Runs the agent until SIGTERM or SIGINT. Raises AgentError where it cannot start."""
    garbage.calm()
    with only_agent(config.state):
        store, (desired, usage), aside = open_store_or_new(config.state, lambda it: (it.load(), Usage(it, time.time)))
        if aside:
            log.error(
                "state file damaged aside=%s: the kernel is left as it is until the gateway sends a snapshot", aside
            )
        try:
            await _serve(config, store, desired, usage)
        finally:
            store.close()


async def _serve(config: Config, store: Store, desired: Desired | None, usage: Usage) -> None:
    mode, chosen = choose_mode(config.wireguard), choose_backend(config.marks_backend)
    with (
        ThreadPoolExecutor(1, "writer") as writer_thread,
        ThreadPoolExecutor(1, "reader") as reader_thread,
        _routes_kept(config),
    ):
        changeover = Changeover(usage, backend_doors(config.opened))
        backend = await asyncio.get_running_loop().run_in_executor(writer_thread, changeover.to, chosen, desired)
        owned = Ownership()
        reconciler = Reconciler(
            Writer(linux(config, mode, backend, owned), usage),
            store,
            writer_thread,
            desired=desired,
            resync_seconds=config.resync_seconds,
            clock=time.time,
            about=Status(store.epoch, wireguard=mode, marks=backend),
        )
        contact = Contact(store, config.cut_off_seconds, stops=config.cut_off == "stop")
        if contact.must_ask:
            reconciler.ask_first()
        live = LiveReads(linux(config, mode, backend, owned), usage)
        renewal = Renewal(config.identity)
        rpc = RpcServer(AgentServicer(reconciler, store, live, reader_thread, renewal, VERSION, contact.heard))
        bind(rpc.grpc, config.socket_path, config.socket_group)
        log.info(
            "start version=%s wireguard=%s marks=%s epoch=%s %s",
            VERSION,
            mode,
            backend,
            store.epoch,
            _summary(desired),
        )
        fleet = _fleet(config, rpc, reconciler, renewal)
        await _run(config, reconciler, rpc, fleet, contact, bound(config.metrics) if config.metrics else None)


def _fleet(config: Config, rpc: RpcServer, reconciler: Reconciler, renewal: Renewal) -> tuple[Fleet, ...]:
    def in_force(identity: Identity) -> None:
        renewal.in_force(identity)
        reconciler.certified(int(identity.expires.timestamp()))

    if not config.listen_fleet:
        return ()
    return (Fleet(config.listen_fleet, config.identity, rpc.sibling, in_force),)


@contextmanager
def _routes_kept(config: Config) -> Iterator[None]:
    """On a thread of its own, which is no help to a process that has ended."""
    stop = threading.Event()
    thread = threading.Thread(target=keep_routes, args=(config.ikev2_folder, stop), name="routes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(STOP_SECONDS)


def _summary(desired: Desired | None) -> str:
    if desired is None:
        return "desired=none"
    return f"revision={desired.revision} servers={len(desired.servers)} accounts={len(desired.accounts)}"


async def _run(
    config: Config,
    reconciler: Reconciler,
    rpc: RpcServer,
    fleet: tuple[Fleet, ...],
    contact: Contact,
    metrics: socket | None,
) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await rpc.start()
    async with asyncio.TaskGroup() as tasks:
        running: list[asyncio.Task[Any]] = [
            tasks.create_task(reconciler.run(), name="reconcile"),
            tasks.create_task(_watch_kernel(reconciler), name="watch"),
            tasks.create_task(_watch_responder(config, reconciler), name="responder"),
            tasks.create_task(_schedule(config, reconciler), name="schedule"),
            tasks.create_task(contact.run(reconciler.ask_first), name="contact"),
            tasks.create_task(_feed_watchdog(), name="watchdog"),
            *(tasks.create_task(door.run(), name="fleet") for door in fleet),
        ]
        if metrics is not None:
            running.append(tasks.create_task(MetricsServer(reconciler.status, VERSION).serve(metrics), name="metrics"))
        try:
            stopping = tasks.create_task(stop.wait())
            first = tasks.create_task(reconciler.first_pass(FIRST_PASS_SECONDS))
            running += [stopping, first]
            await asyncio.wait((stopping, first), return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                await rpc.ready()
                tell_systemd("READY=1")
            await stop.wait()
            tell_systemd("STOPPING=1")
            log.info("stop: tunnels, rules and classes stay as they are")
            await asyncio.gather(rpc.stop(STOP_SECONDS), *(door.stop(STOP_SECONDS) for door in fleet))
            await _sample(reconciler)
        finally:
            for task in running:
                task.cancel()


async def _sample(reconciler: Reconciler) -> None:
    try:
        await reconciler.sample()
    except BrokenStore:
        raise
    except AgentError:
        pass  # it is in the status, and in the log once


async def _schedule(config: Config, reconciler: Reconciler) -> None:
    """Samples and resyncs by the clock, and again from the start when the clock was set."""
    while True:
        scheduler = AsyncIOScheduler(timezone=UTC, job_defaults={"coalesce": True, "misfire_grace_time": None})
        every = config.sample_seconds
        first = datetime.fromtimestamp((time.time() // every + 1) * every, UTC)
        scheduler.add_job(_sample, "interval", seconds=every, next_run_time=first, args=[reconciler])
        # A day ends at a quarter of an hour in every time zone, and its last sample belongs there.
        scheduler.add_job(_sample, "cron", minute="0,15,30,45", args=[reconciler])
        scheduler.add_job(garbage.sweep, "cron", hour=4, minute=40)
        scheduler.add_job(_resync, "interval", seconds=config.resync_seconds, args=[reconciler])
        scheduler.start()
        try:
            await _clock_step()
        finally:
            scheduler.shutdown(wait=False)
        log.warning("the clock was set: timers begin anew")


async def _resync(reconciler: Reconciler) -> None:
    reconciler.request_resync()


async def _clock_step() -> None:
    """Returns when the wall clock has moved against the monotonic one: jobs due "in an hour" would stall till then."""
    offset = time.time() - time.monotonic()
    while abs(time.time() - time.monotonic() - offset) < CLOCK_STEP_SECONDS:  # noqa: ASYNC110 - no event tells this
        await asyncio.sleep(CLOCK_LOOK_SECONDS)


async def _watch_kernel(reconciler: Reconciler) -> None:
    """A link of ours, the uplink or a rule that somebody changes is looked at now, not at the next resync."""
    changed = asyncio.Event()

    def told(device: str) -> None:
        desired, status = reconciler.desired, reconciler.status()
        ours = {name for s in desired.servers.values() for name in s.devices} if desired else set()
        if device in (ANY, status.uplink) or device in ours or status.problem:
            changed.set()

    async def resync() -> None:
        """Whoever goes on changing things must not keep us busy with nothing else."""
        passes = deque[float](maxlen=FREE_RESYNCS)
        while True:
            await changed.wait()
            is_busy = len(passes) == FREE_RESYNCS and time.monotonic() - passes[0] < BUSY_SECONDS
            await asyncio.sleep(REST_SECONDS if is_busy else GATHER_SECONDS)
            changed.clear()
            passes.append(time.monotonic())
            reconciler.request_resync()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(watch(told))
        tasks.create_task(watch_rules(reconciler.status().marks, changed.set))
        tasks.create_task(resync())


async def _watch_responder(config: Config, reconciler: Reconciler) -> None:
    """A program of IKEv2 that has ended is started again now, not at the next resync; one that ends each time, later
    and later."""
    known, pause = frozenset[int](), RESPONDER_LOOK_SECONDS
    while True:
        lost = lost_processes(config.ikev2_folder)
        if lost - known:
            log.warning("IKEv2 has lost a program: starting it again")
            reconciler.request_resync()
            pause = min(2 * pause, config.resync_seconds)
        else:
            pause = RESPONDER_LOOK_SECONDS
        known = lost
        await asyncio.sleep(pause)


async def _feed_watchdog() -> None:
    seconds = watchdog_seconds()
    while seconds:
        tell_systemd("WATCHDOG=1")
        await asyncio.sleep(seconds / 3)
