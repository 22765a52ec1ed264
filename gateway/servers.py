"""Servers: what a create, an edit and a delete mean. One transaction each, then the node is waited for.

Owns: the rules of the v1 API for servers and their error texts. Never speaks SQL or HTTP. Called by gateway/http.

Two servers must not have overlapping networks, on whichever nodes: an address names one account of the installation.
No constraint of a database can say that, so everything that adds, moves or removes a network does it under the
INSTALLATION lock, and then under its node's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from gateway import ipv6
from gateway.accepted import Accepted
from gateway.agents import AgentLacks
from gateway.allocate import NetworkSet, NumberedServer, assignable, free_server, is_assignable, new_id
from gateway.creation import GONE
from gateway.endpoint import RIGHT, is_right
from gateway.errors import AgentUnreachable, Conflict, InvalidValue, NodeUnavailable, NotFound
from gateway.keypair import WRONG_KEYS, KeyPair, checked_pair
from gateway.live import LiveServer
from gateway.model import Account, Node, PeerState, Server, ServerValues
from gateway.placement import node_for, refuse_led
from gateway.store import Store, Transaction, ranges, settings
from gateway.store import accounts as account_rows
from gateway.store import ikev2 as ikev2_rows
from gateway.store import nodes as node_rows
from gateway.store import port_forwards as port_rows
from gateway.store import servers as rows
from gateway.store.servers import KeptServer
from gateway.store.transaction import INSTALLATION
from gateway.tuning import Tuning

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.sync import Sync

T = TypeVar("T")
Networks = Sequence[tuple[IPv4Network, str]]
log = logging.getLogger(__name__)

DNS_1, DNS_2 = IPv4Address("8.8.8.8"), IPv4Address("1.1.1.1")
# A /8 has 16 million addresses; a node holds 34,475 accounts.
MOST_ADDRESSES = 65_536

WIREGUARD_MTU = 1420  # bytes; what clients take where nothing is said
# What the agent has to know of; an edit of anything else is not a change for it.
_NODE_FIELDS = (
    *("private_key", "listen_port", "address", "mtu", "internal_traffic", "external_ip", "reach", "address_ipv6"),
    *("nat_ipv6", "ikev2"),
)
_TOLD_WITH_IKEV2 = ("dns_1", "dns_2", "dns_1_ipv6", "dns_2_ipv6")  # where it has that
# Taken over from the caller as they are, on create and on edit.
_PLAIN_FIELDS = (
    *("listen_port", "address", "mtu", "keep_alive", "allowed_ips", "internal_traffic", "endpoint", "reach"),
    "ikev2",
)
_LIMITS = ("download", "upload")
_CLEARABLE = ("external_ip", "dns_1", "dns_2")  # "" = none

NO_ENDPOINT = (
    "Where clients reach this server is not known: give external_ip or endpoint, "
    "or set endpoint in the gateway's configuration"
)


class Servers:
    """`default_endpoint`: where clients reach servers of which neither they nor their node say it."""

    def __init__(
        self,
        store: Store,
        sync: Sync,
        agents: Agents,
        default_endpoint: str = "",
        tuning: Tuning = Tuning(),  # noqa: B008
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._sync = sync
        self._agents = agents
        self._default_endpoint = default_endpoint
        self._tuning = tuning
        self._now = now
        self._away: set[str] = set()  # nodes that online() has complained about

    # -- reading --------------------------------------------------------------------------------------------------

    async def list(self) -> list[Server]:
        """All of them, by name."""
        kept = await self._store.read(rows.listed)
        return sorted((each.server for each in kept), key=lambda server: server.name)

    async def get(self, name: str) -> Server:
        return _found(await self._store.read(lambda tx: rows.find(tx, name))).server

    async def accounts(self, name: str) -> tuple[Server, Sequence[Account]]:
        """Of one server, by name."""
        server = await self.get(name)
        return server, await self._store.read(lambda tx: account_rows.listed(tx, server.id))

    async def available_addresses(self, name: str) -> tuple[Server, Sequence[IPv4Address]]:
        """The free ones, ascending; the first MOST_ADDRESSES of a very large network."""
        server = await self.get(name)
        free = await self._store.read(lambda tx: ranges.free(tx, ranges.addresses_of(server.id)))
        numbers = (number for part in free for number in range(part.lo, part.hi + 1))
        return server, [IPv4Address(number) for number in islice(numbers, MOST_ADDRESSES)]

    async def endpoint(self, server: Server) -> str:
        """What its clients connect to: IP or domain. Raises InvalidValue where nobody ever said it."""
        return self._endpoint(server, await self._node(server))

    async def node_mtu(self, server: Server) -> int:
        """What fits into its node's tunnels, bytes, where that is less than clients take by themselves; else 0."""
        mtu = (await self._node(server)).tunnel_mtu
        return mtu if mtu < WIREGUARD_MTU else 0

    async def _node(self, server: Server) -> Node:
        return await self._store.read(lambda tx: node_rows.found(tx, server.node))

    async def live(self, name: str) -> tuple[Server, LiveServer]:
        """As its node's kernel has it now. Raises NodeUnavailable while the agent is away, or behind."""
        server = await self.get(name)
        try:
            return server, await self._agents.inspect_server(await self._node(server), server.name)
        except AgentLacks:
            raise NodeUnavailable(server.node, "has not applied this server yet, try again") from None
        except AgentUnreachable:
            raise NodeUnavailable(server.node) from None

    async def online(self) -> Sequence[tuple[Account, PeerState]]:
        """The peers that had a handshake lately. A node that is away is left out; it is logged once where that was not
        known before."""
        nodes, absent = {node.name: node for node in await self._store.read(node_rows.listed)}, self._sync.absent()
        kept = [each for each in await self._store.read(rows.listed) if not each.is_moving]
        servers = [each.server for each in kept if each.server.node not in absent]
        oldest = self._now() - (await self._store.read(lambda tx: settings.tuning(tx, self._tuning))).handshake_uptime
        answers = await asyncio.gather(*(self._online(nodes[server.node], server, oldest) for server in servers))
        peers = {peer.account_id: peer for answer in answers for peer in answer}
        accounts = await self._store.read(lambda tx: account_rows.by_ids(tx, peers))
        ordered = sorted(accounts.values(), key=lambda account: account.name)
        return [(account, peers[account.id]) for account in ordered]

    async def _online(self, node: Node, server: Server, oldest: float) -> Sequence[PeerState]:
        try:
            peers = await self._agents.peers(node, server.name)
        except AgentUnreachable as error:
            if node.name not in self._away:
                log.warning("node=%s event=left-out-of-online reason=%r", node.name, str(error))
            self._away.add(node.name)
            return []
        self._away.discard(node.name)
        return [peer for peer in peers if peer.account_id and peer.latest_handshake >= oldest]

    # -- changing -------------------------------------------------------------------------------------------------

    async def create(self, values: ServerValues, is_gone: Callable[[], bool] = lambda: False) -> Accepted[Server]:
        """What `values` does not name is generated, all with the lowest number for which it is free.

        `is_gone`: has the caller hung up? Then nothing is created any more.
        """
        pair = _pair(values)
        kept = await self._store.change(lambda tx: self._create(tx, values, pair, is_gone))
        return await self._settle(kept.server, kept)

    async def edit(self, name: str, values: ServerValues) -> Accepted[Server]:
        """Name and interface stay, whatever `values` says of them (as in v1)."""
        kept = await self._store.change(lambda tx: self._edit(tx, name, values))
        return await self._settle(kept.server, kept)

    async def delete(self, name: str) -> Accepted[None]:
        kept = await self._store.change(lambda tx: _delete(tx, name))
        return await self._settle(None, kept)

    async def set_bandwidth(self, name: str) -> Accepted[None]:
        """Gives its accounts the server's own limits."""
        kept, accounts = await self._store.change(lambda tx: _set_bandwidth(tx, name))
        return await self._settle(None, kept, accounts)

    async def _settle(self, value: T, kept: KeptServer, accounts: Collection[int] = ()) -> Accepted[T]:
        node = kept.server.node
        if kept.is_moving:
            return Accepted(value, node, node)  # the node gets it at the end of the move
        outcome = await self._sync.settled(node, kept.revision, {kept.server.name, *accounts})
        return Accepted(value, node, "" if outcome == "applied" else node)

    def _endpoint(self, server: Server, node: Node) -> str:
        external_ip = str(server.external_ip) if server.external_ip else ""
        endpoint = server.endpoint or external_ip or node.endpoint or self._default_endpoint
        if not endpoint:
            raise InvalidValue(NO_ENDPOINT)
        if not is_right(endpoint):  # written by an older version, or by hand: it must not end in customers' files
            raise InvalidValue(f"Wrong endpoint of server {server.name} or node {node.name} (only {RIGHT})")
        return endpoint

    def _networks_of(self, node: str) -> Networks:
        """The node's own, as its agent last told; none while it is away: it refuses by itself what cannot be."""
        status = self._sync.statuses().get(node)
        return status.networks if status else ()

    async def _create(
        self, tx: Transaction, values: ServerValues, pair: KeyPair, is_gone: Callable[[], bool]
    ) -> KeptServer:
        await tx.lock(INSTALLATION)
        if is_gone():  # as in gateway/creation.py
            raise Conflict(GONE)
        node = await node_for(tx, values.node, self._sync.absent())
        await node_rows.lock(tx, node.id)
        others = [kept.server for kept in await rows.listed(tx)]
        foreign = self._networks_of(node.name)
        number = _numbered(values, others, foreign, await port_rows.listen_ports(tx))
        first = Server(
            id=new_id(),
            node=node.name,
            name=values.name or number.name,
            interface=values.interface or number.interface,
            private_key=pair.private,
            public_key=pair.public,
            listen_port=number.listen_port,
            address=number.address,
            dns_1=DNS_1,
            dns_2=DNS_2,
        )
        server = ipv6.with_ipv6(_with_values(first, values), values)
        _refuse_in_use(server, others, foreign)
        await refuse_led(tx, node.id, server)
        _check_address(server.address)
        self._endpoint(server, node)
        kept = KeptServer(server, node.id, await node_rows.next_revision(tx, node.id))
        if not await rows.insert(tx, kept):
            raise Conflict("The name is already in use")
        return kept

    async def _edit(self, tx: Transaction, name: str, values: ServerValues) -> KeptServer:
        await tx.lock(INSTALLATION)
        kept = _found(await rows.find_locked(tx, name))
        old = kept.server
        if values.node is not None and values.node != old.node:
            raise InvalidValue(f"Wrong node (the server is on node {old.node}: `wirelane-gateway server move`)")
        new = ipv6.with_ipv6(_with_keys(_with_values(old, values), values), values)
        if new == old:
            return kept
        others = [other.server for other in await rows.listed(tx) if other.server.id != old.id]
        _refuse_in_use(new, others, self._networks_of(old.node) if new.address != old.address else ())
        await refuse_led(tx, kept.node_id, new)
        if (new.endpoint, new.external_ip) != (old.endpoint, old.external_ip):
            self._endpoint(new, await node_rows.found(tx, old.node))
        if new.address != old.address:
            _check_address(new.address)
            await _check_holds_accounts(tx, new)
        renumbered = (new.address_ipv6 is None) != (old.address_ipv6 is None)
        if new.address_ipv6 != old.address_ipv6 and not renumbered:
            ipv6.refuse_outside(new, await rows.addresses_ipv6(tx, new.id))
        if await account_rows.in_use(tx, "public_key", [new.public_key], new.id):
            raise InvalidValue(WRONG_KEYS)  # WireGuard would drop the peer with the interface's own key
        revision = kept.revision
        told = (*_NODE_FIELDS, *(_TOLD_WITH_IKEV2 if new.ikev2 else ()))
        if any(getattr(new, field) != getattr(old, field) for field in told):
            revision = await node_rows.next_revision(tx, kept.node_id)
        if new.ikev2 != old.ikev2:
            await ikev2_rows.touch_accounts(tx, [new.id], revision)  # they come with their logins, or without
        edited = replace(kept, server=new, revision=revision)
        await rows.save(tx, edited)
        if new.address != old.address:
            await rows.refill_addresses(tx, new)
        if renumbered:
            await rows.renumber_ipv6(tx, new, revision)
        elif new.address_ipv6 != old.address_ipv6:
            await rows.refill_addresses_ipv6(tx, new)
        return edited


