"""Sync over a real store and agents in this process: what reaches an agent, who is released when, and what is said."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from gateway.agents import StaleAgent
from gateway.condition import Report
from gateway.errors import AgentUnreachable, DatabaseUnavailable, NotFound
from gateway.model import AccountEdit, Applied, Failure, Held, NewAccount, Origin, Patch, ServerValues, Snapshot
from gateway.store import Store, Transaction, changes, claims, open_store
from gateway.sync import Sync
from tests.fakes import direct
from tests.fakes.agents import FakeAgent, FakeAgents
from tests.fakes.product import KEY, NODE, Product, running_product

pytestmark = pytest.mark.anyio


async def until(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - it looks at several things at once
            await asyncio.sleep(0.01)


async def with_server(product: Product) -> FakeAgent:
    """One server, known to the agent; answers the agent."""
    await product.servers.create(ServerValues(name="s1"))
    return product.agents[NODE]


async def create(product: Product, number: int = 0) -> str:
    """Creates an account; answers the node it is pending on."""
    name = f"a{number}" if number else None
    return (await product.accounts.create(NewAccount(server="s1", name=name))).pending


async def until_acknowledged(store: Store, agent: FakeAgent) -> None:
    """Until the database says that the agent holds everything."""
    async with asyncio.timeout(5):
        while True:
            node = await direct.node(store, NODE)
            if (node.epoch, node.acknowledged) == (agent.epoch, agent.revision) and node.revision == agent.revision:
                return
            await asyncio.sleep(0.01)


async def test_a_new_agent_gets_a_snapshot_and_then_patches(product: Product) -> None:
    agent = await with_server(product)
    assert await create(product) == ""
    assert len(agent.snapshots) == 1
    assert [len(patch.put_accounts) for patch in agent.patches[-1:]] == [1]
    assert agent.patches[-1].base == agent.patches[-1].revision - 1
    await until_acknowledged(product.store, agent)
    assert product.sync.pending() == []


async def test_a_thousand_waiters_cost_a_few_patches(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    revision = (await direct.node(product.store, NODE)).revision
    before, agent.slow = len(agent.patches), 0.05
    async with asyncio.TaskGroup() as group:
        creates = [group.create_task(create(product, number)) for number in range(1, 41)]
        # The creates share at least two transactions: the first starts alone.
        waits = [group.create_task(product.sync.settled(NODE, revision + n % 2 + 1)) for n in range(1000)]
    assert {task.result() for task in creates} == {""}
    assert {task.result() for task in waits} == {"applied"}
    assert len(agent.patches) - before <= 25
    assert len(agent.accounts) == 41


async def test_the_next_call_leaves_before_those_are_told_whom_the_last_one_answered(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await with_server(product)
    await create(product)
    agent.slow = 0.1
    course: list[str] = []
    real = agent.patch

    async def watched(patch: Patch, settle_ms: int) -> Applied:
        await asyncio.sleep(0)  # as gRPC does: what it sends leaves a turn of the loop later
        course.append(f"sent {patch.put_accounts[0].name}")
        answer = await real(patch, settle_ms)
        course.append(f"answered {patch.put_accounts[0].name}")
        return answer

    async def caller(number: int) -> None:
        await create(product, number)
        course.append(f"told a{number}")

    monkeypatch.setattr(agent, "patch", watched)
    async with asyncio.TaskGroup() as group:
        group.create_task(caller(1))
        await until(lambda: course == ["sent a1"])
        group.create_task(caller(2))
    assert course == ["sent a1", "answered a1", "sent a2", "told a1", "answered a2", "told a2"]


@pytest.mark.parametrize("trouble", ["it is slow", "it is broken", "the node is removed"])
async def test_who_was_answered_is_told_whatever_becomes_of_the_next_call(
    product: Product, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    agent = await with_server(product)
    await create(product)
    agent.slow = 0.1

    async def compared(tx: Transaction, node: str, held: Held) -> object:
        if trouble == "it is slow":
            await asyncio.sleep(60)
        raise NotFound("no such node") if trouble == "the node is removed" else RuntimeError("broken")

    first = asyncio.create_task(create(product, 1))
    await until(lambda: len(agent.accounts) == 2)
    monkeypatch.setattr(changes, "compared", compared)
    second = asyncio.create_task(product.sync.settled(NODE, (await direct.node(product.store, NODE)).revision + 1))
    async with asyncio.timeout(0.5):
        assert await first == ""
    second.cancel()


async def test_a_change_while_the_agent_is_away_is_pending_and_arrives_when_it_is_back(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.sync")
    async with running_product(database, settle_seconds=0.3) as product:
        agent = await with_server(product)
        agent.away = True
        started = time.monotonic()
        assert await create(product) == NODE
        assert 0.25 < time.monotonic() - started < 1.0
        assert product.sync.pending() == [NODE]
        assert product.sync.statuses() == {NODE: None}
        agent.away = False
        await until(lambda: len(agent.accounts) == 1)
        await until(lambda: product.sync.pending() == [])
        assert product.sync.statuses()[NODE] is not None
        await until(lambda: "event=back" in caplog.text)
    said = [record.message for record in caplog.records if "event=" in record.message]
    assert [line for line in said if "event=away" in line] == [f"node={NODE} event=away reason='away'"]
    assert len([line for line in said if "event=back" in line]) == 1


@pytest.mark.parametrize("settle_seconds", [1.0])
async def test_a_node_that_is_known_to_be_away_takes_the_time_of_its_first_caller_only(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    agent.away = True
    assert await create(product, 1) == NODE
    assert product.sync.absent() == {NODE}
    started = time.monotonic()
    assert [await create(product, number) for number in range(2, 12)] == [NODE] * 10
    assert await product.accounts.traffic("a1", 2026, 11)
    assert time.monotonic() - started < 5.0, "not a second for each of the ten"
    agent.away = False
    await until(lambda: len(agent.accounts) == 12 and not product.sync.absent())
    assert await create(product, 12) == ""


@pytest.mark.parametrize("settle_seconds", [0.4])
async def test_an_agent_that_says_nothing_takes_the_time_of_its_first_caller_only(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await with_server(product)
    await create(product)

    async def hangs(*_: object) -> Applied:
        await asyncio.sleep(60)
        raise AssertionError("nobody waits so long")

    monkeypatch.setattr(agent, "patch", hangs)
    early = asyncio.create_task(create(product, 1))
    await asyncio.sleep(0.2)
    early.cancel()
    await asyncio.gather(early, return_exceptions=True)
    assert product.sync.absent() == set(), "who hangs up early knows nothing of the agent"
    assert await create(product, 2) == NODE
    assert product.sync.absent() == {NODE}
    started = time.monotonic()
    assert [await create(product, number) for number in (3, 4, 5)] == [NODE] * 3
    assert time.monotonic() - started < 0.4


async def test_a_lost_answer_is_no_lost_change(product: Product) -> None:
    agent = await with_server(product)
    agent.lose_next_answer = True
    assert await create(product) == ""
    assert len(agent.accounts) == 1
    await until_acknowledged(product.store, agent)


async def test_an_agent_with_a_new_state_file_gets_a_snapshot(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    agent.lose_state()
    await until(lambda: len(agent.accounts) == 1)
    assert len(agent.snapshots) == 2
    await until(lambda: product.sync.pending() == [])
    await until_acknowledged(product.store, agent)


async def test_a_patch_to_an_agent_that_lost_its_state_becomes_a_snapshot_at_once(database: str) -> None:
    """Nothing was polled in between: the patch itself is refused as stale."""
    async with running_product(database, poll_seconds=60) as product:
        agent = await with_server(product)
        await create(product)
        agent.lose_state()
        assert await create(product) == ""
        assert len(agent.accounts) == 2
        assert len(agent.snapshots) == 2


async def test_resync_of_a_node_sends_everything_anew(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    agent.accounts.clear()  # what the agent says it holds is not what it holds
    await direct.resync_node(product.store, NODE, (await agent.status()).held)
    await until(lambda: len(agent.accounts) == 1)


async def test_an_agent_of_another_database_is_given_nothing_until_the_operator_says_so(
    product: Product, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await with_server(product)
    await create(product)
    kept, sent = dict(agent.accounts), len(agent.patches)
    agent.origin, agent.revision, agent.epoch = Origin("theirs", 5, NODE), 90, "theirs"  # the database was begun anew
    await until(lambda: "event=contested" in caplog.text)
    assert "of another database" in product.sync.statuses()[NODE].problem  # type: ignore[union-attr]
    started = time.monotonic()
    assert await create(product, 1) == NODE
    assert time.monotonic() - started < 0.5, "nobody waits for that"
    await asyncio.sleep(0.7)
    assert (agent.accounts, len(agent.patches), len(agent.snapshots)) == (kept, sent, 1)
    assert caplog.text.count("event=contested") == 1  # looked at again and again, said once
    assert product.sync.pending() == [NODE]
    await direct.resync_node(product.store, NODE, (await agent.status()).held)
    await until(lambda: len(agent.accounts) == 2)
    assert agent.snapshots[-1].replaces == Held("theirs", 90, Origin("theirs", 5, NODE), 1, 1)
    await until_acknowledged(product.store, agent)
    assert product.sync.statuses()[NODE].problem == ""  # type: ignore[union-attr]


async def test_a_database_whose_numbers_met_those_of_before_is_not_taken_for_the_same(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    agent.origin = replace(agent.origin, mark=agent.origin.mark + 1)
    await until(lambda: "another history" in product.sync.statuses()[NODE].problem)  # type: ignore[union-attr]


async def test_two_names_for_one_agent_leave_it_to_the_first(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    product.agents.also("twin", NODE)
    await direct.add_node(product.store, "twin", "unix:/run/link-to-agent.sock")
    await until(lambda: bool((status := product.sync.statuses().get("twin")) and status.problem))
    assert "its agent is node local already" in product.sync.statuses()["twin"].problem  # type: ignore[union-attr]
    assert await create(product, 1) == ""
    assert product.sync.statuses()[NODE].problem == ""  # type: ignore[union-attr]
    assert (len(agent.accounts), len(agent.snapshots)) == (2, 1)


async def test_a_snapshot_that_was_overtaken_is_refused_and_the_state_read_again(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    late = await direct.snapshot(product.store, NODE)
    await create(product, 1)
    with pytest.raises(StaleAgent):
        await agent.snapshot(late, 0)
    assert len(agent.accounts) == 2


async def test_what_fits_into_a_node_s_tunnels_is_known_while_it_is_away(product: Product) -> None:
    agent = await with_server(product)
    server = await product.servers.get("s1")
    assert await product.servers.node_mtu(server) == 0
    agent.tunnel_mtu = 1380
    async with asyncio.timeout(5):
        while await product.servers.node_mtu(server) != 1380:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    agent.away = True
    await until(lambda: product.sync.statuses()[NODE] is None)
    assert await product.servers.node_mtu(server) == 1380
    agent.away, agent.tunnel_mtu = False, 1420
    async with asyncio.timeout(5):
        while await product.servers.node_mtu(server):  # noqa: ASYNC110 - clients take that by themselves
            await asyncio.sleep(0.02)


async def test_a_change_that_another_process_commits_is_found(product: Product, database: str) -> None:
    agent = await with_server(product)
    async with running_other_gateway(database) as other:
        assert other is not product.store
        await direct.set_time_zone(other, "Europe/Warsaw")
    await until(lambda: agent.time_zone == "Europe/Warsaw")


class running_other_gateway:
    """A second store on the same database, without a sync of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Store:
        self._store = await open_store(self._url, KEY)
        return self._store

    async def __aexit__(self, *_: object) -> None:
        await self._store.close()


