"""An agent in the same process: desired state and totals in memory, by the rules of protos/agent/v1/agent.proto.

`FakeAgents` has the methods of `gateway.agents.Agents` and holds one `FakeAgent` for each node name. What a test wants
to go wrong is switched on the agent: `away`, `fail_next`, `lose_next_answer`, `slow`, `refuse`, `lose_state()`.
tests/contract/test_agents.py keeps it honest.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from datetime import date
from ipaddress import IPv4Network
from typing import TypeVar

from gateway.agents import AgentLacks, AgentRefused, Agents, StaleAgent
from gateway.agents.codec import objects_of
from gateway.errors import AgentUnreachable
from gateway.live import HeldObject, LiveRule, LiveServer, Session
from gateway.model import (
    Account,
    AgentStatus,
    Applied,
    DayTotal,
    Failure,
    LiveAccount,
    Look,
    MarkCounters,
    Node,
    Origin,
    Patch,
    PeerState,
    Server,
    Snapshot,
)

UPLINK = "eth0"
T = TypeVar("T")


class FakeAgent:
    def __init__(self) -> None:
        self.away = False  # every call fails
        self.fail_next = 0  # so many calls fail before they did anything
        self.lose_next_answer = False  # one call works, but its answer is lost
        self.slow = 0.0  # seconds that the kernel takes for each change
        self.refuse: dict[int, str] = {}  # account id -> why the kernel refuses it
        self.networks: tuple[tuple[IPv4Network, str], ...] = ()  # the node's own, with their interfaces
        self.tunnel_mtu = 1420
        self.asks = False  # it was cut off, and serves nobody
        self.at_once = 100_000  # totals in one answer
        self.sessions: list[Session] = []  # who is in by IKEv2
        self.ikev2 = ("", 0)
        self.calls: list[str] = []  # names of the calls that came, failed ones included
        self.patches: list[Patch] = []
        self.snapshots: list[Snapshot] = []
        self.lose_state()

    def lose_state(self) -> None:
        """A new state file: another epoch, nothing held, totals from zero."""
        self.epoch = uuid.uuid4().hex
        self.revision = 0
        self.needs_snapshot = True
        self.origin = Origin()
        self.time_zone = "UTC"
        self.servers: dict[str, Server] = {}
        self.accounts: dict[int, Account] = {}
        self.handshakes: dict[int, int] = {}
        self._totals: dict[tuple[int, date], tuple[int, int, int]] = {}  # download, upload, cursor
        self._cursor = 0
        self._ready: list[tuple[float, int]] = [(0.0, 0)]  # from this monotonic time on, the kernel shows this revision

    # -- what a test does to it ----------------------------------------------------------------------------------

    def use(self, account_id: int, day: date, download: int, upload: int) -> None:
        """Traffic flows."""
        old = self._totals.get((account_id, day), (0, 0, 0))
        self._cursor += 1
        self._totals[account_id, day] = (old[0] + download, old[1] + upload, self._cursor)

    def handshake(self, account_id: int, at: int) -> None:
        self.handshakes[account_id] = at

    # -- what the wire offers ------------------------------------------------------------------------------------

    async def status(self) -> AgentStatus:
        self._called("status")
        return self._answered(
            AgentStatus(
                epoch=self.epoch,
                revision=self.revision,
                applied_revision=self._applied_revision(),
                needs_snapshot=self.needs_snapshot,
                failures=self._failures(self.accounts),
                version="fake",
                wireguard="userspace",
                uplink=UPLINK,
                marks="iptables",
                time_zone=self.time_zone,
                networks=self.networks,
                origin=self.origin,
                accounts=len(self.accounts),
                servers=len(self.servers),
                tunnel_mtu=self.tunnel_mtu,
                ikev2=self.ikev2,
                asks=self.asks,
            )
        )

    async def patch(self, patch: Patch, settle_ms: int) -> Applied:
        self._called("patch")
        if self.needs_snapshot:
            raise StaleAgent("stale: holds nothing")
        if patch.epoch != self.epoch:
            raise StaleAgent(f"stale: this epoch is {self.epoch}")
        if patch.base > self.revision:
            raise StaleAgent(f"stale: this revision is {self.revision}")
        self._check_origin(patch.origin)
        for revision, mark in ((patch.base, patch.base_mark), (patch.revision, patch.origin.mark)):
            self._check_same(revision, mark)
        touched = {account.id for account in patch.put_accounts} | set(patch.remove_accounts)
        if patch.revision > self.revision:
            servers = {name: s for name, s in self.servers.items() if name not in patch.remove_servers}
            servers |= {server.name: server for server in patch.put_servers}
            accounts = {key: a for key, a in self.accounts.items() if key not in touched}
            accounts |= {account.id: account for account in patch.put_accounts}
            self._take(servers, accounts, patch.revision, patch.time_zone)
            self.origin = patch.origin
            self.patches.append(patch)
        elif patch.revision == self.revision:
            self.origin = patch.origin
        if patch.revision >= self.revision:
            self.asks = False
        return self._answered(await self._settled(settle_ms, touched))

    async def snapshot(self, snapshot: Snapshot, settle_ms: int) -> Applied:
        self._called("snapshot")
        replaces = snapshot.replaces
        named = replaces is not None and (replaces.revision, replaces.origin) == (self.revision, self.origin)
        if not self.needs_snapshot and not named:
            self._check_origin(snapshot.origin)
            if self.origin.identity and snapshot.revision < self.revision:
                raise StaleAgent(f"stale: this revision is {self.revision}")
            self._check_same(snapshot.revision, snapshot.origin.mark)
        servers = {server.name: server for server in snapshot.servers}
        accounts = {account.id: account for account in snapshot.accounts}
        self._take(servers, accounts, snapshot.revision, snapshot.time_zone)
        self.needs_snapshot, self.origin, self.asks = False, snapshot.origin, False
        self.snapshots.append(snapshot)
        return self._answered(await self._settled(settle_ms, accounts))

    async def totals(
        self, epoch: str, after: int, account_ids: Iterable[int] = (), *, fresh: bool = False
    ) -> tuple[str, int, list[DayTotal]]:
        self._called("totals fresh" if fresh else "totals")
        if epoch != self.epoch:
            after = 0
        only = set(account_ids)
        rows = [
            (cursor, DayTotal(account_id, day, download, upload))
            for (account_id, day), (download, upload, cursor) in self._totals.items()
            if cursor > after and (not only or account_id in only)
        ]
        rows.sort(key=lambda row: row[0])
        last = rows[self.at_once][0] - 1 if len(rows) > self.at_once else self._cursor
        return self._answered((self.epoch, last, [total for cursor, total in rows if cursor <= last]))

    async def inspect(self, account_id: int, look: Look | None = None) -> LiveAccount:
        self._called("inspect")
        account = self.accounts.get(account_id)
        if account is None:
            raise AgentLacks(f"no account {account_id} here")
        peer, marks, classes = (look in (None, one) for one in Look)
        used = [total[:2] for (owner, _), total in self._totals.items() if owner == account_id]
        download, upload = sum(total[0] for total in used), sum(total[1] for total in used)
        return self._answered(
            LiveAccount(
                peer=self._peer(account) if account.enabled and peer else None,
                marks=MarkCounters(account.mark, download // 1000, download, upload // 1000, upload) if marks else None,
                uplink=UPLINK if classes else "",
                interface=self.servers[account.server].interface,
                upload_class=_class_text(account.mark, account.upload if account.enabled and classes else 0),
                download_class=_class_text(account.mark, account.download if account.enabled and classes else 0),
            )
        )

    async def inspect_server(self, server: str) -> LiveServer:
        self._called("inspect_server")
        if server not in self.servers:
            raise AgentLacks(f"no server {server} here")
        found = self.servers[server]
        network = str(found.address.network)
        target = f"SNAT to:{found.external_ip}" if found.external_ip else "MASQUERADE"
        inside = "ACCEPT" if found.internal_traffic else "DROP"
        return self._answered(
            LiveServer(
                nat=(LiveRule(network, "0.0.0.0/0", target, 3, 180),),
                forward=(LiveRule(network, "internet", "ACCEPT", 7, 420), LiveRule(network, network, inside)),
                roots=tuple((device, f"qdisc htb 1: root {device}\n") for device in (UPLINK, found.interface)),
            )
        )

    async def resync(self) -> None:
        self._called("resync")
        self._answered(None)

    async def peers(self, server: str) -> list[PeerState]:
        self._called("peers")
        if server not in self.servers:
            raise AgentLacks(f"no server {server} here")
        return self._answered([self._peer(a) for a in self.accounts.values() if a.server == server and a.enabled])

    async def who_is_in(self) -> list[Session]:
        self._called("sessions")
        return self._answered([one for one in self.sessions if one.account_id in self.accounts])

    async def disconnect(self, account_id: int) -> bool:
        self._called("disconnect")
        if account_id not in self.accounts:
            raise AgentLacks(f"no account {account_id} here")
        there = [one for one in self.sessions if one.account_id == account_id]
        self.sessions = [one for one in self.sessions if one not in there]
        return self._answered(bool(there))

    async def held(self) -> list[HeldObject]:
        self._called("held")
        snapshot = Snapshot(self.revision, tuple(self.servers.values()), tuple(self.accounts.values()))
        return self._answered(list(objects_of(snapshot)))

    # -- inside --------------------------------------------------------------------------------------------------

    def _check_origin(self, new: Origin) -> None:
        if self.origin.identity and (self.origin.identity, self.origin.node) != (new.identity, new.node):
            raise StaleAgent("stale: this agent holds the state of another database, or is another node")

    def _check_same(self, revision: int, mark: int) -> None:
        if self.origin.mark and revision == self.revision and mark != self.origin.mark:
            raise StaleAgent(f"stale: revision {revision} here is another one of that number")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.fail_next:
            self.fail_next -= 1
            raise AgentUnreachable("told to fail")
        if self.away:
            raise AgentUnreachable("away")

    def _answered(self, answer: T) -> T:
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise AgentUnreachable("the answer was lost")
        return answer

    def _take(self, servers: dict[str, Server], accounts: dict[int, Account], revision: int, time_zone: str) -> None:
        for account in accounts.values():
            if account.server not in servers:
                raise AgentRefused(f"account {account.name}: server: there is no server {account.server!r} here")
        self.servers, self.accounts, self.revision = servers, accounts, revision
        self.time_zone = time_zone or self.time_zone
        self._ready.append((time.monotonic() + self.slow, revision))

    def _applied_revision(self) -> int:
        now = time.monotonic()
        return next(revision for at, revision in reversed(self._ready) if at <= now)

    def _failures(self, touched: Iterable[int]) -> tuple[Failure, ...]:
        both = self.refuse.keys() & self.accounts.keys() & set(touched)
        return tuple(Failure(key, self.accounts[key].name, self.refuse[key]) for key in sorted(both))

    async def _settled(self, settle_ms: int, touched: Iterable[int]) -> Applied:
        revision, wait = self.revision, self._ready[-1][0] - time.monotonic()
        if wait > 0:
            await asyncio.sleep(min(wait, settle_ms / 1000))
        if self._applied_revision() < revision:
            return Applied("pending", self.epoch, revision, (), self.origin)
        failures = self._failures(touched)
        return Applied("failed" if failures else "applied", self.epoch, self.revision, failures, self.origin)

    def _peer(self, account: Account) -> PeerState:
        at = self.handshakes.get(account.id, 0)
        endpoint = "192.0.2.1:40000" if at else ""
        return PeerState(account.id, account.public_key, str(account.address), endpoint, latest_handshake=at)


def _class_text(mark: int, rate: int) -> str | None:
    if not rate:
        return None
    return (
        f"class htb 1:{mark} root leaf {mark}: prio 0 rate {rate}Mbit ceil {rate}Mbit burst 15Kb cburst 15Kb \n"
        " Sent 0 bytes 0 pkt (dropped 0, overlimits 0 requeues 0) \n"
        " backlog 0b 0p requeues 0\n"
    )


class FakeAgents(Agents):
    """Every method of `Agents`, answered by fakes; nothing of it is used but its type.

    `kept`: names of the nodes that there are, as it was told. `back`: tells that there is a connection again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agents: dict[str, FakeAgent] = {}
        self.kept: list[str] = []
        self.back: Callable[[str], None] = lambda node: None

    def __getitem__(self, node: str) -> FakeAgent:
        """The agent of a node; a new one holds nothing."""
        return self._agents.setdefault(node, FakeAgent())

    def also(self, node: str, name: str) -> None:
        """`node` reaches the agent of `name`: two names for one."""
        self._agents[node] = self[name]

    def keep(self, nodes: Collection[Node]) -> None:
        self.kept = sorted(node.name for node in nodes)

    def when_back(self, tell: Callable[[str], None]) -> None:
        self.back = tell

    async def status(self, node: Node) -> AgentStatus:
        return await self[node.name].status()

    async def patch(self, node: Node, patch: Patch, settle_ms: int) -> Applied:
        return await self[node.name].patch(patch, settle_ms)

    async def snapshot(self, node: Node, snapshot: Snapshot, settle_ms: int) -> Applied:
        return await self[node.name].snapshot(snapshot, settle_ms)

    async def totals(
        self, node: Node, epoch: str, after: int, account_ids: Iterable[int] = (), *, fresh: bool = False
    ) -> tuple[str, int, list[DayTotal]]:
        return await self[node.name].totals(epoch, after, account_ids, fresh=fresh)

    async def inspect(self, node: Node, account_id: int, look: Look | None = None) -> LiveAccount:
        return await self[node.name].inspect(account_id, look)

    async def inspect_server(self, node: Node, server: str) -> LiveServer:
        return await self[node.name].inspect_server(server)

    async def resync(self, node: Node) -> None:
        await self[node.name].resync()

    async def sessions(self, node: Node) -> list[Session]:
        return await self[node.name].who_is_in()

    async def disconnect(self, node: Node, account_id: int) -> None:
        await self[node.name].disconnect(account_id)

    async def held(self, node: Node) -> list[HeldObject]:
        return await self[node.name].held()

    async def peers(self, node: Node, server: str) -> list[PeerState]:
        return await self[node.name].peers(server)

    async def close(self) -> None:
        """Nothing to close: the agents go on, as real ones do."""
