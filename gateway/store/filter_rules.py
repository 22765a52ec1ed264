"""Rows of the operator's rules for what accounts send and get. Decides nothing: gateway/filter_rules.py does.

They hold for every node, and travel with its servers: a change of them gives each server a new revision.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import delete, func, select

from gateway.store.tables import filter_rules
from gateway.store.transaction import Transaction


class FilterRule(NamedTuple):
    """Ends are networks of one family. Ports: 0 = any; with `protocol` "any" they are those of TCP and UDP."""

    name: str
    accepts: bool
    source: str
    destination: str
    protocol: str  # "any", "tcp", "udp" or "icmp"
    source_port: int
    destination_port: int


_columns = tuple(filter_rules.c[name] for name in FilterRule._fields)
_in_order = select(*_columns).order_by(filter_rules.c.position)
_ends = select(func.min(filter_rules.c.position).label("first"), func.max(filter_rules.c.position).label("last"))


async def listed(tx: Transaction) -> tuple[FilterRule, ...]:
    """In order: of those that fit, the first decides."""
    return tuple(FilterRule(*row) for row in await tx.all(_in_order))


async def add(tx: Transaction, one: FilterRule, at_top: bool) -> None:
    """The caller holds INSTALLATION, and has found that the name is free."""
    ends = await tx.one(_ends)
    first, last = (0, 0) if ends is None or ends.first is None else (ends.first, ends.last)
    await tx.run(filter_rules.insert().values(position=first - 1 if at_top else last + 1, **one._asdict()))


async def remove(tx: Transaction, name: str) -> None:
    await tx.run(delete(filter_rules).where(filter_rules.c.name == name))