def _found(kept: KeptServer | None) -> KeptServer:
    if kept is None:
        raise NotFound("Wireguard server not found")
    return kept


async def _delete(tx: Transaction, name: str) -> KeptServer:
    await tx.lock(INSTALLATION)
    found = _found(await rows.find_locked(tx, name))
    if await rows.account_count(tx, found.server.id):
        raise Conflict("Cannot be deleted. There are active peers.")
    kept = replace(found, revision=await node_rows.next_revision(tx, found.node_id))
    await rows.remove(tx, kept)
    return kept


async def _set_bandwidth(tx: Transaction, name: str) -> tuple[KeptServer, set[int]]:
    """The server, and the ids of its accounts."""
    kept = _found(await rows.find_locked(tx, name))
    accounts = await account_rows.ids_of(tx, kept.server.id)
    if not await rows.limits_differ(tx, kept.server):
        return replace(kept, revision=(await node_rows.found(tx, kept.server.node)).revision), accounts
    revision = await node_rows.next_revision(tx, kept.node_id)
    await rows.copy_limits(tx, kept.server, revision)
    return replace(kept, revision=revision), accounts


# -- values -------------------------------------------------------------------------------------------------------


def _pair(values: ServerValues) -> KeyPair:
    """A server needs its private key: a public one alone is of no use."""
    pair = checked_pair(values.private_key, values.public_key)
    if not pair.private:
        raise InvalidValue(WRONG_KEYS)
    return pair


