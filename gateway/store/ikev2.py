"""The one row of IKEv2: what the installation shows its customers. Sealed whole, so who can only write to the database
makes nobody trust another authority. And whom a change of it concerns: the servers with IKEv2, and their accounts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import bindparam, delete, select, update

from gateway.certificates import NOTHING, Certified
from gateway.model import Responder, Secret, Server
from gateway.store import servers as server_rows
from gateway.store.servers import Touched
from gateway.store.tables import accounts, ikev2, servers
from gateway.store.transaction import Transaction

_PLACE = "ikev2.sealed"
_with_ikev2 = select(servers.c.id).where(servers.c.node_id == bindparam("node"), servers.c.ikev2)


@dataclass(frozen=True, slots=True)
class Ikev2:
    """`ca_names`, `server_names`: by the names of gateway/certificates.py's PARTS."""

    enabled: bool = False
    authority: Certified = NOTHING
    server: Certified = NOTHING
    ca_names: Mapping[str, str] = field(default_factory=dict)
    server_names: Mapping[str, str] = field(default_factory=dict)
    domain: str = ""
    ip: str = ""
    ipv6: str = ""

    @property
    def serves(self) -> bool:
        return self.enabled and bool(self.authority) and bool(self.server)


async def found(tx: Transaction) -> Ikev2:
    """Raises SealBroken."""
    row = await tx.one(select(ikev2.c.sealed))
    if row is None:
        return Ikev2()
    held = json.loads(tx.seal.open(row.sealed, _PLACE))
    for name in ("authority", "server"):
        certificate, key = held[name]
        held[name] = Certified(certificate, Secret(key))
    return Ikev2(**held)


async def save(tx: Transaction, one: Ikev2) -> None:
    """The caller holds INSTALLATION."""
    held: dict[str, Any] = {name: getattr(one, name) for name in Ikev2.__dataclass_fields__}
    for name in ("authority", "server"):
        held[name] = [held[name].certificate, held[name].key.reveal()]
    held |= {name: dict(held[name]) for name in ("ca_names", "server_names")}
    await tx.run(delete(ikev2))
    await tx.run(ikev2.insert().values(id=1, sealed=tx.seal.seal(json.dumps(held), _PLACE)))


async def touch(tx: Transaction) -> Touched:
    """Every node with such servers gets them and their accounts anew."""
    touched = await server_rows.touch(tx, servers.c.ikev2)
    for revision, of_node in touched.values():
        await touch_accounts(tx, of_node, revision)
    return touched


async def touch_accounts(tx: Transaction, server_ids: Collection[int], revision: int) -> None:
    await tx.run(update(accounts).where(accounts.c.server_id.in_(server_ids)).values(revision=revision))


async def served(tx: Transaction, node_id: int) -> tuple[Responder | None, frozenset[int]]:
    """What a node shows, and the ids of its servers whose accounts log in; (None, none) where IKEv2 is off."""
    ids = frozenset(row.id for row in await tx.all(_with_ikev2, {"node": node_id}))
    one = await found(tx) if ids else Ikev2()
    if not one.serves:
        return None, frozenset()
    return Responder(one.server.certificate, one.server.key, one.authority.certificate, one.domain), ids


def with_responder(server: Server, responder: Responder | None) -> Server:
    return replace(server, responder=responder) if responder and server.ikev2 else server
