"""A server moves from one node to another: real agents over kernels with a memory, real gRPC, sync, stores, commands.

Traffic goes wherever a kernel lets the account in; the sum over both nodes is what the statistics must say.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway import placement, server_commands
from gateway.accounts import Accounts
from gateway.agents import Agents
from gateway.allocate import MARKS, without
from gateway.collect import Collect
from gateway.creation import Creation
from gateway.errors import Conflict
from gateway.model import Account, AccountEdit, AgentStatus, NewAccount, ServerValues
from gateway.placement import Placement
from gateway.port_forwards import PortForwards
from gateway.servers import Servers
from gateway.store import Store, Transaction, open_store, ranges
from gateway.store import nodes as node_rows
from gateway.store import servers as server_rows
from gateway.store import usage as usage_rows
from gateway.store.servers import KeptServer
from gateway.sync import Sync
from tests.contract.commands import command
from tests.fakes import direct
from tests.fakes.agent_core import AgentCore, running_core
from tests.fakes.product import KEY

pytestmark = pytest.mark.anyio

SECONDS = 10


class Gateway:
    def __init__(self, store: Store, settle_seconds: float = 2.0) -> None:
        self.store, self.agents = store, Agents()
        self.sync = Sync(store, self.agents, settle_seconds, poll_seconds=0.1)
        self.collect = Collect(store, self.agents, collect_seconds=0)  # each round is due
        self.accounts = Accounts(store, Creation(store), self.sync, self.collect, self.agents)
        self.servers = Servers(store, self.sync, self.agents)
        self.placement = Placement(store, self.sync, self.collect, look_seconds=0.05)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, *, moves: bool = True) -> None:
        self._tasks = [asyncio.create_task(self.sync.run())]
        if moves:
            self._tasks.append(asyncio.create_task(self.placement.run()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.agents.close()


class Fleet:
    """Two nodes, fra and ams, with server `s` on fra."""

    def __init__(self, folder: Path, url: str, store: Store, nodes: dict[str, AgentCore]) -> None:
        self.folder, self.url, self.store, self.nodes = folder, url, store, nodes
        self.fra, self.ams = nodes["fra"], nodes["ams"]
        self.gateway = Gateway(store)
        self.sent = {"download": 0, "upload": 0}

    async def move(self, to: str, *, force: bool = False) -> None:
        await self.store.change(lambda tx: placement.begin(tx, "s", to, force=force))

    async def sold(self, count: int) -> list[Account]:
        return [(await self.gateway.accounts.create(NewAccount(server="s"))).value for _ in range(count)]

    def serving(self) -> set[str]:
        """The nodes whose kernel lets any account in."""
        return {name for name, core in self.nodes.items() if core.kernel.peers.held}

    async def use(self, account: Account, count: int) -> None:
        """So many bytes down, half of them up, wherever the account gets in."""
        for core in self.nodes.values():
            if any(key[1] == account.public_key for key in core.kernel.peers.held):
                core.kernel.pass_traffic(str(account.address), count, count // 2)
                self.sent["download"] += count
                self.sent["upload"] += count // 2

    async def counted(self, account: Account) -> dict[str, int]:
        for core in self.nodes.values():
            await core.reconciler.sample()
        await self.gateway.collect.collect()
        now = datetime.now(UTC)
        days = await self.store.read(lambda tx: usage_rows.month(tx, account.id, now.year, now.month))
        return {"download": sum(day.download for day in days), "upload": sum(day.upload for day in days)}

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        (self.folder / "secret.key").write_text(KEY.hex())
        (self.folder / "secret.key").chmod(0o600)
        (self.folder / "gateway.toml").write_text(f'database = "{self.url}"\nkey_file = "{self.folder}/secret.key"\n')
        (self.folder / "gateway.toml").chmod(0o600)
        return await command(self.folder / "gateway.toml", *arguments)

    async def check_numbers(self) -> None:
        """Marks that are free are those that nobody has."""
        there = await direct.accounts(self.gateway.accounts)
        for node in await direct.nodes(self.store):
            scope = ranges.marks_of(node.id)
            free = await self.store.read(lambda tx, scope=scope: ranges.free(tx, scope))  # type: ignore[misc]
            assert free == without(MARKS, [account.mark for account in there if account.node == node.name])


async def until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - it looks at several things at once
            await asyncio.sleep(0.02)


@asynccontextmanager
async def a_fleet(folder: Path, url: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(await open_store(url, KEY))
        nodes = {}
        for name in ("fra", "ams"):
            core = await stack.enter_async_context(running_core(folder / f"{name}.sock", folder / f"{name}.db"))
            nodes[name] = core
            await direct.add_node(store, name, f"unix:{folder}/{name}.sock", f"{name}.example.com")
        fleet = Fleet(folder, url, store, nodes)
        fleet.gateway.start()
        await fleet.gateway.servers.create(ServerValues(node="fra", name="s", interface="wg7", listen_port=51999))
        try:
            yield fleet
        finally:
            await fleet.gateway.stop()


@pytest.fixture
async def fleet(tmp_path: Path, database_url: str) -> AsyncIterator[Fleet]:
    async with a_fleet(tmp_path, database_url) as fleet:
        yield fleet


async def test_a_server_moves_with_everything_and_not_a_byte_is_lost_or_doubled(fleet: Fleet) -> None:
    anna, bert, *_ = await fleet.sold(5)
    await fleet.use(anna, 1_000_000)
    before = {account.name: account for account in await direct.accounts(fleet.gateway.accounts)}
    both = []
    for core in fleet.nodes.values():
        core.kernel.watch = lambda *_: both.append(fleet.serving()) if len(fleet.serving()) > 1 else None
    await fleet.use(anna, 200)  # after the last sample: the removal counts it
    await fleet.move("ams")
    await until(lambda: len(fleet.ams.kernel.peers.held) == 5)
    assert both == [], "both nodes let somebody in"
    assert not fleet.fra.kernel.peers.held and not fleet.fra.kernel.marks.held and not fleet.fra.kernel.links.held
    await fleet.use(anna, 30_000)
    assert fleet.sent == {"download": 1_030_200, "upload": 515_100}
    assert await fleet.counted(anna) == fleet.sent
    await fleet.move("fra")  # and back: its former totals of this day go on
    await until(lambda: len(fleet.fra.kernel.peers.held) == 5)
    await fleet.use(anna, 7_000)
    assert await fleet.counted(anna) == fleet.sent
    assert await fleet.counted(bert) == {"download": 0, "upload": 0}
    assert {account.name: account for account in await direct.accounts(fleet.gateway.accounts)} == before
    await fleet.check_numbers()


async def test_marks_that_are_in_use_there_are_given_anew_and_the_others_stay(fleet: Fleet) -> None:
    await fleet.gateway.servers.create(ServerValues(node="ams", name="other"))
    there = [(await fleet.gateway.accounts.create(NewAccount(server="other"))).value for _ in range(2)]
    mine = await fleet.sold(4)
    assert {account.mark for account in there} < {account.mark for account in mine}
    await fleet.move("ams")
    await until(lambda: len(fleet.ams.kernel.peers.held) == 6)
    after = {account.id: account for account in await direct.accounts(fleet.gateway.accounts)}
    assert len({account.mark for account in after.values()}) == 6
    assert [after[account.id].mark == account.mark for account in mine] == [False, False, True, True]
    assert {account.mark for account in after.values()} == {m.mark for m in fleet.ams.kernel.marks.held.values()}
    await fleet.check_numbers()
    # What fra gave back is free there for others.
    await fleet.gateway.servers.create(ServerValues(node="fra", name="new"))
    assert (await fleet.gateway.accounts.create(NewAccount(server="new"))).value.mark == 100


async def test_ports_go_along_and_one_that_is_taken_there_refuses_the_move(fleet: Fleet) -> None:
    anna, bert = await fleet.sold(2)
    forwards = PortForwards(fleet.store, fleet.gateway.sync)
    await forwards.add("s", "tcp", 8080, anna.name, 80)
    await forwards.add("s", "udp", 51820, bert.name, 7777)
    assert set(fleet.fra.kernel.ports.held) == {("tcp", 8080), ("udp", 51820)}
    await fleet.gateway.servers.create(ServerValues(node="ams", name="other", listen_port=51820))
    with pytest.raises(Conflict, match=r"Port 51820/udp, which leads to account .*, is in use on node ams"):
        await fleet.move("ams")
    await forwards.remove("s", "udp", 51820)
    other = (await fleet.gateway.accounts.create(NewAccount(server="other"))).value
    await forwards.add("other", "tcp", 8080, other.name, 80)
    with pytest.raises(Conflict, match="Port 8080/tcp, which leads to account"):
        await fleet.move("ams")
    await forwards.remove("other", "tcp", 8080)
    await fleet.move("ams")
    await until(lambda: len(fleet.ams.kernel.ports.held) == 1)
    assert not fleet.fra.kernel.ports.held
    (led,) = fleet.ams.kernel.ports.held.values()
    assert (led.key, led.address, led.to_port) == (("tcp", 8080), anna.address, 80)
    await fleet.gateway.accounts.edit(anna.name, AccountEdit(enabled=False))
    assert not fleet.ams.kernel.ports.held
    await fleet.gateway.accounts.edit(anna.name, AccountEdit(enabled=True))
    assert len(fleet.ams.kernel.ports.held) == 1
    await fleet.gateway.accounts.delete(anna.name)
    assert not fleet.ams.kernel.ports.held and (await forwards.list("s")).value == []


async def test_while_the_old_node_is_away_the_new_one_waits_and_changes_go_along(fleet: Fleet) -> None:
    anna, bert, carl = await fleet.sold(3)
    await fleet.use(anna, 5_000)
    await fleet.fra.stop()
    await fleet.move("ams")
    accounts = fleet.gateway.accounts
    assert (await accounts.edit(anna.name, AccountEdit(download=9))).pending == "ams"
    assert (await accounts.edit(bert.name, AccountEdit(enabled=False))).pending == "ams"
    assert (await accounts.delete(carl.name)).pending == "ams"
    made = await accounts.create(NewAccount(server="s", name="dora"))
    await fleet.gateway.servers.edit("s", ServerValues(mtu=1300))
    assert (made.node, made.pending) == ("ams", "ams")
    await asyncio.sleep(3)  # longer than anybody waits for a node
    assert fleet.serving() == {"fra"}, "the old node has not let go yet"
    assert fleet.ams.reconciler.desired is None or not fleet.ams.reconciler.desired.servers
    await fleet.use(anna, 300)
    with pytest.raises(Conflict, match="Node fra cannot be removed: server s is on its way from it"):
        await direct.remove_node(fleet.store, "fra")
    with pytest.raises(Conflict, match="Server s is on its way to node ams: let it arrive"):
        await fleet.move("fra")
    await fleet.fra.start()
    await until(lambda: len(fleet.ams.kernel.peers.held) == 2)
    assert fleet.serving() == {"ams"}
    desired = fleet.ams.reconciler.desired
    assert desired is not None
    held = {account.name: account for account in desired.accounts.values()}
    assert held.keys() == {anna.name, bert.name, "dora"}
    assert (held[anna.name].download, held[bert.name].enabled) == (9, False)
    assert await fleet.counted(anna) == fleet.sent == {"download": 5_300, "upload": 2_650}
    await fleet.check_numbers()


async def test_a_forced_move_does_not_wait_and_the_old_node_lets_go_when_it_is_back(fleet: Fleet) -> None:
    (anna,) = await fleet.sold(1)
    await fleet.use(anna, 4_000)
    await fleet.fra.stop()
    await fleet.move("ams", force=True)
    await until(lambda: len(fleet.ams.kernel.peers.held) == 1)
    await fleet.use(anna, 100)  # on both: its old node does not know, and counts what it lets pass
    assert await fleet.counted(anna) == {"download": 100, "upload": 50}
    await fleet.gateway.accounts.delete(anna.name)
    await fleet.fra.start()
    await until(lambda: not fleet.serving())
    assert await fleet.counted(anna) == fleet.sent == {"download": 4_200, "upload": 2_100}
    await direct.remove_node(fleet.store, "fra")


async def test_a_gateway_that_dies_in_the_middle_leaves_the_rest_to_whoever_comes_next(fleet: Fleet) -> None:
    (anna,) = await fleet.sold(1)
    await fleet.gateway.stop()
    halfway = Gateway(fleet.store)
    halfway.start(moves=False)
    await fleet.move("ams")
    await until(lambda: not fleet.serving())
    await halfway.stop()  # the old node has let go, and nobody has said so to the new one
    both = [Gateway(fleet.store), Gateway(fleet.store)]
    before = (await direct.node(fleet.store, "ams")).revision
    for gateway in both:
        gateway.start()
    await until(lambda: fleet.serving() == {"ams"})
    assert (await direct.node(fleet.store, "ams")).revision == before + 1, "the second step was done once"
    for gateway in both:
        await gateway.stop()
    fleet.gateway = Gateway(fleet.store)
    assert (await direct.accounts(fleet.gateway.accounts))[0].id == anna.id


async def test_back_and_forth_while_nodes_are_away_ends_where_it_should(fleet: Fleet) -> None:
    """Tombstones of one node meet the return of what they are of."""
    (anna,) = await fleet.sold(1)
    await fleet.fra.stop()
    await fleet.move("ams", force=True)
    await until(lambda: len(fleet.ams.kernel.peers.held) == 1)
    await fleet.move("fra")  # ams lets go; fra is away and was never told that it had lost it
    await until(lambda: not fleet.ams.kernel.peers.held)
    await fleet.move("ams", force=True)
    await fleet.gateway.accounts.edit(anna.name, AccountEdit(upload=3))
    await fleet.move("fra", force=True)
    await fleet.gateway.accounts.delete(anna.name)
    bert = (await fleet.gateway.accounts.create(NewAccount(server="s", name="bert"))).value
    await fleet.fra.start()
    await until(lambda: {key[1] for key in fleet.fra.kernel.peers.held} == {bert.public_key})
    await until(lambda: fleet.serving() == {"fra"})


async def test_what_cannot_move_is_refused_and_nothing_is_changed(fleet: Fleet) -> None:
    await fleet.sold(1)
    create, edit = fleet.gateway.servers.create, fleet.gateway.servers.edit

    async def refused(text: str) -> None:
        before = await direct.nodes(fleet.store)
        with pytest.raises(Conflict, match=text):
            await fleet.move("ams")
        assert [node.revision for node in await direct.nodes(fleet.store)] == [node.revision for node in before]
        assert fleet.serving() == {"fra"}

    await create(ServerValues(node="ams", name="port", listen_port=51999))
    await refused("Port 51999 is in use on node ams, by server port")
    await edit("port", ServerValues(listen_port=51998))
    await create(ServerValues(node="ams", name="interface", interface="wg7"))
    await refused("Interface wg7 is in use on node ams, by server interface")
    await fleet.gateway.servers.delete("interface")
    await fleet.store.change(lambda tx: node_rows.drain(tx, "ams", True))
    await refused("Node ams is drained")
    await fleet.store.change(lambda tx: node_rows.drain(tx, "ams", False))
    told = AgentStatus("e", 1, 1, needs_snapshot=False)
    networks = replace(told, networks=((IPv4Interface("10.0.0.0/16").network, "eth1"),))
    with pytest.raises(Conflict, match=r"eth1 of node ams has 10\.0\.0\.0/16"):
        await fleet.store.change(lambda tx: placement.begin(tx, "s", "ams", networks))
    (anna,) = await fleet.sold(1)
    await PortForwards(fleet.store, fleet.gateway.sync).add("s", "tcp", 8080, anna.name, 80)
    own = replace(told, listening=frozenset({("udp", 51999)}))
    await edit("s", ServerValues(listen_port=51999))
    with pytest.raises(Conflict, match="Port 51999 is in use on node ams, by a program of its own"):
        await fleet.store.change(lambda tx: placement.begin(tx, "s", "ams", own))
    listening = replace(told, listening=frozenset({("tcp", 8080)}))
    with pytest.raises(Conflict, match=r"Port 8080/tcp, which leads to account .*, is in use on node ams"):
        await fleet.store.change(lambda tx: placement.begin(tx, "s", "ams", listening))
    with pytest.raises(Conflict, match="Server s is on node fra already"):
        await fleet.move("fra")


async def test_the_command_moves_waits_and_says_what_clients_need(fleet: Fleet) -> None:
    await fleet.sold(2)
    status, out, err = await fleet.command("server", "move", "s", "--node", "ams")
    assert (status, out) == (0, ""), err
    assert err.splitlines() == [
        "server s is on node ams",
        "clients have fra.example.com in their configurations: that must lead to node ams now; new configurations say "
        "ams.example.com",
    ]
    assert fleet.serving() == {"ams"}
    title, line = (await fleet.command("server", "list"))[1].splitlines()
    assert title.split() == ["NAME", "NODE", "INTERFACE", "PORT", "ADDRESS", "ACCOUNTS", "STATE"]
    assert line.split() == ["s", "ams", "wg7", "51999", "10.0.0.1/24", "2", "OK"]
    await fleet.ams.stop()
    status, _, err = await fleet.command("server", "move", "s", "--node", "fra")
    assert status == 1 and "Node ams does not answer" in err and "say --force if it is dead" in err
    assert (await fleet.command("server", "move", "s", "--node", "fra", "--force"))[0] == 0
    assert fleet.serving() == {"fra", "ams"}
    await fleet.ams.start()
    await until(lambda: fleet.serving() == {"fra"})


async def test_changes_beside_moves_are_all_there_in_the_end(fleet: Fleet) -> None:
    accounts, first = fleet.gateway.accounts, await fleet.sold(6)

    async def changes(account: Account) -> None:
        for rate in range(1, 6):
            await accounts.create(NewAccount(server="s"))
            await accounts.edit(account.name, AccountEdit(download=rate))

    async def moved() -> None:
        for to in ("ams", "fra", "ams"):
            await fleet.move(to, force=True)
            await asyncio.sleep(0.1)

    await asyncio.gather(moved(), *map(changes, first))
    await until(lambda: fleet.serving() == {"ams"} and len(fleet.ams.kernel.peers.held) == 36)
    there = await direct.accounts(accounts)
    assert {account.download for account in there if account.id in {one.id for one in first}} == {5}
    desired = fleet.ams.reconciler.desired
    assert desired is not None
    assert {a.id: (a.mark, a.download) for a in desired.accounts.values()} == {
        a.id: (a.mark, a.download) for a in there
    }
    await fleet.check_numbers()


async def test_the_socket_of_another_host_is_for_the_gateway_there(fleet: Fleet) -> None:
    """Where gateways share a database; a file is one gateway's, and moves with its node to another host."""
    target = (await fleet.store.read(lambda tx: node_rows.found(tx, "fra"))).target
    await fleet.store.change(lambda tx: node_rows.edit(tx, "fra", target, host="elsewhere"))
    away = "is on another host, and only a gateway there calls it"
    assert (away in (await fleet.command("node", "list"))[1]) == fleet.store.is_shared
    assert (await fleet.command("node", "edit", "fra", "--target", target))[0] == 0
    assert away not in (await fleet.command("node", "list"))[1]


async def test_who_waits_for_a_move_does_not_wait_for_what_others_change_meanwhile(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change gives the server another revision: here there is a new one whenever somebody looks."""
    find, looks = server_rows.find, count()

    async def found(tx: Transaction, name: str) -> KeptServer | None:
        kept = await find(tx, name)
        has_arrived = kept is not None and kept.server.node == "ams" and not kept.is_moving
        return replace(kept, revision=kept.revision + next(looks)) if kept and has_arrived else kept

    monkeypatch.setattr(server_commands, "rows", SimpleNamespace(find=found))
    monkeypatch.setattr(server_commands, "WAIT_SECONDS", 5.0)
    await fleet.sold(3)
    asked = argparse.Namespace(name="s", node="ams", force=False)
    assert await server_commands.server_move(fleet.store, asked) == 0