def _with_keys(server: Server, values: ServerValues) -> Server:
    if values.private_key:
        pair = checked_pair(values.private_key, values.public_key)
        return replace(server, private_key=pair.private, public_key=pair.public, unreadable=())
    if values.public_key and checked_pair(None, values.public_key).public != server.public_key:
        raise InvalidValue(WRONG_KEYS)
    return server


def _with_values(server: Server, values: ServerValues) -> Server:
    """The server with everything that `values` names, but for its keys, name, interface and node."""
    named: dict[str, Any] = {field: getattr(values, field) for field in (*_PLAIN_FIELDS, *_LIMITS)}
    named = {field: value for field, value in named.items() if value is not None}
    for field in _CLEARABLE:
        value = getattr(values, field)
        if value is not None:
            named[field] = value if isinstance(value, IPv4Address) else None
    return replace(server, **named)


def _numbered(
    values: ServerValues, others: Sequence[Server], foreign: Networks, led: Collection[int]
) -> NumberedServer:
    """The generated values with the lowest number for which all those that are needed are free.

    Interface and port on every node: a server can then move to any of them.
    """
    names = {other.name for other in others}
    interfaces = {other.interface for other in others}
    ports = {*led, *(other.listen_port for other in others)}
    in_use = NetworkSet([*(other.address.network for other in others), *(network for network, _ in foreign)])

    def is_free(number: NumberedServer) -> bool:
        return (
            (values.name is not None or number.name not in names)
            and (values.interface is not None or number.interface not in interfaces)
            and (values.listen_port is not None or number.listen_port not in ports)
            and (values.address is not None or not in_use.overlaps(number.address.network))
        )

    found = free_server(is_free)
    if found is None:
        raise Conflict("There is no free name, interface, port or network left for another server")
    return found


