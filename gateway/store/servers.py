"""Rows of servers. Decides nothing: gateway/servers.py does, within one transaction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Any

from sqlalchemy import ColumnElement, Row, bindparam, delete, func, select, true, update

from gateway import ipv6
from gateway.allocate import assignable, is_assignable, without
from gateway.model import Secret, Server
from gateway.store import nodes as node_rows
from gateway.store import ranges, tombstones
from gateway.store.tables import accounts, nodes, servers
from gateway.store.transaction import Transaction

_select = select(servers, nodes.c.name.label("node_name")).join(nodes, nodes.c.id == servers.c.node_id)
_by_name = _select.where(servers.c.name == bindparam("server"))
_changed = _select.where(
    servers.c.node_id == bindparam("node"), servers.c.revision > bindparam("after"), servers.c.leaving.is_(None)
)
_node_of = select(servers.c.node_id).where(servers.c.name == bindparam("server"))
_by_names = _select.where(servers.c.name.in_(bindparam("names", expanding=True)))
_give_ipv6 = update(accounts).where(accounts.c.id == bindparam("account")).values(address_ipv6=bindparam("given"))


# By the name of a node the revision with which it gets servers anew, and their names by id.
Touched = dict[str, tuple[int, dict[int, str]]]


@dataclass(frozen=True, slots=True)
class KeptServer:
    """A server as it lies in the database. `revision`: of its last change that its node has to know. `is_moving`: it is
    on its way to its node, which does not get it before the former one has let go (moves.py)."""

    server: Server
    node_id: int
    revision: int
    is_moving: bool = False


def _place(server_id: int) -> str:
    return f"servers.private_key.{server_id}"


def _ip(text: str | None) -> IPv4Address | None:
    return IPv4Address(text) if text else None


def _ipv6(text: str | None) -> IPv6Address | None:
    return IPv6Address(text) if text else None


def _text(address: IPv4Address | IPv6Address | IPv6Interface | None) -> str | None:
    return str(address) if address is not None else None


def parse(tx: Transaction, row: Row[Any]) -> KeptServer:
    private_key = tx.seal.opened(row.private_key, _place(row.id))
    server = Server(
        id=row.id,
        node=row.node_name,
        name=row.name,
        interface=row.interface,
        private_key=Secret(private_key or ""),
        public_key=row.public_key,
        listen_port=row.listen_port,
        address=IPv4Interface(row.address),
        external_ip=_ip(row.external_ip),
        endpoint=row.endpoint,
        dns_1=_ip(row.dns_1),
        dns_2=_ip(row.dns_2),
        mtu=row.mtu,
        keep_alive=row.keep_alive,
        allowed_ips=row.allowed_ips,
        internal_traffic=row.internal_traffic,
        reach=row.reach,
        download=row.download,
        upload=row.upload,
        ikev2=row.ikev2,
        unreadable=() if private_key is not None else ("private_key",),
        address_ipv6=IPv6Interface(row.address_ipv6) if row.address_ipv6 else None,
        dns_1_ipv6=_ipv6(row.dns_1_ipv6),
        dns_2_ipv6=_ipv6(row.dns_2_ipv6),
        nat_ipv6=row.nat_ipv6,
    )
    return KeptServer(server, row.node_id, row.revision, row.leaving is not None)


def _values(tx: Transaction, server: Server) -> dict[str, Any]:
    return {
        "name": server.name,
        "interface": server.interface,
        "private_key": tx.seal.seal(server.private_key.reveal(), _place(server.id)),
        "public_key": server.public_key,
        "listen_port": server.listen_port,
        "address": str(server.address),
        "external_ip": _text(server.external_ip),
        "endpoint": server.endpoint,
        "dns_1": _text(server.dns_1),
        "dns_2": _text(server.dns_2),
        "mtu": server.mtu,
        "keep_alive": server.keep_alive,
        "allowed_ips": server.allowed_ips,
        "internal_traffic": server.internal_traffic,
        "reach": server.reach,
        "download": server.download,
        "upload": server.upload,
        "ikev2": server.ikev2,
        "address_ipv6": _text(server.address_ipv6),
        "dns_1_ipv6": _text(server.dns_1_ipv6),
        "dns_2_ipv6": _text(server.dns_2_ipv6),
        "nat_ipv6": server.nat_ipv6,
    }


async def listed(tx: Transaction) -> list[KeptServer]:
    return [parse(tx, row) for row in await tx.all(_select.order_by(servers.c.name))]


async def changed_since(tx: Transaction, node_id: int, revision: int) -> list[Server]:
    rows = await tx.all(_changed, {"node": node_id, "after": revision})
    return [parse(tx, row).server for row in rows]


async def find(tx: Transaction, name: str) -> KeptServer | None:
    row = await tx.one(_by_name, {"server": name})
    return parse(tx, row) if row is not None else None


async def find_locked(tx: Transaction, name: str) -> KeptServer | None:
    """The server as it is once nobody else changes its node."""
    return await node_rows.find_locked(tx, _node_of, {"server": name}, lambda: find(tx, name))


async def find_all_locked(tx: Transaction, names: Collection[str]) -> dict[str, KeptServer]:
    """Those of the named servers that exist, by name, once nobody else changes their nodes."""
    wanted, node_ids = sorted(names), set[int]()
    if not tx.is_sqlite:
        rows = await tx.all(select(servers.c.node_id).distinct().where(servers.c.name.in_(wanted)))
        node_ids = {row.node_id for row in rows}
        for node_id in sorted(node_ids):
            await node_rows.lock(tx, node_id)
    found = [parse(tx, row) for row in await tx.all(_by_names, {"names": wanted})]
    if not tx.is_sqlite and not node_ids.issuperset(kept.node_id for kept in found):  # one has moved in between
        return await find_all_locked(tx, names)
    return {kept.server.name: kept for kept in found}


async def insert(tx: Transaction, kept: KeptServer) -> bool:
    """False = name, interface or port belongs to another server."""
    values = _values(tx, kept.server) | {"id": kept.server.id, "node_id": kept.node_id, "revision": kept.revision}
    statement = tx.insert(servers).values(**values).on_conflict_do_nothing().returning(servers.c.id)
    if await tx.one(statement) is None:
        return False
    # A server of this name that was deleted here a moment ago: the node now gets this one instead of the delete.
    await tombstones.revive(tx, kept.node_id, server=kept.server.name)
    await ranges.fill(tx, ranges.addresses_of(kept.server.id), assignable(kept.server.address))
    if kept.server.address_ipv6:
        await refill_addresses_ipv6(tx, kept.server)
    return True


async def save(tx: Transaction, kept: KeptServer) -> None:
    """Writes the whole row. The caller has found that its port is free."""
    values = _values(tx, kept.server) | {"revision": kept.revision}
    for column in kept.server.unreadable:
        del values[column]  # perhaps the right key comes back
    await tx.run(update(servers).where(servers.c.id == kept.server.id).values(**values))


async def touch(tx: Transaction, *which: ColumnElement[bool]) -> Touched:
    """Every node gets its servers anew, or those for which all of this holds."""
    concerned: dict[int, dict[int, str]] = {}
    columns = servers.c.id, servers.c.name, servers.c.node_id
    for row in await tx.all(select(*columns).where(true(), *which).order_by(servers.c.node_id)):
        concerned.setdefault(row.node_id, {})[row.id] = row.name
    names = {node.id: node.name for node in await node_rows.listed(tx)}
    touched = {}
    for node_id, of_node in concerned.items():
        revision = await node_rows.next_revision(tx, node_id)
        await tx.run(update(servers).where(servers.c.id.in_(of_node)).values(revision=revision))
        touched[names[node_id]] = revision, of_node
    return touched


async def refill_addresses(tx: Transaction, server: Server) -> None:
    """After a change of its network: what is free is the network without its accounts, and without what rests."""
    used, scope = await addresses(tx, server.id), ranges.addresses_of(server.id)
    resting = await ranges.resting(tx, scope)
    outside = [number for number in resting if not is_assignable(server.address, IPv4Address(number))]
    await ranges.wake(tx, scope, outside)
    await ranges.fill(tx, scope, without(assignable(server.address), (*map(int, used), *resting)))


async def refill_addresses_ipv6(tx: Transaction, server: Server) -> None:
    """After it got IPv6, lost it, or had its network changed: what rests is forgotten."""
    scope, own = ranges.addresses_ipv6_of(server.id), server.address_ipv6
    await _forget_addresses(tx, scope)
    if own is not None:
        used = (ipv6.number_of(own, address) for address in await addresses_ipv6(tx, server.id))
        await ranges.fill(tx, scope, without(ipv6.assignable(own), (number for number in used if number)))


async def addresses_ipv6(tx: Transaction, server_id: int) -> list[IPv6Address]:
    """Of its accounts."""
    column = accounts.c.address_ipv6
    rows = await tx.all(select(column).where(accounts.c.server_id == server_id, column.is_not(None)))
    return [IPv6Address(row.address_ipv6) for row in rows]


async def renumber_ipv6(tx: Transaction, server: Server, revision: int) -> None:
    """All its accounts get the lowest addresses of IPv6, in the order of their IPv4; or none, where it has none."""
    of_server, own = accounts.c.server_id == server.id, server.address_ipv6
    await tx.run(update(accounts).where(of_server).values(address_ipv6=None, revision=revision))
    if own is not None:
        rows = await tx.all(select(accounts.c.id).where(of_server).order_by(accounts.c.address))
        free = (number for part in ipv6.assignable(own) for number in range(part.lo, part.hi + 1))
        given = [{"account": row.id, "given": str(ipv6.address_of(own, n))} for row, n in zip(rows, free, strict=False)]
        await tx.run_many(_give_ipv6, given)
    await refill_addresses_ipv6(tx, server)


async def _forget_addresses(tx: Transaction, scope: str) -> None:
    await ranges.clear(tx, scope)
    await ranges.wake(tx, scope, await ranges.resting(tx, scope))


async def remove(tx: Transaction, kept: KeptServer) -> None:
    for scope in (ranges.addresses_of(kept.server.id), ranges.addresses_ipv6_of(kept.server.id)):
        await _forget_addresses(tx, scope)
    await tx.run(delete(servers).where(servers.c.id == kept.server.id))
    await tombstones.bury(tx, kept.node_id, kept.revision, server=kept.server.name)


async def addresses(tx: Transaction, server_id: int) -> list[IPv4Address]:
    """Of its accounts."""
    rows = await tx.all(select(accounts.c.address).where(accounts.c.server_id == server_id))
    return [IPv4Address(row.address) for row in rows]


async def account_count(tx: Transaction, server_id: int) -> int:
    row = await tx.one(select(func.count()).select_from(accounts).where(accounts.c.server_id == server_id))
    return int(row[0]) if row is not None else 0


async def load_by_node(tx: Transaction) -> dict[str, tuple[int, int]]:
    """How many accounts and servers each node has, by its name, in the order of their ids."""
    counts = [
        select(func.count()).select_from(table).where(table.c.node_id == nodes.c.id).scalar_subquery()
        for table in (accounts, servers)
    ]
    rows = await tx.all(select(nodes.c.name, *counts).order_by(nodes.c.id))
    return {row[0]: (row[1], row[2]) for row in rows}


async def count(tx: Transaction) -> int:
    row = await tx.one(select(func.count()).select_from(servers))
    return int(row[0]) if row is not None else 0


async def copy_limits(tx: Transaction, server: Server, revision: int) -> None:
    """Gives its accounts the server's limits; those that have them already are not touched."""
    await tx.run(
        update(accounts)
        .where(accounts.c.server_id == server.id, _differs(server))
        .values(download=server.download, upload=server.upload, revision=revision)
    )


async def limits_differ(tx: Transaction, server: Server) -> bool:
    row = await tx.one(select(accounts.c.id).where(accounts.c.server_id == server.id, _differs(server)).limit(1))
    return row is not None


def _differs(server: Server) -> Any:
    return (accounts.c.download != server.download) | (accounts.c.upload != server.upload)
