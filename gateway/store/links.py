"""Rows of one-time links. Only the digest of a key is known here."""

from __future__ import annotations

from sqlalchemy import delete, select, update

from gateway.store.tables import one_time_links as links
from gateway.store.transaction import Transaction


async def add(tx: Transaction, digest: bytes, account_id: int, created: int, expires: int) -> None:
    await tx.run(links.insert().values(digest=digest, account_id=account_id, created=created, expires=expires))


async def is_open(tx: Transaction, digest: bytes, now: int) -> bool:
    statement = select(links.c.digest).where(links.c.digest == digest, links.c.used.is_(None), links.c.expires > now)
    return await tx.one(statement) is not None


async def use_up(tx: Transaction, digest: bytes, now: int) -> int | None:
    """The account's id, for the first caller only: the database lets one UPDATE through."""
    statement = (
        update(links)
        .where(links.c.digest == digest, links.c.used.is_(None), links.c.expires > now)
        .values(used=now)
        .returning(links.c.account_id)
    )
    row = await tx.one(statement)
    return int(row.account_id) if row is not None else None


async def purge(tx: Transaction, now: int) -> int:
    """Removes what has expired, used or not."""
    return await tx.run(delete(links).where(links.c.expires <= now))