def _refuse_in_use(server: Server, others: Sequence[Server], foreign: Networks) -> None:
    """In the order of the v1 documentation."""
    on_node = [other for other in others if other.node == server.node]
    if any(other.name == server.name for other in others):
        raise Conflict("The name is already in use")
    if any(other.interface == server.interface for other in on_node):
        raise Conflict("Interface already in use")
    if any(other.listen_port == server.listen_port for other in on_node):
        raise Conflict("Port already in use")
    if NetworkSet(other.address.network for other in others).overlaps(server.address.network):
        raise Conflict("IP address or subnet already in use")
    ipv6.refuse_in_use(server, others)
    tunnels = NetworkSet(one.address.network for one in (server, *others))
    if server.external_ip and tunnels.overlaps(IPv4Network(server.external_ip)):
        raise InvalidValue("Wrong external IP format")  # inside a tunnel: nobody on the internet could answer
    for network, interface in foreign:
        if server.address.network.overlaps(network):
            where = f"{interface} of node {server.node} has {network}"
            raise Conflict(f"IP address or subnet already in use ({where})")


def _check_address(address: IPv4Interface) -> None:
    ends = (address.network.network_address, address.network.broadcast_address)
    if address.ip in ends or not assignable(address):
        raise InvalidValue("Wrong address (a host's address in a network with room for accounts, such as 10.0.0.1/24)")


async def _check_holds_accounts(tx: Transaction, server: Server) -> None:
    outside = [address for address in await rows.addresses(tx, server.id) if not is_assignable(server.address, address)]
    if outside:
        raise Conflict(
            f"The address cannot be changed: {len(outside)} accounts would be outside of {server.address.network}, "
            f"among them {min(outside)}"
        )
