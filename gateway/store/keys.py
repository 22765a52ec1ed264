"""Rows of access keys. Only the digest of a hash is known here, which is bound to the key's name and addresses: a row
that somebody else wrote or changed opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import delete, select, update

from gateway.store.seal import Seal
from gateway.store.tables import access_keys as keys
from gateway.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class AccessKey:
    """Who may call. Only a digest of the hash is kept."""

    name: str
    networks: tuple[str, ...]  # CIDR
    created: datetime


@dataclass(frozen=True, slots=True)
class KeptKey:
    key: AccessKey
    digest: bytes


def digest_of(seal: Seal, key: AccessKey, plain: bytes) -> bytes:
    """`plain`: SHA-256 of the hash."""
    return seal.digest("access key", plain, key.name.encode(), *(network.encode() for network in key.networks))


async def key_digests(tx: Transaction) -> None:
    """Of a database whose digests are plain ones."""
    for kept in await listed(tx):
        digest = digest_of(tx.seal, kept.key, kept.digest)
        await tx.run(update(keys).where(keys.c.name == kept.key.name).values(digest=digest))


async def listed(tx: Transaction) -> list[KeptKey]:
    rows = await tx.all(select(keys).order_by(keys.c.created, keys.c.name))
    return [
        KeptKey(AccessKey(row.name, tuple(row.networks.split()), datetime.fromtimestamp(row.created, UTC)), row.digest)
        for row in rows
    ]


async def insert(tx: Transaction, kept: KeptKey) -> bool:
    """False = there is a key of this name."""
    statement = tx.insert(keys).on_conflict_do_nothing().returning(keys.c.name)
    values = {
        "name": kept.key.name,
        "digest": kept.digest,
        "networks": " ".join(kept.key.networks),
        "created": int(kept.key.created.timestamp()),
    }
    return await tx.one(statement, values) is not None


async def remove(tx: Transaction, name: str) -> bool:
    return await tx.run(delete(keys).where(keys.c.name == name)) == 1
