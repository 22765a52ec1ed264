"""gateway/system.py: GET /system/status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.model import NewAccount, Origin, ServerValues
from tests.fakes import direct
from tests.fakes.product import NODE, Product, running_product

pytestmark = pytest.mark.anyio


async def eventually(product: Product, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status as soon as it is so; sync looks at its agents every 0.2 s here."""
    async with asyncio.timeout(10):
        while not holds(status := await product.system.status()):  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.02)
    return status


async def test_the_documented_keys_and_the_nodes(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    await product.accounts.create(NewAccount(server=server.name))
    status = await eventually(product, lambda it: it["status"] == "OK" and it["nodes"][0]["accounts"] == 1)
    version = status.pop("version")
    assert version and isinstance(version, str)
    acknowledged = status["nodes"][0]["acknowledged_revision"]
    assert 0 <= acknowledged <= 3  # written down a moment after it was given
    assert status == {
        "count_accounts": 1,
        "count_accounts_available": 34_475,
        "count_wireguard": 1,
        "license": "2099-12-31T23:59:59Z",
        "license_valid": True,
        "status": "OK",
        "set_by_api": [],
        "nodes": [
            {
                "name": NODE,
                "status": "OK",
                "problem": "",
                "warnings": [],
                "drained": False,
                "reachable": True,
                "unreachable_cause": "",
                "revision": 3,
                "acknowledged_revision": acknowledged,
                "applied_revision": 3,
                "pending_changes": 0,
                "failed_accounts": 0,
                "failures": [],
                "drift": 0,
                "clock_offset": None,  # this agent is of a version that does not say its time
                "certificate_expires": None,  # it is called on a socket of this host
                "sample_age": None,
                "resync_age": None,
                "collection_age": None,  # nobody collects here
                "accounts": 1,
                "servers": 1,
                "version": "fake",
                "wireguard": "userspace",
                "marks": "iptables",
            }
        ],
    }


async def test_the_limit_is_what_is_available(database: str) -> None:
    async with running_product(database, account_limit=50) as product:
        assert (await product.system.status())["count_accounts_available"] == 50


async def test_a_node_that_is_away_is_named_with_what_waits_for_it(database: str) -> None:
    async with running_product(database, settle_seconds=0.2) as product:
        server = (await product.servers.create(ServerValues())).value
        async with asyncio.timeout(5):
            while (row := await direct.node(product.store, NODE)).acknowledged < row.revision:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # its word is written down a moment after it was given
        product.agents[NODE].away = True
        await product.accounts.create(NewAccount(server=server.name))
        status = await eventually(product, lambda it: it["nodes"][0]["status"] == "away")
        assert status["status"] == "Nodes: local (away)"
        node = status["nodes"][0]
        assert node["problem"] == "the agent does not answer: away; 1 changes wait for it"
        assert (node["reachable"], node["unreachable_cause"], node["pending_changes"]) == (False, "no-answer", 1)
        assert (node["applied_revision"], node["version"], node["clock_offset"]) == (None, None, None)
        product.agents[NODE].away = False
        await eventually(product, lambda it: it["status"] == "OK")


async def test_what_the_kernel_refused_is_told(product: Product) -> None:
    server = (await product.servers.create(ServerValues())).value
    account = (await product.accounts.create(NewAccount(server=server.name))).value
    product.agents[NODE].refuse[account.id] = "no room for its class"
    status = await eventually(product, lambda it: it["nodes"][0]["status"] == "failed")
    assert status["status"] == "Nodes: local (failed)"
    node = status["nodes"][0]
    assert node["problem"] == "peer_1: no room for its class"
    assert node["failed_accounts"] == 1
    assert node["failures"] == [{"subject": "peer_1", "reason": "no room for its class"}]


async def test_a_node_of_another_database_is_contested(product: Product) -> None:
    await product.servers.create(ServerValues())
    agent = product.agents[NODE]
    agent.origin, agent.revision, agent.epoch = Origin("another", 7, NODE), 90, "another"
    status = await eventually(product, lambda it: it["nodes"][0]["status"] == "contested")
    assert status["status"] == "Nodes: local (contested)"
    assert "of another database" in status["nodes"][0]["problem"]


async def test_an_agent_whose_kernel_is_slow_is_pending(database: str) -> None:
    async with running_product(database, settle_seconds=0.2) as product:
        server = (await product.servers.create(ServerValues())).value
        product.agents[NODE].slow = 1.0
        assert (await product.accounts.create(NewAccount(server=server.name))).pending == NODE
        await eventually(product, lambda it: it["nodes"][0]["status"] == "pending")
        await eventually(product, lambda it: it["status"] == "OK")
