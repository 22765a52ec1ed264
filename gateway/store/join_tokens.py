"""Rows of join tokens: of each only its public half is known here. `proof` binds the row together: one that somebody
else wrote or changed lets nobody in. Whom a token let in is bound by the token's own signature, not by this row.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select, update

from gateway.store import nodes
from gateway.store.tables import join_tokens as rows
from gateway.store.tables import nodes as node_rows
from gateway.store.transaction import Transaction

_by_public = (
    select(rows, node_rows.c.name)
    .join(node_rows, node_rows.c.id == rows.c.node_id)
    .where(rows.c.public == bindparam("public"))
)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`node`: its name. `public`: Ed25519, raw. `pin`: of the authority that it names. `expires`: Unix seconds.
    `used_by`: the public key that it let in (DER), None = nobody yet."""

    node_id: int
    node: str
    public: bytes
    pin: str
    tls_name: str
    expires: int
    used_by: bytes | None = None


async def put(tx: Transaction, token: JoinToken) -> None:
    """In place of the node's last one."""
    await tx.run(delete(rows).where(rows.c.node_id == token.node_id))
    values = {
        "node_id": token.node_id,
        "public": token.public,
        "pin": token.pin,
        "tls_name": token.tls_name,
        "expires": token.expires,
        "proof": _proof_of(tx, token),
    }
    await tx.run(rows.insert().values(values))


async def found(tx: Transaction, public: bytes) -> JoinToken | None:
    row = await tx.one(_by_public, {"public": public})
    if row is None:
        return None
    token = JoinToken(row.node_id, row.name, row.public, row.pin, row.tls_name, row.expires, row.used_by)
    return token if hmac.compare_digest(row.proof, _proof_of(tx, token)) else None


async def locked(tx: Transaction, public: bytes) -> JoinToken | None:
    """As it is once nobody else uses it or makes a newer one."""
    token = await found(tx, public)
    if token is None:
        return None
    await nodes.lock(tx, token.node_id)
    return await found(tx, public)


async def bind(tx: Transaction, token: JoinToken, public_key: bytes) -> None:
    await tx.run(update(rows).where(rows.c.public == token.public).values(used_by=public_key))


def _proof_of(tx: Transaction, token: JoinToken) -> bytes:
    parts = (str(token.node_id), token.pin, token.tls_name, str(token.expires))
    return tx.seal.digest("join token", token.public, *(part.encode() for part in parts))
