"""Rows of one-time links. Only the digest of a key is known here; `proof` binds it to the account that it opens: a row
that somebody else wrote or changed opens nothing.

A link that is being opened is leased to whoever sends the page: it is used up when that was sent, free again when it
was not, or when the lease ends.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select, update

from gateway.store.seal import Seal
from gateway.store.tables import accounts
from gateway.store.tables import one_time_links as links
from gateway.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class ShownLink:
    """`digest`: hex, of what nobody knows the other half of. Times are Unix seconds."""

    digest: str
    account: str
    created: int
    expires: int


def _digest_of(seal: Seal, plain: bytes) -> bytes:
    return seal.digest("one-time link", plain)


def _proof_of(seal: Seal, digest: bytes, account_id: int, expires: int) -> bytes:
    return seal.digest("one-time link of an account", digest, str(account_id).encode(), str(expires).encode())


async def key_digests(tx: Transaction) -> None:
    """Of a database whose digests are plain ones."""
    for row in await tx.all(select(links)):
        digest = _digest_of(tx.seal, row.digest)
        proof = _proof_of(tx.seal, digest, row.account_id, row.expires)
        await tx.run(update(links).where(links.c.digest == row.digest).values(digest=digest, proof=proof))


# -- `plain`: SHA-256 of the link's key ---------------------------------------------------------------------------


async def add(tx: Transaction, plain: bytes, account_id: int, created: int, expires: int) -> None:
    digest = _digest_of(tx.seal, plain)
    proof = _proof_of(tx.seal, digest, account_id, expires)
    values = {"digest": digest, "proof": proof, "account_id": account_id, "created": created, "expires": expires}
    await tx.run(links.insert().values(values))


async def is_open(tx: Transaction, plain: bytes, now: int) -> bool:
    """Leased or not."""
    digest = _digest_of(tx.seal, plain)
    row = await tx.one(select(links).where(links.c.digest == digest, links.c.used.is_(None), links.c.expires > now))
    return row is not None and _is_ours(tx, digest, row.proof, row.account_id, row.expires)


async def lease(tx: Transaction, plain: bytes, now: int, until: int) -> int | None:
    """The account's id, for the first caller only: the database lets one UPDATE through."""
    digest = _digest_of(tx.seal, plain)
    statement = (
        update(links)
        .where(links.c.digest == digest, links.c.used.is_(None), links.c.expires > now)
        .where(or_(links.c.leased.is_(None), links.c.leased <= now))
        .values(leased=until)
        .returning(links.c.account_id, links.c.expires, links.c.proof)
    )
    row = await tx.one(statement)
    if row is None or not _is_ours(tx, digest, row.proof, row.account_id, row.expires):
        return None
    return int(row.account_id)


def _is_ours(tx: Transaction, digest: bytes, proof: bytes | None, account_id: int, expires: int) -> bool:
    return hmac.compare_digest(proof or b"", _proof_of(tx.seal, digest, account_id, expires))


async def use_up(tx: Transaction, plain: bytes, now: int, until: int) -> bool:
    """Whether it was still leased to whom it was leased until then. No two leases end at the same time."""
    mine = (links.c.digest == _digest_of(tx.seal, plain), links.c.leased == until, links.c.used.is_(None))
    return await tx.run(update(links).where(*mine, links.c.leased > now).values(used=now)) == 1


async def release(tx: Transaction, plain: bytes, until: int) -> None:
    mine = (links.c.digest == _digest_of(tx.seal, plain), links.c.leased == until)
    await tx.run(update(links).where(*mine).values(leased=None))


async def pages(tx: Transaction, now: int, rows: int = 1000) -> AsyncIterator[list[ShownLink]]:
    """Those that can still be opened, in the order of their making."""
    statement = (
        select(links, accounts.c.name)
        .join(accounts, accounts.c.id == links.c.account_id)
        .where(links.c.used.is_(None), links.c.expires > now)
        .order_by(links.c.created, links.c.digest)
    )
    async for part in tx.parts(statement, rows):
        yield [
            ShownLink(row.digest.hex(), row.name, row.created, row.expires)
            for row in part
            if _is_ours(tx, row.digest, row.proof, row.account_id, row.expires)
        ]


async def purge(tx: Transaction, now: int) -> int:
    """Removes what nobody can open any more."""
    return await tx.run(delete(links).where(or_(links.c.expires <= now, links.c.used.is_not(None))))


async def count(tx: Transaction, account_id: int) -> tuple[int, int]:
    """How many links an account has, and when the first of them expires (0 = it has none)."""
    statement = select(func.count(), func.min(links.c.expires)).where(links.c.account_id == account_id)
    row = await tx.one(statement)
    return (int(row[0]), int(row[1] or 0)) if row is not None else (0, 0)
