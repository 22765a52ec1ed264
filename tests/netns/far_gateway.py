"""A gateway's sync, or one large snapshot, towards an agent on another host. A program of its own, in a namespace:

    python -m tests.netns.far_gateway watch|load FOLDER TARGET [ACCOUNTS]

FOLDER has the credentials and room for a database. Prints a line of JSON for each thing that happens, with the time
(seconds of the clock that all processes of a machine share).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.agents import Agents
from gateway.authority import Credentials
from gateway.errors import AgentUnreachable
from gateway.model import Node, Origin, Secret, Snapshot
from gateway.store import nodes as rows
from gateway.store import open_store
from gateway.sync import Sync
from tests.contract.test_agents import a_server, an_account
from tests.fakes import direct
from tests.fakes.certificates import NAME
from tests.fakes.product import KEY, migrated_sqlite

LOOK_SECONDS = 0.02
STATUS_EVERY = 1.0


def say(what: str, **more: Any) -> None:
    print(json.dumps({"at": time.monotonic(), "what": what, **more}), flush=True)


def own(folder: Path) -> Credentials:
    certificate, key, authorities = ((folder / name).read_bytes() for name in ("certificate", "key", "authorities"))
    return Credentials(certificate, Secret(key.decode()), authorities)


async def watch(folder: Path, target: str) -> None:
    """The real sync; says when the node is away, and when it is there."""
    credentials = own(folder)
    agents = Agents(lambda: credentials)
    url = await asyncio.to_thread(migrated_sqlite, folder / "gateway.db")
    async with await open_store(url, KEY) as store:
        node = await direct.add_node(store, "fra", target)
        await store.change(lambda tx: rows.name_certificate(tx, node.id, NAME))
        sync = Sync(store, agents)
        running = asyncio.create_task(sync.run())
        before: bool | None = None
        while not running.done():
            there = sync.statuses().get("fra") is not None
            if there != before:
                say("there" if there else "away")
            before = there
            await asyncio.sleep(LOOK_SECONDS)


async def load(folder: Path, target: str, accounts: int) -> None:
    """One snapshot, and beside it what a gateway asks every second."""
    credentials, node = own(folder), Node(1, "fra", target, tls_name=NAME)
    agents = Agents(lambda: credentials)
    await agents.status(node)
    sent = Snapshot(
        1, (a_server(),), tuple(an_account(n) for n in range(1, accounts + 1)), origin=Origin("d", 1, "fra")
    )
    sending = asyncio.create_task(agents.snapshot(node, sent, 2000))
    say("sending")
    while not sending.done():
        began = time.monotonic()
        try:
            await agents.status(node)
            say("status", seconds=time.monotonic() - began)
        except AgentUnreachable as error:
            say("away", reason=str(error), seconds=time.monotonic() - began)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(sending), STATUS_EVERY)
    try:
        say("sent", outcome=(await sending).outcome)
    except AgentUnreachable as error:
        say("lost", reason=str(error))
    await agents.close()


def main(kind: str, folder: str, target: str, accounts: str = "0") -> None:
    asyncio.run(watch(Path(folder), target) if kind == "watch" else load(Path(folder), target, int(accounts)))


if __name__ == "__main__":
    main(*sys.argv[1:])
