"""What every agent promises its gateway: one suite for the fake, for the fake over gRPC, and for the real agent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import date
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.rpc.codec import server_in
from gateway.agents import AgentLacks, AgentRefused, Agents, StaleAgent
from gateway.agents.codec import objects_of, snapshot_chunks
from gateway.errors import AgentUnreachable
from gateway.model import Account, DayTotal, Held, Look, Node, Origin, Patch, Responder, Secret, Server, Snapshot
from tests.fakes.agent_core import AgentCore, running_core
from tests.fakes.agent_server import serving
from tests.fakes.agents import FakeAgent, FakeAgents
from tests.fakes.certificates import NAME, an_authority, an_identity, credentials, free_port, written

SERVER_KEY = "YAnz5TF+lXXJte14tji3zlMNftft3pbcpK+3rJ0FR2Q="
SHARED_KEY = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
KINDS = ("fake", "fake over gRPC", "real agent", "real agent over mutual TLS")


class FarEnd(Protocol):
    """What a test does to an agent, past the gateway's back."""

    async def use(self, account: Account, day: date, download: int, upload: int) -> None: ...
    async def leave(self) -> None: ...
    async def come_back(self) -> None: ...
    def be_slow(self, seconds: float) -> None: ...
    def refuse(self, account: Account, reason: str) -> None: ...
    def accounts(self) -> Iterable[Any]: ...
    def servers(self) -> Iterable[Any]: ...


class FakeEnd:
    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent

    async def use(self, account: Account, day: date, download: int, upload: int) -> None:
        self._agent.use(account.id, day, download, upload)

    async def leave(self) -> None:
        self._agent.away = True

    async def come_back(self) -> None:
        self._agent.away = False

    def be_slow(self, seconds: float) -> None:
        self._agent.slow = seconds

    def refuse(self, account: Account, reason: str) -> None:
        self._agent.refuse[account.id] = reason

    def accounts(self) -> Iterable[Any]:
        return self._agent.accounts.values()

    def servers(self) -> Iterable[Any]:
        return self._agent.servers.values()


class CoreEnd:
    def __init__(self, core: AgentCore) -> None:
        self._core = core

    async def use(self, account: Account, day: date, download: int, upload: int) -> None:
        await self._core.use(str(account.address), day, download, upload)

    async def leave(self) -> None:
        await self._core.stop()

    async def come_back(self) -> None:
        await self._core.start()

    def be_slow(self, seconds: float) -> None:
        self._core.slow = seconds

    def refuse(self, account: Account, reason: str) -> None:
        self._core.kernel.refuses["peers", "add", ("wg1", account.public_key)] = reason

    def accounts(self) -> Iterable[Any]:
        desired = self._core.reconciler.desired
        return desired.accounts.values() if desired else ()

    def servers(self) -> Iterable[Any]:
        desired = self._core.reconciler.desired
        return desired.servers.values() if desired else ()


@dataclass(frozen=True)
class Rig:
    """An agent, seen from the gateway, and its far end."""

    agents: Agents
    node: Node
    end: FarEnd


Story = Callable[[Rig], Awaitable[None]]


@asynccontextmanager
async def rig(kind: str, folder: Path) -> AsyncIterator[Rig]:
    node = Node(id=1, name="fra", target=f"unix:{folder}/agent.sock")
    if kind == "real agent over mutual TLS":
        async with encrypted_rig(node, folder) as it:
            yield it
        return
    if kind == "fake":
        fakes = FakeAgents()
        yield Rig(fakes, node, FakeEnd(fakes["fra"]))
        return
    agents = Agents()
    try:
        if kind == "real agent":
            async with running_core(folder / "agent.sock", folder / "agent.db") as core:
                yield Rig(agents, node, CoreEnd(core))
        else:
            agent = FakeAgent()
            async with serving(agent, node.target):
                yield Rig(agents, node, FakeEnd(agent))
    finally:
        await agents.close()


@asynccontextmanager
async def encrypted_rig(node: Node, folder: Path) -> AsyncIterator[Rig]:
    authority = an_authority()
    listen, own = f"127.0.0.1:{free_port()}", credentials(authority)
    written(folder / "identity", an_identity(authority))
    agents = Agents(lambda: own)
    try:
        async with running_core(folder / "agent.sock", folder / "agent.db", (listen, folder / "identity")) as core:
            yield Rig(agents, replace(node, target=listen, tls_name=NAME), CoreEnd(core))
    finally:
        await agents.close()


