"""The real agent, from its gRPC server to its one writer, over a kernel with a memory: everything but Linux."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

from agent.contact import Contact
from agent.identity import Identity
from agent.live import LiveReads
from agent.reconcile import Reconciler
from agent.renewal import Renewal
from agent.rpc.access import bind
from agent.rpc.fleet import Fleet
from agent.rpc.server import AgentServicer, RpcServer
from agent.status import Status
from agent.store import open_store
from agent.usage import Usage
from agent.writer import Writer
from tests.fakes.kernel import FakeKernel


class AgentCore:
    """Made by `running_core`. `slow`: seconds that the kernel takes for each peer. `fleet`: see there."""

    def __init__(
        self, socket: Path, reconciler: Reconciler, kernel: FakeKernel, servicer: AgentServicer, renewal: Renewal
    ) -> None:
        self.reconciler = reconciler
        self.kernel = kernel
        self.now = time.time()
        self.slow = 0.0
        self.fleet: tuple[str, Path] | None = None
        self._socket = socket
        self._servicer = servicer
        self._renewal = renewal
        self._server: RpcServer | None = None
        self._fleet: tuple[Fleet, asyncio.Task[None]] | None = None
        kernel.watch = self._take_time

    async def start(self) -> None:
        self._server = RpcServer(self._servicer)
        bind(self._server.grpc, self._socket, "")
        await self._server.start()
        await self._server.ready()
        if self.fleet:
            door = Fleet(*self.fleet, self._server.sibling, self._in_force)
            self._fleet = door, asyncio.create_task(door.run())
            await listening(self.fleet[0])

    async def stop(self) -> None:
        if self._fleet is not None:
            door, task = self._fleet
            task.cancel()
            await asyncio.wait({task})
            await door.stop(0)
            self._fleet = None
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def use(self, address: str, day: date, download: int, upload: int) -> None:
        """Traffic flows at noon of a day."""
        self.now = datetime.combine(day, time_of_day(12), UTC).timestamp()
        await self.reconciler.sample()
        self.kernel.pass_traffic(address, download, upload)
        await self.reconciler.sample()

    def _in_force(self, identity: Identity) -> None:
        self._renewal.in_force(identity)
        self.reconciler.certified(int(identity.expires.timestamp()))

    def _take_time(self, part: str, verb: str, key: Any) -> None:
        if part == "peers":
            time.sleep(self.slow)  # on the writer thread, as Linux would


async def listening(address: str) -> None:
    """Returns when somebody does at IP:PORT."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


@asynccontextmanager
async def running_core(
    socket: Path,
    state: Path,
    fleet: tuple[str, Path] | None = None,
    *,
    kernel: FakeKernel | None = None,
    cut_off_seconds: float = 0,
) -> AsyncIterator[AgentCore]:
    """`fleet`: IP:PORT where it listens for other hosts besides, and the folder `identity` beside `state`.
    `kernel`: one that was there before. `cut_off_seconds`: it stops when no gateway has called for so long; 0 = it
    serves on."""
    kernel, store = kernel or FakeKernel(), open_store(state)
    core: AgentCore | None = None

    def clock() -> float:
        return core.now if core else time.time()

    with ThreadPoolExecutor(1) as writer_thread, ThreadPoolExecutor(1) as reader_thread:
        usage = Usage(store, clock)
        reconciler = Reconciler(
            Writer(kernel, usage),
            store,
            writer_thread,
            desired=store.load(),
            resync_seconds=60,
            clock=clock,
            about=Status(store.epoch, wireguard="userspace", marks="iptables"),
        )
        renewal = Renewal(state.parent / "identity")
        contact = Contact(store, cut_off_seconds or 3600, stops=bool(cut_off_seconds))
        if contact.must_ask:
            reconciler.ask_first()
        live = LiveReads(kernel, usage)
        servicer = AgentServicer(reconciler, store, live, reader_thread, renewal, "test", contact.heard)
        core = AgentCore(socket, reconciler, kernel, servicer, renewal)
        core.fleet = fleet
        loop = asyncio.create_task(reconciler.run())
        watch = asyncio.create_task(contact.run(reconciler.ask_first))
        await core.start()
        try:
            yield core
        finally:
            await core.stop()
            for task in (loop, watch):
                task.cancel()
            await asyncio.wait({loop, watch})
            store.close()
            await asyncio.sleep(0.05)  # gRPC has still something to tell this loop; closed, it would break the next one


async def _main(listen: str, folder: Path) -> None:
    async with running_core(folder / "agent.sock", folder / "agent.db", (listen, folder / "identity")):
        print("listening", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":  # in a namespace of its own: IP:PORT, and a folder with an identity in it
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
