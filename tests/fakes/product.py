"""The gateway's use cases over a real store, real sync and real collect; only the agents are in this process.

`migrated_sqlite` gives a database file in a millisecond: the migrations run once, then the file is copied.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.accounts import Accounts
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.enrolment import Enrolment
from gateway.filter_rules import FilterRules
from gateway.http.app import Services
from gateway.ikev2 import Ikev2Service
from gateway.keys import Keys
from gateway.one_time_links import OneTimeLinks
from gateway.port_forwards import PortForwards
from gateway.servers import Servers
from gateway.store import Store, migrate, open_store
from gateway.sync import Sync
from gateway.system import System
from tests.fakes import direct
from tests.fakes.agents import FakeAgents

KEY = bytes(range(32))
NODE = "local"


@dataclass
class Product:
    store: Store
    agents: FakeAgents
    sync: Sync
    collect: Collect
    creation: Creation
    accounts: Accounts
    servers: Servers
    one_time_links: OneTimeLinks
    keys: Keys
    system: System
    enrolment: Enrolment
    ikev2: Ikev2Service
    port_forwards: PortForwards
    filter_rules: FilterRules


def services_of(product: Product) -> Services:
    """As the HTTP door takes them."""
    return Services(
        product.accounts,
        product.servers,
        product.one_time_links,
        product.keys,
        product.system,
        product.enrolment,
        product.ikev2,
        product.port_forwards,
        product.filter_rules,
        product.store.ping,
    )


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        asyncio.run(migrate(f"sqlite:///{path}"))
        return path.read_bytes()


def migrated_sqlite(path: Path) -> str:
    """The URL of a new database at `path`. Not to be called inside a running loop for the first time."""
    path.write_bytes(_empty_database())
    path.chmod(0o600)
    return f"sqlite:///{path}"


@asynccontextmanager
async def running_product(
    url: str, *, account_limit: int = 0, settle_seconds: float = 5.0, poll_seconds: float = 0.2
) -> AsyncIterator[Product]:
    """With one node, NODE, whose clients reach it at vpn.example.com."""
    store, agents = await open_store(url, KEY), FakeAgents()
    await direct.add_node(store, NODE, "unix:/run/agent.sock", "vpn.example.com")
    sync = Sync(store, agents, settle_seconds, poll_seconds)
    collect, creation = Collect(store, agents, 0.0), Creation(store, account_limit)
    product = Product(
        store=store,
        agents=agents,
        sync=sync,
        collect=collect,
        creation=creation,
        accounts=Accounts(store, creation, sync, collect, agents),
        servers=Servers(store, sync, agents),
        one_time_links=OneTimeLinks(store),
        keys=Keys(store),
        system=System(store, sync, collect, agents, account_limit),
        enrolment=Enrolment(store),
        ikev2=Ikev2Service(store, sync, agents),
        port_forwards=PortForwards(store, sync),
        filter_rules=FilterRules(store, sync),
    )
    loops = asyncio.create_task(sync.run())
    try:
        yield product
    finally:
        loops.cancel()
        with suppress(asyncio.CancelledError):
            await loops
        await store.close()