async def test_two_gateways_may_sync_one_agent(product: Product, database: str) -> None:
    agent = await with_server(product)
    async with running_other_gateway(database) as store:
        second = Sync(store, product.agents, 5.0, poll_seconds=0.05)
        task = asyncio.create_task(second.run())
        await asyncio.gather(*(create(product, number) for number in range(1, 31)))
        await until(lambda: product.sync.pending() == second.pending() == [])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert len(agent.accounts) == 30
    assert len(agent.snapshots) == 1
    await until_acknowledged(product.store, agent)


async def test_two_gateways_that_start_together_do_not_both_send_everything(
    product: Product, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claims are PostgreSQL's; here they are stood in for, and the contract suite has the real ones."""
    claimed: dict[int, str] = {}

    async def take(tx: Transaction, work: str, node_id: int, holder: str, seconds: float) -> bool:
        return claimed.setdefault(node_id, holder) == holder

    monkeypatch.setattr(claims, "take", take)
    names = [f"n{number}" for number in range(12)]
    for name in names:
        await direct.add_node(product.store, name, f"unix:/run/{name}.sock")
    async with running_other_gateway(database) as store:
        second = Sync(store, product.agents, 5.0, poll_seconds=0.05)
        task = asyncio.create_task(second.run())
        await until(lambda: all(second.statuses().get(name) for name in names) and second.pending() == [])
        await until(lambda: product.sync.pending() == [])
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert [len(product.agents[name].snapshots) for name in names] == [1] * len(names)


async def test_a_gateway_whose_snapshot_does_not_get_through_lets_another_send_it(
    product: Product, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    agent, claimed, real = await with_server(product), list[tuple[object, ...]](), claims.give_back

    async def take(tx: Transaction, *claim: object) -> bool:
        claimed.append(claim[:3])
        return True

    async def give_back(tx: Transaction, *claim: object) -> None:
        await real(tx, *claim)  # type: ignore[arg-type]
        claimed.append(claim)
        raise DatabaseUnavailable("away")  # then it runs out by itself

    async def lost(*_: object) -> Applied:
        raise AgentUnreachable("the answer was lost")

    monkeypatch.setattr(claims, "take", take)
    monkeypatch.setattr(claims, "give_back", give_back)
    with monkeypatch.context() as path:
        path.setattr(product.agents, "snapshot", lost)
        agent.lose_state()
        await until(lambda: len(claimed) > 2)
    await until(lambda: not agent.needs_snapshot)
    work, node_id, holder = claimed[0]
    assert (work, node_id) == ("snapshot", (await direct.node(product.store, NODE)).id) and holder
    assert set(claimed) == {claimed[0]}
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_waiter_that_comes_while_the_kernel_is_slow_is_released_in_time(product: Product) -> None:
    agent = await with_server(product)
    real = agent.patch

    async def impatient(patch: object, settle_ms: int) -> object:
        return await real(patch, 0)  # type: ignore[arg-type]

    agent.patch, agent.slow = impatient, 0.4  # type: ignore[method-assign, assignment]
    started = time.monotonic()
    assert await create(product) == ""
    assert 0.35 < time.monotonic() - started < 1.5
    assert agent.calls.count("status") > 3


async def test_what_the_kernel_refuses_is_failed_for_its_waiters_and_shown(product: Product) -> None:
    agent = await with_server(product)
    await create(product, 1)
    agent.refuse[next(iter(agent.accounts))] = "no room"
    assert (await product.accounts.edit("a1", AccountEdit(download=5))).pending == NODE
    status = product.sync.statuses()[NODE]
    assert status is not None
    assert [failure.reason for failure in status.failures] == ["no room"]
    assert await create(product, 2) == ""
    agent.refuse.clear()
    await until(lambda: not getattr(product.sync.statuses()[NODE], "failures", True))


async def test_of_the_accounts_of_one_patch_only_the_refused_one_is_pending_for_its_caller(product: Product) -> None:
    agent = await with_server(product)
    await create(product, 1)
    await create(product, 2)
    agent.refuse[next(key for key, account in agent.accounts.items() if account.name == "a1")] = "no room"
    agent.slow = 0.1  # so that both edits travel in the patch after the first
    names = ["a2", "a1", "a2", "a2"]
    edits = [product.accounts.edit(name, AccountEdit(download=n + 1)) for n, name in enumerate(names)]
    last = (await direct.node(product.store, NODE)).revision + 4
    everyone = [account.id for account in agent.accounts.values()]
    waits = [product.sync.settled(NODE, last, everyone)]
    settled, (everybody,) = await asyncio.gather(asyncio.gather(*edits), asyncio.gather(*waits))
    assert [each.pending for each in settled] == ["", NODE, "", ""]
    assert any(len(patch.put_accounts) == 2 for patch in agent.patches), "the two were together in a patch"
    assert everybody == "failed", "who waits for both hears of a failure, whichever patch it was in"


async def test_what_failed_for_the_node_itself_failed_for_everybody(product: Product) -> None:
    agent = await with_server(product)
    await create(product, 1)
    real = agent.patch

    async def broken(patch: Patch, settle_ms: int) -> Applied:
        applied = await real(patch, settle_ms)
        return replace(applied, outcome="failed", failures=(Failure(0, "", "the uplink is gone"),))

    agent.patch = broken  # type: ignore[method-assign]
    assert (await product.accounts.edit("a1", AccountEdit(download=5))).pending == NODE


async def test_a_patch_that_is_refused_as_wrong_is_followed_by_a_snapshot(
    product: Product, caplog: pytest.LogCaptureFixture
) -> None:
    agent = await with_server(product)
    server = agent.servers.pop("s1")  # the agent's idea of the world is wrong
    assert await create(product) == ""
    assert agent.servers["s1"] == server
    assert len(agent.snapshots) == 2
    assert len([record for record in caplog.records if "event=refused" in record.message]) == 1


async def test_an_edit_that_changes_nothing_waits_for_nobody(product: Product) -> None:
    agent = await with_server(product)
    await create(product, 1)
    await until(lambda: product.sync.pending() == [])
    before = len(agent.patches)
    account = await product.accounts.get("a1")
    assert (await product.accounts.edit("a1", AccountEdit(download=account.download))).pending == ""
    assert len(agent.patches) == before


async def test_a_pass_that_breaks_is_logged_once_and_tried_again(
    product: Product, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await with_server(product)
    broken = 4
    real = changes.compared

    async def compared(tx: Transaction, node: str, held: Held) -> object:
        nonlocal broken
        if broken:
            broken -= 1
            raise RuntimeError("broken")
        return await real(tx, node, held)

    monkeypatch.setattr(changes, "compared", compared)
    assert await create(product) == ""
    assert len(agent.accounts) == 1
    failures = [record for record in caplog.records if record.exc_info]
    assert len(failures) == 1
    assert "event=pass-failed" in failures[0].message


async def test_nodes_come_and_go_at_run_time(product: Product) -> None:
    await direct.add_node(product.store, "second", "unix:/run/second.sock")
    await until(lambda: len(product.agents["second"].snapshots) == 1)
    assert set(product.sync.statuses()) == {NODE, "second"}
    await direct.remove_node(product.store, "second")
    await until(lambda: set(product.sync.statuses()) == {NODE})
    calls = len(product.agents["second"].calls)
    await asyncio.sleep(0.5)
    assert len(product.agents["second"].calls) == calls


async def test_a_node_that_was_added_a_moment_ago_is_waited_for(database: str) -> None:
    """The caller knows the node before the loops do; nobody has to wait for the next look at the list."""
    store = await open_store(database, KEY)
    agents = FakeAgents()
    sync = Sync(store, agents, 2.0, poll_seconds=60)
    task = asyncio.create_task(sync.run())
    await asyncio.sleep(0.1)
    node = await direct.add_node(store, "late", "unix:/run/late.sock", "vpn.example.com")
    assert await sync.settled("late", node.revision) == "applied"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await store.close()


async def test_a_node_that_does_not_exist_is_pending_at_the_deadline(database: str) -> None:
    async with running_product(database, settle_seconds=0.2) as product:
        assert await product.sync.settled("nowhere", 1) == "pending"
        await until(lambda: set(product.sync.statuses()) == {NODE})


async def test_waiters_that_give_up_leave_nothing_behind(database: str) -> None:
    """A node that was removed is kept for as long as somebody waits for it."""
    async with running_product(database, settle_seconds=0.1) as product:
        product.agents[NODE].away = True
        assert set(await asyncio.gather(*(product.sync.settled(NODE, 99) for _ in range(50)))) == {"pending"}
        task = asyncio.create_task(product.sync.settled(NODE, 99))
        await asyncio.sleep(0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await direct.remove_node(product.store, NODE)
        await until(lambda: product.sync.statuses() == {})


async def test_of_several_nodes_those_are_named_that_are_behind(database: str) -> None:
    async with running_product(database, settle_seconds=0.4) as product:
        agent = await with_server(product)
        revision = (await direct.node(product.store, NODE)).revision
        for name in ("second", "third"):
            await direct.add_node(product.store, name, f"unix:/run/{name}.sock")
        await until(lambda: product.sync.pending() == [])
        product.agents["second"].away = True
        servers = {1: "s1", 2: "s2"}
        touched = {"third": (0, servers), "second": (1, servers), NODE: (revision, servers)}
        started = time.monotonic()
        assert await product.sync.all_settled(touched) == ["second"]
        assert time.monotonic() - started < 0.7, "they are waited for together"
        real = agent.patch

        async def refused(patch: Patch, settle_ms: int) -> Applied:
            applied = await real(patch, settle_ms)
            return replace(applied, outcome="failed", failures=(Failure(0, "s2", "no link"),))

        agent.patch = refused  # type: ignore[method-assign]
        await create(product)
        assert await product.sync.all_settled({NODE: (revision + 1, servers)}) == [NODE]
        assert await product.sync.all_settled({NODE: (revision + 1, {1: "s1"})}) == []


@pytest.mark.parametrize("by", ["a use case", "the agent's connection"])
async def test_what_nobody_waits_for_is_sent_as_soon_as_the_loop_is_woken(database: str, by: str) -> None:
    async with running_product(database, poll_seconds=60) as product:
        agent = await with_server(product)
        await create(product)
        await until_acknowledged(product.store, agent)  # from now on it rests
        await direct.set_time_zone(product.store, "Europe/Warsaw")
        wake = product.sync.wake if by == "a use case" else product.agents.back
        wake(NODE)
        wake("nowhere")
        await until(lambda: agent.time_zone == "Europe/Warsaw")


async def test_connections_are_kept_to_the_nodes_that_there_are(product: Product) -> None:
    await until(lambda: product.agents.kept == [NODE])
    await direct.add_node(product.store, "second", "unix:/run/second.sock")
    await until(lambda: product.agents.kept == [NODE, "second"])
    await direct.remove_node(product.store, "second")
    await until(lambda: product.agents.kept == [NODE])


async def test_nodes_that_cannot_be_listed_go_on_and_each_time_it_is_said_once(
    product: Product, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await with_server(product)
    real, is_broken, looks = changes.rows, False, 0

    async def rows(tx: Transaction) -> object:
        nonlocal looks
        looks += 1
        if is_broken:
            raise RuntimeError("broken")
        return await real(tx)

    async def looked() -> None:
        before = looks
        await until(lambda: looks > before + 2)

    monkeypatch.setattr(changes, "rows", rows)
    for times in (1, 2):
        for is_broken in (True, False):
            await looked()
            assert await create(product, 2 * times + is_broken) == ""
        said = [record for record in caplog.records if "event=nodes-unreadable" in record.message]
        assert len(said) == times and all(record.exc_info for record in said)
    await direct.add_node(product.store, "second", "unix:/run/second.sock")
    await until(lambda: "second" in product.sync.statuses())


async def test_an_agent_may_take_as_long_as_callers_wait(
    product: Product, monkeypatch: pytest.MonkeyPatch, settle_seconds: float
) -> None:
    agent, given = product.agents[NODE], set[tuple[str, int]]()
    patch, snapshot = agent.patch, agent.snapshot

    async def patched(sent: Patch, settle_ms: int) -> Applied:
        given.add(("patch", settle_ms))
        return await patch(sent, settle_ms)

    async def replaced(sent: Snapshot, settle_ms: int) -> Applied:
        given.add(("snapshot", settle_ms))
        return await snapshot(sent, settle_ms)

    monkeypatch.setattr(agent, "patch", patched)
    monkeypatch.setattr(agent, "snapshot", replaced)
    await with_server(product)
    agent.lose_state()
    await create(product)
    await create(product, 1)
    assert given == {(call, int(settle_seconds * 1000)) for call in ("patch", "snapshot")}


async def test_what_is_known_of_each_agent_is_told(product: Product) -> None:
    agent = await with_server(product)
    await create(product)
    product.agents["gone"].away = True
    for name in ("gone", "good"):
        await direct.add_node(product.store, name, f"unix:/run/{name}.sock")
    agent.origin, agent.revision, agent.epoch = Origin("theirs", 5, NODE), 90, "theirs"
    reports = product.sync.reports
    await until(lambda: {"gone", "good"} <= reports().keys() and bool(reports()[NODE].contested))
    await until(lambda: bool(reports()["gone"].away) and reports()["good"].status is not None)
    assert reports()["gone"] == Report(None, "away", "no-answer")
    assert product.sync.absent() == {"gone"}
    assert reports()["good"] == Report(product.sync.statuses()["good"])
    assert "of another database" in reports()[NODE].contested and not reports()[NODE].away


async def test_a_quiet_node_is_only_asked_for_its_status(product: Product) -> None:
    agent = await with_server(product)
    await until(lambda: product.sync.pending() == [])
    agent.calls.clear()
    await asyncio.sleep(0.7)
    assert set(agent.calls) == {"status"}
    assert 2 <= len(agent.calls) <= 6