def ran(story: Coroutine[Any, Any, None]) -> None:
    async def whole() -> None:
        await story
        await asyncio.sleep(0.05)  # gRPC has still something to tell this loop; closed, it would break the next test

    asyncio.run(whole())


@pytest.fixture(params=KINDS)
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Story], None]:
    """Runs a story against one kind of agent."""

    def run(story: Story) -> None:
        async def inside() -> None:
            async with rig(request.param, tmp_path) as it, asyncio.timeout(30):
                await story(it)

        ran(inside())

    return run


def a_server(name: str = "fra1", number: int = 1) -> Server:
    return Server(
        id=number,
        node="fra",
        name=name,
        interface=f"wg{number}",
        private_key=Secret(SERVER_KEY),
        public_key="",
        listen_port=51820 + number,
        address=IPv4Interface(f"10.{number}.0.1/16"),
        reach="internet,10.200.0.0/16",
    )


def an_account(number: int, **values: Any) -> Account:
    account = Account(
        id=(1 << 62) + number,
        name=f"peer_{number}",
        username=f"user_{number}",
        password=Secret("x"),
        server="fra1",
        node="fra",
        address=IPv4Address("10.1.0.1") + number,
        private_key=Secret(),
        public_key=f"{number:042d}A=",
        mark=99 + number,
        download=20,
        upload=10,
        enabled=True,
    )
    return replace(account, **values)


async def with_snapshot(it: Rig, accounts: int = 1, revision: int = 5) -> str:
    """Brings an agent to a revision; answers its epoch."""
    snapshot = Snapshot(revision, (a_server(),), tuple(an_account(n) for n in range(1, accounts + 1)), "Europe/Warsaw")
    applied = await it.agents.snapshot(it.node, snapshot, 2000)
    assert applied.outcome == "applied"
    epoch: str = applied.epoch
    return epoch


