"""Port forwardings: what reaches an account by a port of its server's node. v1's rules and error texts.

A forwarding travels with its account: a change of it is one of the account, so it goes with it where that is deleted,
disabled or moved. Never speaks SQL or HTTP. Called by gateway/http; the rules for moves and servers ask it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from gateway.accepted import Accepted, Placed
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.store import Store, Transaction
from gateway.store import accounts as account_rows
from gateway.store import nodes as node_rows
from gateway.store import port_forwards as rows
from gateway.store import servers as server_rows
from gateway.store.accounts import KeptAccount
from gateway.store.port_forwards import PortForward, PortKey
from gateway.store.servers import KeptServer

if TYPE_CHECKING:
    from gateway.sync import Sync

T = TypeVar("T")
# Of every node, whatever its agent says: without these nobody gets in to mend it, or in by IKEv2.
ALWAYS_RESERVED = frozenset({("tcp", 22), ("udp", 500), ("udp", 4500)})
MOST = 1_000  # of one account; as the agent takes them

Led = tuple[PortForward, str]  # and the account's name


class PortForwards:
    def __init__(self, store: Store, sync: Sync) -> None:
        self._store = store
        self._sync = sync

    async def list(self, name: str) -> Placed[Sequence[Led]]:
        async def work(tx: Transaction) -> Placed[Sequence[Led]]:
            server = _found(await server_rows.find(tx, name)).server
            return Placed(await rows.of_server(tx, server.id), server.node)

        return await self._store.read(work)

    async def add(self, name: str, protocol: str, port: int, peer: str, to_port: int) -> Accepted[Led]:
        wanted = PortForward(protocol, port, to_port)
        account = await self._store.change(lambda tx: self._add(tx, name, wanted, peer))
        return await self._settle((wanted, account.account.name), account)

    async def remove(self, name: str, protocol: str, port: int) -> Accepted[None]:
        account = await self._store.change(lambda tx: _remove(tx, name, (protocol, port)))
        return await self._settle(None, account)

    async def _settle(self, value: T, kept: KeptAccount) -> Accepted[T]:
        node = kept.account.node
        if kept.is_moving:
            return Accepted(value, node, node)  # it comes to the node with its server
        outcome = await self._sync.settled(node, kept.revision, (kept.account.id, kept.account.server))
        return Accepted(value, node, "" if outcome == "applied" else node)

    async def _add(self, tx: Transaction, name: str, one: PortForward, peer: str) -> KeptAccount:
        kept = _found(await server_rows.find_locked(tx, name))
        there = [other.server for other in await server_rows.listed(tx) if other.node_id == kept.node_id]
        if one.port in (server.listen_port for server in there):
            raise Conflict("DstPort cannot be ListenPort")
        if (one.protocol, one.port) in ALWAYS_RESERVED | self.listening(kept.server.node):
            raise Conflict(f"DST port {one.port}/{one.protocol} is of node {kept.server.node} itself")
        account = await account_rows.find(tx, peer)
        if account is None or account.server_id != kept.server.id:
            raise InvalidValue("Entered incorrect peer")
        if sum(owner == peer for _, owner in await rows.of_server(tx, kept.server.id)) >= MOST:
            raise Conflict(f"{MOST} ports lead to {peer} already")
        account = replace(account, revision=await node_rows.next_revision(tx, kept.node_id))
        if not await rows.added(tx, kept.node_id, account.account.id, one, account.revision):
            raise Conflict("DST port and protocol are already enabled")
        return account

    def listening(self, node: str) -> frozenset[PortKey]:
        """The node's own, as its agent last told; none while it is away."""
        status = self._sync.statuses().get(node)
        return status.listening if status else frozenset()


def _found(kept: KeptServer | None) -> KeptServer:
    if kept is None:
        raise NotFound("Wireguard server not found")
    return kept


async def _remove(tx: Transaction, name: str, key: PortKey) -> KeptAccount:
    kept = _found(await server_rows.find_locked(tx, name))
    owners = {(one.protocol, one.port): owner for one, owner in await rows.of_server(tx, kept.server.id)}
    account = await account_rows.find(tx, owners[key]) if key in owners else None
    if account is None:
        raise NotFound("There is no such port forwarding")
    account = replace(account, revision=await node_rows.next_revision(tx, kept.node_id))
    await rows.remove(tx, kept.node_id, account.account.id, key, account.revision)
    return account
