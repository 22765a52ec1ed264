"""How many nodes one gateway carries: agents without a kernel, on real gRPC, against one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from typing import Any

from sqlalchemy import text

from bench.asked import Asked
from bench.fleet_gateway import KEY
from bench.table import Bar, Cell, Result, Table
from gateway.agents import Agents
from gateway.model import ServerValues
from gateway.servers import Servers
from gateway.store import Store, Transaction, migrate, open_store
from gateway.store import nodes as node_rows
from tests.fakes.cluster import Cluster, why_missing
from tests.fakes.settle import InstantSync
from tests.lab.errors import LabError
from tests.lab.services import ROOT

QUESTION = "A fleet: what one gateway costs that keeps 1, 10, 100 nodes right"
NODES = (1, 10, 100)
IDLE_SECONDS = 15.0
CHANGES = 60
LIMIT_SECONDS = 900
COLD, BLOCK, MEMORY, IDLE, COLLECT, SETTLE = 30.0, 50.0, 300.0, 15.0, 20.0, 20.0
COLUMNS = (
    *("nodes", "cold sync, s", "longest block, ms", "on the wall, ms", "memory, MB", "idle, % of a core"),
    *("idle statements a second", "statements a change", "settle, ms", "collection, s", "its block, ms"),
    *("on the wall, ms ", "settle meanwhile, ms", "database, MB"),
)

_ACCOUNTS = text(
    "INSERT INTO accounts (id, server_id, node_id, name, username, password, address, public_key, mark, download, "
    "upload, enabled, revision) SELECT CAST(:node AS bigint) * 1000000 + i, :server, :node, :prefix || '-a' || "
    "(i * :nodes + :number), :prefix || '-u' || i, '\\x00', CAST(:network AS bigint) + 2 + i, "
    "rpad(i || '.' || :node, 43, 'A') || '=', 100 + i, 10, 10, true, :revision FROM generate_series(0, :last) AS i"
)
_PASSWORD = text("UPDATE accounts SET password = :sealed WHERE id = :id")


def run(asked: Asked) -> Result:
    result = Result("fleet", QUESTION, asked.accounts)
    if reason := why_missing():
        raise LabError(reason)
    rows: list[list[Cell]] = []
    for nodes in NODES:
        seen = _measured(nodes, asked)
        asked.say(f"{nodes} nodes: {seen}")
        rows.append(_row(nodes, seen))
    result.tables.append(Table(f"One gateway, {asked.accounts:,} accounts a node", COLUMNS, rows))
    full = asked.is_full_size
    result.bars += [
        Bar(f"{nodes} nodes: cold sync of everything", seen["cold"], COLD, "s", judged=full),
        Bar(f"{nodes} nodes: longest block of the loop in it", seen["cold_block"], BLOCK, "ms", judged=full),
        Bar(f"{nodes} nodes: most memory in it", seen["cold_memory"], MEMORY, "MB", judged=full),
        Bar(f"{nodes} nodes: CPU when nothing happens", seen["idle"], IDLE, "% of a core", judged=full),
        Bar(f"{nodes} nodes: all totals collected", seen["collect"], COLLECT, "s", judged=full),
        Bar(f"{nodes} nodes: longest block of the loop in it", seen["collect_block"], BLOCK, "ms", judged=full),
        Bar(f"{nodes} nodes: p50 of one change meanwhile", seen["settle"], SETTLE, "ms", judged=full),
    ]
    result.notes.append(
        "The gateway's own store, sync and collect in a process of their own; the agents, in another one, hold what "
        "they are sent and have no kernel. Each round of totals tells of every account. A block: CPU of the loop's "
        "thread between two of its turns; on the wall, with what agents and PostgreSQL take of the same cores."
    )
    return result


def _row(nodes: int, seen: dict[str, float]) -> list[Cell]:
    names = (
        *("cold", "cold_block", "cold_wall", "cold_memory", "idle", "idle_statements", "statements", "quiet_settle"),
        *("collect", "collect_block", "collect_wall", "settle", "database"),
    )
    return [nodes, *(seen[name] for name in names)]


def _measured(nodes: int, asked: Asked) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="wirelane-fleet-") as folder, _cluster() as cluster:
        url = cluster.url(cluster.create())
        asyncio.run(_filled(url, nodes, asked.accounts, folder))
        asked.say(f"{nodes} nodes with {asked.accounts:,} accounts each are in the database")
        with _agents(folder, nodes):
            answer = _asked_of_a_program(
                "bench.fleet_gateway", {"url": url, "seconds": IDLE_SECONDS, "changes": CHANGES}
            )
        return {**answer, "database": asyncio.run(_size(url))}


@contextmanager
def _cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


async def _filled(url: str, nodes: int, accounts: int, folder: str) -> None:
    await migrate(url)
    async with await open_store(url, KEY) as store:
        servers = Servers(store, InstantSync(), Agents())
        for number in range(nodes):
            await _fill(store, servers, number, nodes, accounts, folder)
        await store.change(lambda tx: tx.run(text("ANALYZE")))


async def _fill(store: Store, servers: Servers, number: int, nodes: int, accounts: int, folder: str) -> None:
    name = f"n{number}"
    await store.change(lambda tx: node_rows.add(tx, name, f"unix:{folder}/{name}.sock", "vpn.example.com"))
    address = IPv4Interface(f"10.{number}.0.1/16")
    server = (await servers.create(ServerValues(node=name, name=f"{name}-s", address=address))).value

    async def sold(tx: Transaction) -> None:
        node = await node_rows.found(tx, name)
        values: dict[str, Any] = {"node": node.id, "server": server.id, "prefix": name, "nodes": nodes}
        values |= {"number": number, "network": int(address.network[0]), "revision": node.revision}
        await tx.run(_ACCOUNTS, {**values, "last": accounts - 1})
        for id_ in range(node.id * 1_000_000, node.id * 1_000_000 + CHANGES // nodes + 1):  # those that are changed
            sealed = tx.seal.seal("secret", f"accounts.password.{id_}")
            await tx.run(_PASSWORD, {"sealed": sealed, "id": id_})

    await store.change(sold)


async def _size(url: str) -> float:
    async with await open_store(url, KEY) as store:
        row = await store.read(lambda tx: tx.one(text("SELECT pg_database_size(current_database())")))
        assert row is not None
        return float(row[0]) / 1e6


@contextmanager
def _agents(folder: str, nodes: int) -> Iterator[None]:
    command = [sys.executable, "-m", "bench.fleet_agents"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"folder": folder, "nodes": [f"n{n}" for n in range(nodes)]}) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise LabError("the agents did not start")
            yield
        finally:
            process.kill()


def _asked_of_a_program(module: str, asked: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps(asked) + "\n",
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise LabError(f"{module} ended with status {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout)
    return found