def test_a_new_agent_holds_nothing_and_says_so(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        status = await it.agents.status(it.node)
        assert status.needs_snapshot
        assert status.epoch
        assert (status.revision, status.applied_revision) == (0, 0)
        with pytest.raises(StaleAgent):
            await it.agents.patch(it.node, Patch(status.epoch, 0, 1), 0)

    told(story)


def test_a_snapshot_of_thousands_of_accounts_arrives_whole(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        await with_snapshot(it, accounts=1201)
        status = await it.agents.status(it.node)
        assert not status.needs_snapshot
        assert (status.revision, status.applied_revision, status.time_zone) == (5, 5, "Europe/Warsaw")
        assert len(await it.agents.peers(it.node, "fra1")) == 1201

    told(story)


def test_every_value_of_an_account_crosses_the_wire(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        await with_snapshot(it)
        (account,) = it.end.accounts()
        for name in ("id", "name", "server", "address", "public_key", "mark", "download", "upload", "enabled"):
            assert getattr(account, name) == getattr(an_account(1), name)
        (server,) = it.end.servers()
        for name in ("name", "interface", "listen_port", "address", "mtu", "internal_traffic", "external_ip"):
            assert getattr(server, name) == getattr(a_server(), name)
        assert account.preshared_key.reveal() == ""
        epoch = (await it.agents.status(it.node)).epoch
        keyed = an_account(2, preshared_key=Secret(SHARED_KEY))
        await it.agents.patch(it.node, Patch(epoch, 5, 6, put_accounts=(keyed,)), 2000)
        assert {one.preshared_key.reveal() for one in it.end.accounts()} == {"", SHARED_KEY}
        assert (account.address_ipv6, server.address_ipv6, server.nat_ipv6) == (None, None, False)
        second = replace(a_server(), address_ipv6=IPv6Interface("fd00:1::1/64"), nat_ipv6=True)
        both = an_account(3, address_ipv6=IPv6Address("fd00:1::3"))
        await it.agents.patch(it.node, Patch(epoch, 6, 7, put_servers=(second,), put_accounts=(both,)), 2000)
        assert [(one.address_ipv6, one.nat_ipv6) for one in it.end.servers()] == [(second.address_ipv6, True)]
        assert {one.address_ipv6 for one in it.end.accounts()} == {None, both.address_ipv6}
        assert str(server.reach) == a_server().reach
        assert server.private_key.reveal() == SERVER_KEY

    told(story)


def test_a_patch_puts_and_removes(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it, accounts=2)
        patch = Patch(
            epoch, 5, 8, put_accounts=(an_account(3), an_account(2, download=0)), remove_accounts=(an_account(1).id,)
        )
        applied = await it.agents.patch(it.node, patch, 2000)
        assert (applied.outcome, applied.epoch, applied.revision) == ("applied", epoch, 8)
        peers = await it.agents.peers(it.node, "fra1")
        assert {peer.account_id for peer in peers} == {an_account(2).id, an_account(3).id}
        assert {peer.address for peer in peers} == {"10.1.0.3", "10.1.0.4"}

    told(story)


def test_repeating_a_patch_is_harmless(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        patch = Patch(epoch, 5, 6, put_accounts=(an_account(2),))
        first = await it.agents.patch(it.node, patch, 2000)
        assert await it.agents.patch(it.node, patch, 2000) == first
        late = await it.agents.patch(it.node, Patch(epoch, 3, 4, remove_accounts=(an_account(2).id,)), 2000)
        assert (late.outcome, late.revision) == ("applied", 6)
        assert len(await it.agents.peers(it.node, "fra1")) == 2

    told(story)


def test_a_patch_may_begin_before_the_agents_revision(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        applied = await it.agents.patch(it.node, Patch(epoch, 2, 7, put_accounts=(an_account(2),)), 2000)
        assert (applied.outcome, applied.revision) == ("applied", 7)

    told(story)


def test_a_patch_with_a_gap_or_another_epoch_is_stale(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        with pytest.raises(StaleAgent):
            await it.agents.patch(it.node, Patch(epoch, 6, 7), 0)
        with pytest.raises(StaleAgent):
            await it.agents.patch(it.node, Patch("another", 5, 6), 0)
        assert (await it.agents.status(it.node)).revision == 5

    told(story)


def test_a_value_that_cannot_be_right_is_refused_and_changes_nothing(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        with pytest.raises(AgentRefused, match="nowhere"):
            await it.agents.patch(it.node, Patch(epoch, 5, 6, put_accounts=(an_account(2, server="nowhere"),)), 0)
        assert (await it.agents.status(it.node)).revision == 5

    told(story)


def test_a_snapshot_replaces_everything_even_backwards(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it, accounts=3, revision=9)
        assert await with_snapshot(it, accounts=1, revision=4) == epoch
        assert (await it.agents.status(it.node)).revision == 4
        assert len(await it.agents.peers(it.node, "fra1")) == 1

    told(story)


OURS = Origin("ours", 7, "fra")
LATER = replace(OURS, mark=8)


async def with_origin(it: Rig) -> Held:
    """An agent at revision 5 of OURS, with one account."""
    applied = await it.agents.snapshot(it.node, Snapshot(5, (a_server(),), (an_account(1),), "", OURS), 2000)
    assert (applied.outcome, applied.revision, applied.origin) == ("applied", 5, OURS)
    return (await it.agents.status(it.node)).held


def test_an_agent_says_whose_state_it_holds_and_how_much(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        assert (await it.agents.status(it.node)).held == Held("", -1)
        held = await with_origin(it)
        assert (held.revision, held.origin, held.accounts, held.servers) == (5, OURS, 1, 1)
        assert (await it.agents.status(it.node)).tunnel_mtu == 1420
        patch = Patch(held.epoch, 5, 6, put_accounts=(an_account(2),), origin=LATER, base_mark=7)
        assert (await it.agents.patch(it.node, patch, 2000)).origin == LATER
        assert (await it.agents.status(it.node)).origin == LATER

    told(story)


@pytest.mark.parametrize("other", [Origin("theirs", 9, "fra"), Origin("ours", 9, "twin"), Origin()])
def test_nothing_is_taken_from_another_database_or_for_another_node_unless_it_was_said(
    told: Callable[[Story], None], other: Origin
) -> None:
    async def story(it: Rig) -> None:
        held = await with_origin(it)
        taken = Snapshot(9, (a_server(),), (), "", other)
        with pytest.raises(StaleAgent):
            await it.agents.patch(it.node, Patch(held.epoch, 5, 6, origin=other, base_mark=7), 2000)
        for replaces in (None, replace(held, revision=4), replace(held, origin=LATER)):
            with pytest.raises(StaleAgent):
                await it.agents.snapshot(it.node, replace(taken, replaces=replaces), 2000)
        assert len(list(it.end.accounts())) == 1
        assert (await it.agents.snapshot(it.node, replace(taken, replaces=held), 2000)).origin == other
        assert len(list(it.end.accounts())) == 0

    told(story)


def test_what_is_late_or_of_another_history_is_not_taken(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        held = await with_origin(it)
        for revision, origin in ((4, replace(OURS, mark=6)), (5, LATER)):
            with pytest.raises(StaleAgent):
                await it.agents.snapshot(it.node, Snapshot(revision, (), (), "", origin), 2000)
        for base, base_mark, revision in ((5, 6, 6), (4, 6, 5)):
            patch = Patch(held.epoch, base, revision, origin=LATER, base_mark=base_mark)
            with pytest.raises(StaleAgent):
                await it.agents.patch(it.node, patch, 2000)
        assert (await it.agents.status(it.node)).held == held

    told(story)


def test_what_an_agent_holds_is_told_field_by_field_without_keys(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        assert await it.agents.held(it.node) == []
        accounts = tuple(an_account(n, preshared_key=Secret(SHARED_KEY)) for n in range(1, 1202))
        snapshot = Snapshot(5, (a_server(),), accounts)
        await it.agents.snapshot(it.node, snapshot, 5000)
        told = await it.agents.held(it.node)
        assert {(one.kind, one.key) for one in told} == {("server", "fra1")} | {
            ("account", str(account.id)) for account in accounts
        }
        assert sorted(told, key=str) == sorted(objects_of(snapshot), key=str)
        assert SERVER_KEY not in str(told) and SHARED_KEY not in str(told)

    told(story)


def test_who_was_never_told_whose_state_it_holds_learns_it(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        assert (await it.agents.patch(it.node, Patch(epoch, 5, 5, origin=OURS, base_mark=7), 2000)).origin == OURS
        assert (await it.agents.status(it.node)).origin == OURS

    told(story)


def test_an_agent_knows_whose_state_it_holds_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        for turn in range(2):
            async with rig("real agent", tmp_path) as it, asyncio.timeout(30):
                held = (await it.agents.status(it.node)).held if turn else await with_origin(it)
                assert (held.revision, held.origin, held.accounts) == (5, OURS, 1)

    ran(story())


@pytest.mark.parametrize("said", [1, 1279, 9101, (1 << 32) - 1])
def test_what_no_tunnel_can_have_is_not_believed(tmp_path: Path, said: int) -> None:
    async def story() -> None:
        agents, agent, target = Agents(), FakeAgent(), f"unix:{tmp_path}/agent.sock"
        agent.tunnel_mtu = said
        async with serving(agent, target), asyncio.timeout(30):
            assert (await agents.status(Node(id=1, name="fra", target=target))).tunnel_mtu == 0
        await agents.close()

    ran(story())


def test_a_live_read_shows_peer_marks_and_classes(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        accounts = (an_account(1), an_account(2, download=0, upload=0), an_account(3, enabled=False))
        await it.agents.snapshot(it.node, Snapshot(1, (a_server(),), accounts), 2000)
        live = await it.agents.inspect(it.node, accounts[0].id)
        assert live.peer is not None
        assert (live.peer.public_key, live.peer.address) == (accounts[0].public_key, "10.1.0.2")
        assert live.marks is not None
        assert live.marks.mark == 100
        assert live.interface == "wg1"
        assert live.upload_class is not None and "rate 10Mbit" in live.upload_class
        assert live.download_class is not None and "rate 20Mbit" in live.download_class
        for look in Look:
            part = await it.agents.inspect(it.node, accounts[0].id, look)
            shown = {Look.PEER: part.peer, Look.MARKS: part.marks, Look.CLASSES: part.download_class}
            assert {one for one, there in shown.items() if there} == {look}
        unlimited = await it.agents.inspect(it.node, accounts[1].id)
        assert (unlimited.upload_class, unlimited.download_class) == (None, None)
        disabled = await it.agents.inspect(it.node, accounts[2].id)
        assert disabled.peer is None
        assert disabled.marks is not None
        with pytest.raises(AgentLacks):
            await it.agents.inspect(it.node, 7)
        with pytest.raises(AgentLacks):
            await it.agents.peers(it.node, "nowhere")

    told(story)


def test_a_live_read_of_a_server_shows_its_rules_and_root_qdiscs(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        await it.agents.snapshot(it.node, Snapshot(1, (a_server(),), ()), 2000)
        live = await it.agents.inspect_server(it.node, a_server().name)
        network = str(a_server().address.network)
        assert [(rule.source, rule.destination) for rule in live.nat] == [(network, "0.0.0.0/0")]
        assert (network, "internet", "ACCEPT") in [(r.source, r.destination, r.target) for r in live.forward]
        assert [device for device, _ in live.roots] == ["eth0", a_server().interface]
        assert all(text.startswith("qdisc htb 1: root ") for _, text in live.roots)
        with pytest.raises(AgentLacks):
            await it.agents.inspect_server(it.node, "nowhere")
        await it.agents.resync(it.node)

    told(story)


def test_who_is_in_by_ikev2_is_told_and_put_out(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        await with_snapshot(it, accounts=1)
        assert await it.agents.sessions(it.node) == []
        await it.agents.disconnect(it.node, an_account(1).id)  # nobody was in
        with pytest.raises(AgentLacks):
            await it.agents.disconnect(it.node, 999)

    told(story)


def test_what_a_node_shows_for_ikev2_and_who_logs_in_reaches_it(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        shown = Responder("certificate", Secret("key"), "authority", "vpn.example.com")
        server = replace(a_server(), responder=shown)
        account = replace(an_account(1), username="user_1", password=Secret("secret"))
        await it.agents.snapshot(it.node, Snapshot(1, (server,), (account,), "UTC"), 0)
        held = {one.kind: one.fields for one in await it.agents.held(it.node)}
        assert held["server"]["ikev2"] == "vpn.example.com" and held["account"]["username"] == "user_1"
        assert "secret" not in str(held) and "certificate" not in str(held)

    told(story)


def test_resolvers_of_ipv6_go_to_a_node_where_the_server_has_it() -> None:
    shown = Responder("certificate", Secret("key"), "authority", "vpn.example.com")
    first, second, third = IPv4Address("9.9.9.9"), IPv6Address("2620:fe::fe"), IPv6Address("2620:fe::9")
    both = replace(a_server(), responder=shown, dns_1=first, dns_1_ipv6=second, dns_2_ipv6=third)
    for server, dns in (
        (both, (first,)),
        (replace(both, address_ipv6=IPv6Interface("fd77::1/64")), (first, second, third)),
    ):
        (chunk,) = (one for one in snapshot_chunks(Snapshot(1, (server,), (), "UTC"), 0) if one.servers)
        held = server_in(chunk.servers[0]).ikev2
        assert held is not None and held.dns == dns


def test_totals_only_bring_what_changed_after_the_cursor(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        one, two, day = an_account(1), an_account(2), date(2024, 2, 29)
        await with_snapshot(it, accounts=2)
        await it.end.use(one, day, 1 << 40, 5)
        await it.end.use(two, day, 7, 8)
        epoch, cursor, totals = await it.agents.totals(it.node, "", 0)
        first, second = DayTotal(one.id, day, 1 << 40, 5), DayTotal(two.id, day, 7, 8)
        assert sorted(totals, key=lambda total: total.account_id) == [first, second]
        assert await it.agents.totals(it.node, epoch, cursor) == (epoch, cursor, [])
        await it.end.use(two, day, 1, 1)
        again = await it.agents.totals(it.node, epoch, cursor)
        assert again[2] == [DayTotal(two.id, day, 8, 9)]
        assert again[1] > cursor
        assert (await it.agents.totals(it.node, epoch, 0, [one.id], fresh=True))[2] == [first]
        assert len((await it.agents.totals(it.node, "another", again[1]))[2]) == 2

    told(story)


def test_an_agent_that_is_away_is_one_error_everywhere_and_comes_back(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        await it.end.leave()
        calls = (
            it.agents.status(it.node),
            it.agents.patch(it.node, Patch(epoch, 5, 6), 0),
            it.agents.snapshot(it.node, Snapshot(6), 0),
            it.agents.totals(it.node, epoch, 0),
            it.agents.inspect(it.node, an_account(1).id),
            it.agents.peers(it.node, "fra1"),
        )
        for call in calls:
            with pytest.raises(AgentUnreachable) as caught:
                await call
            assert type(caught.value) is AgentUnreachable
        await it.end.come_back()
        while True:
            try:
                assert (await it.agents.status(it.node)).revision == 5
                break
            except AgentUnreachable:
                await asyncio.sleep(0.05)

    told(story)


def test_a_slow_kernel_is_pending_then_applied(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        it.end.be_slow(0.3)
        applied = await it.agents.patch(it.node, Patch(epoch, 5, 6, put_accounts=(an_account(2),)), 10)
        assert (applied.outcome, applied.revision) == ("pending", 6)
        assert (await it.agents.status(it.node)).applied_revision == 5
        await asyncio.sleep(0.35)
        assert (await it.agents.status(it.node)).applied_revision == 6

    told(story)


def test_one_refused_account_spoils_only_its_own_patch(told: Callable[[Story], None]) -> None:
    async def story(it: Rig) -> None:
        epoch = await with_snapshot(it)
        bad = an_account(2)
        it.end.refuse(bad, "no room")
        applied = await it.agents.patch(it.node, Patch(epoch, 5, 6, put_accounts=(bad,)), 2000)
        assert applied.outcome == "failed"
        assert [(f.account_id, f.subject, f.reason) for f in applied.failures] == [(bad.id, "peer_2", "no room")]
        other = await it.agents.patch(it.node, Patch(epoch, 6, 7, put_accounts=(an_account(3),)), 2000)
        assert other.outcome == "applied"
        assert len((await it.agents.status(it.node)).failures) == 1

    told(story)


# -- only the socket --------------------------------------------------------------------------------------------------


def test_a_socket_of_another_host_is_not_called_whatever_is_at_its_path_here(tmp_path: Path) -> None:
    node = Node(id=1, name="local", target=f"unix:{tmp_path}/agent.sock", host="there")

    async def story() -> None:
        here, there, alone = Agents(this_host="here"), Agents(this_host="there"), Agents()
        async with serving(FakeAgent(), node.target):
            with pytest.raises(AgentUnreachable, match=r"is on another host.*node edit local --target") as refused:
                await here.snapshot(node, Snapshot(1, (), (), "UTC"), 0)
            assert refused.value.cause == "other-host"
            for agents, one in (
                (there, node),
                (alone, node),
                (here, replace(node, host="")),
                (here, replace(node, host="here")),
            ):
                assert (await agents.status(one)).needs_snapshot
        for agents in (here, there, alone):
            await agents.close()

    ran(story())


def test_an_agent_that_restarts_is_found_again_at_once(tmp_path: Path) -> None:
    node = Node(id=1, name="fra", target=f"unix:{tmp_path}/agent.sock")

    async def story() -> None:
        agents, agent = Agents(), FakeAgent()
        with pytest.raises(AgentUnreachable, match="fra"):
            await agents.status(node)
        for _ in range(2):
            async with serving(agent, node.target):
                started = asyncio.get_running_loop().time()
                while True:
                    try:
                        await agents.status(node)
                        break
                    except AgentUnreachable:
                        await asyncio.sleep(0.02)
                assert asyncio.get_running_loop().time() - started < 1.5
            with pytest.raises(AgentUnreachable):
                await agents.status(node)
        await agents.close()

    ran(story())


def test_an_agent_that_never_answers_costs_a_deadline_and_no_more(tmp_path: Path) -> None:
    """A socket that accepts and says nothing, like a process that was stopped."""
    node = Node(id=1, name="fra", target=f"unix:{tmp_path}/agent.sock")

    async def story() -> None:
        agents = Agents()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(tmp_path / "agent.sock"))
            silent.listen(8)
            started = asyncio.get_running_loop().time()
            with pytest.raises(AgentUnreachable):
                await agents.status(node)
            assert asyncio.get_running_loop().time() - started < 4
            await agents.close()

    ran(story())
