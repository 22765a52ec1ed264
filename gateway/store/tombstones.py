"""Tombstones: what a node may hold and shall not, from a revision on, until it has acknowledged that.

That an account was there is remembered for longer: of it and its own a node may say what they used (usage.py).

Where something comes back to a node it gets that instead of the delete. Called by what removes, inserts and moves.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import bindparam, delete, select, text

from gateway.store.tables import tombstones
from gateway.store.transaction import Transaction

# One that is there already: what it is of was moved here and away again, or came back and was never sent.
_bury = text(
    "INSERT INTO tombstones (node_id, kind, key, revision) VALUES (:node_id, :kind, :key, :revision)"
    " ON CONFLICT (node_id, kind, key) DO UPDATE SET revision = excluded.revision"
)
_remember = text(
    "INSERT INTO former_accounts (node_id, account_id) VALUES (:node_id, :account_id) ON CONFLICT DO NOTHING"
)
_revive = delete(tombstones).where(
    tombstones.c.node_id == bindparam("of_node"),
    tombstones.c.kind == bindparam("of_kind"),
    tombstones.c.key == bindparam("of_key"),
)


async def bury(tx: Transaction, node_id: int, revision: int, *, server: str = "", accounts: Iterable[int] = ()) -> None:
    """A server by its name, accounts by their ids."""
    ids = list(accounts)
    keys = [("server", server)] if server else []
    keys += [("account", str(account_id)) for account_id in ids]
    rows = [{"node_id": node_id, "kind": kind, "key": key, "revision": revision} for kind, key in keys]
    await tx.run_many(_bury, rows)
    await tx.run_many(_remember, [{"node_id": node_id, "account_id": account_id} for account_id in ids])


async def revive(tx: Transaction, node_id: int, *, server: str, accounts: Iterable[int] = ()) -> None:
    """They are there (again)."""
    rows = await tx.all(select(tombstones.c.kind, tombstones.c.key).where(tombstones.c.node_id == node_id))
    back = {("account", str(account_id)) for account_id in accounts} | {("server", server)}
    gone = [{"of_node": node_id, "of_kind": kind, "of_key": key} for kind, key in rows if (kind, key) in back]
    await tx.run_many(_revive, gone)
