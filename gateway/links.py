"""One-time links to a customer's configuration. The key is shown once; only its digest is stored.

Never says why a link is not relevant: unknown, used and expired look alike. Called by gateway/http.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

from gateway.errors import NotFound
from gateway.model import Account
from gateway.store import Store, Transaction
from gateway.store import accounts as account_rows
from gateway.store import links as rows

KEY_BYTES = 40  # 80 hex characters, as v1 spells it
LINK_DAYS = 10
DAY_SECONDS = 86_400


class Links:
    def __init__(self, store: Store, link_days: int = LINK_DAYS, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._seconds = link_days * DAY_SECONDS
        self._now = now

    async def create(self, account_name: str) -> str:
        """A new key for each call. Links that have expired go at the same time."""
        key = secrets.token_hex(KEY_BYTES)
        await self._store.change(lambda tx: self._create(tx, account_name, key))
        return key

    async def valid(self, key: str) -> bool:
        """Whether `open` would work now. Uses nothing up."""
        now = int(self._now())
        return await self._store.read(lambda tx: rows.is_open(tx, _digest(key), now))

    async def open(self, key: str) -> Account | None:
        """Uses the link up: of all callers, one gets the account. None = not relevant."""
        now = int(self._now())

        async def use_up(tx: Transaction) -> Account | None:
            account_id = await rows.use_up(tx, _digest(key), now)
            return await account_rows.find_id(tx, account_id) if account_id is not None else None

        return await self._store.change(use_up)

    async def _create(self, tx: Transaction, account_name: str, key: str) -> None:
        kept = await account_rows.find(tx, account_name)
        if kept is None:
            raise NotFound("Account not found")
        now = int(self._now())
        await rows.purge(tx, now)
        await rows.add(tx, _digest(key), kept.account.id, now, now + self._seconds)


def _digest(key: str) -> bytes:
    """A plain digest is enough: the key has 320 random bits, there is nothing to guess."""
    return hashlib.sha256(key.encode()).digest()
