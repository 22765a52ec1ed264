"""What a node gains that lies to its gateway: real gRPC, a real database. It shall spoil its own customers' matters
only, and neither fill the gateway nor hold it up."""

from __future__ import annotations

import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from gateway import placement
from gateway.accounts import Accounts
from gateway.agents import Agents
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.errors import AgentUnreachable
from gateway.model import Account, DayTotal, DayUsage, NewAccount, Node, ServerValues
from gateway.servers import Servers
from gateway.store import Store
from protos.agent.v1 import agent_pb2 as pb
from protos.agent.v1.agent_pb2_grpc import AgentServicer, add_AgentServicer_to_server
from tests.fakes import direct
from tests.fakes.agents import FakeAgents
from tests.fakes.settle import InstantSync

pytestmark = pytest.mark.anyio

DAY = date(2024, 2, 29)
NUMBER = 20240229
MEGABYTES = 300  # more than an answer may grow the process by; without a bound it is a gigabyte in 15 s


class Liar(AgentServicer):
    """Says what it is told to say, again and again."""

    def __init__(self, chunk: Any, status: pb.StatusReply) -> None:
        self._chunk, self._status = chunk, status

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        return self._status

    async def Totals(self, request: pb.TotalsRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield self._chunk

    async def Peers(self, request: pb.PeersRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield self._chunk

    async def Held(self, request: pb.HeldRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            yield self._chunk


@asynccontextmanager
async def lying(
    folder: Path, chunk: Any = None, status: pb.StatusReply | None = None
) -> AsyncIterator[tuple[Agents, Node]]:
    server, agents = grpc.aio.server(), Agents()
    liar = Liar(chunk, status or pb.StatusReply())  # type: ignore[abstract]  # of the rest it says nothing
    add_AgentServicer_to_server(liar, server)
    server.add_insecure_port(f"unix:{folder}/liar.sock")
    await server.start()
    try:
        yield agents, Node(id=1, name="fra", target=f"unix:{folder}/liar.sock")
    finally:
        await agents.close()
        await server.stop(0)


TOTALS = [pb.DayTotal(account_id=n, day=NUMBER, download_bytes=1, upload_bytes=1) for n in range(1, 20_001)]
ENDLESS: dict[str, tuple[Any, Callable[[Agents, Node], Awaitable[Any]]]] = {
    "totals": (pb.TotalsChunk(epoch="e", cursor=1, totals=TOTALS[:9_000]), lambda it, node: it.totals(node, "e", 0)),
    "totals in one part": (pb.TotalsChunk(epoch="e", totals=TOTALS), lambda it, node: it.totals(node, "e", 0)),
    "peers": (pb.PeersChunk(peers=[pb.Peer(account_id=1)] * 2_000), lambda it, node: it.peers(node, "wg1")),
    "accounts": (pb.SnapshotChunk(accounts=[pb.Account(id=1)] * 2_000), lambda it, node: it.held(node)),
    "servers": (pb.SnapshotChunk(servers=[pb.Server(name="s")] * 2_000), lambda it, node: it.held(node)),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_an_answer_that_never_ends_is_cut_off(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, ask = ENDLESS[what]
    monkeypatch.setattr("gateway.agents.client.MOST_TOTALS", 200_000)  # two million take a while to be made here
    async with lying(tmp_path, chunk) as (agents, node):
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with pytest.raises(AgentUnreachable, match="makes no sense: more than"):
            await ask(agents, node)
        assert time.monotonic() - began < 4, "before any deadline"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.mark.parametrize(
    "total",
    [
        pb.DayTotal(account_id=1, day=NUMBER, download_bytes=(1 << 50) + 1),
        pb.DayTotal(account_id=1, day=NUMBER, upload_bytes=(1 << 64) - 1),
        pb.DayTotal(account_id=1 << 63, day=NUMBER),
        pb.DayTotal(account_id=1, day=20240230),
    ],
)
async def test_totals_that_no_line_can_carry_are_not_taken(tmp_path: Path, total: pb.DayTotal) -> None:
    async with lying(tmp_path, pb.TotalsChunk(epoch="e", totals=[total])) as (agents, node):
        with pytest.raises(AgentUnreachable, match="makes no sense"):
            await agents.totals(node, "e", 0)


async def test_what_it_says_of_itself_is_bounded(tmp_path: Path) -> None:
    status = pb.StatusReply(
        epoch="e",
        failures=[pb.Failure(subject="x" * 2_000, reason="y" * 2_000)] + [pb.Failure()] * 200_000,
        warnings=["w" * 2_000] * 1_200,
        networks=[pb.HostNetwork(network="10.0.0.0/24", interface="eth0")] * 2_000,
        problem="p" * 100_000,
    )
    async with lying(tmp_path, status=status) as (agents, node):
        said = await agents.status(node)
    assert (len(said.failures), len(said.warnings), len(said.networks)) == (50_000, 1_000, 1_000)
    texts = (said.failures[0].subject, said.failures[0].reason, said.warnings[0], said.problem)
    assert {len(text) for text in texts} == {1_000}
    async with lying(tmp_path, status=pb.StatusReply(epoch="e" * 65)) as (agents, node):
        with pytest.raises(AgentUnreachable, match="an epoch of 65 characters"):
            await agents.status(node)


async def two_nodes(store: Store) -> tuple[Accounts, Account, Account]:
    """An account on fra and one on ams."""
    sync, agents = InstantSync(), FakeAgents()
    accounts = Accounts(store, Creation(store), sync, Collect(store, agents), agents)
    servers = Servers(store, sync, agents, default_endpoint="vpn.example.com")
    made = []
    for name in ("fra", "ams"):
        await direct.add_node(store, name, f"unix:/run/{name}.sock")
        await servers.create(ServerValues(name=f"s-{name}", node=name))
        made.append((await accounts.create(NewAccount(server=f"s-{name}"))).value)
    return accounts, made[0], made[1]


async def test_a_node_writes_nobody_elses_bill(store: Store) -> None:
    _, own, others = await two_nodes(store)
    totals = [DayTotal(own.id, DAY, 1, 2), DayTotal(others.id, DAY, 1 << 40, 1 << 40)]
    await direct.fold(store, "fra", "e", 1, totals)
    assert await direct.month_usage(store, others.id, 2024, 2) == []
    assert await direct.month_usage(store, own.id, 2024, 2) == [DayUsage(DAY, 1, 2)]


async def test_last_bytes_come_from_where_an_account_was(store: Store) -> None:
    accounts, moved, deleted = await two_nodes(store)
    await store.change(lambda tx: placement.begin(tx, "s-fra", "ams", force=True))
    await accounts.delete(deleted.name)
    await direct.fold(store, "fra", "e1", 1, [DayTotal(moved.id, DAY, 10, 1), DayTotal(deleted.id, DAY, 99, 99)])
    await direct.fold(store, "ams", "e2", 1, [DayTotal(moved.id, DAY, 5, 5), DayTotal(deleted.id, DAY, 7, 7)])
    assert await direct.month_usage(store, moved.id, 2024, 2) == [DayUsage(DAY, 15, 6)]
    assert await direct.month_usage(store, deleted.id, 2024, 2) == [DayUsage(DAY, 7, 7)], "fra never had it"
    await direct.remove_node(store, "fra")


async def test_numbers_that_add_up_beyond_63_bits_do_not_spoil_the_list(store: Store) -> None:
    _, own, others = await two_nodes(store)
    await direct.fold(store, "ams", "e", 1, [DayTotal(others.id, DAY, 5, 6)])
    for epoch in ("e1", "e2"):
        await direct.fold(store, "fra", epoch, 1, [DayTotal(own.id, DAY, (1 << 63) - 1, 1)])
    found = {one.name: one.download for one in await direct.month_of_all(store, 2024, 2)}
    assert found[others.name] == 5 and found[own.name] > 1 << 63
    assert (await direct.month_usage(store, own.id, 2024, 2))[0].upload == 2
