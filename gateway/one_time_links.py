"""One-time links to a customer's configuration. The key is shown once; only a digest is stored.

Never says why a link is not relevant: unknown, used and expired look alike. Called by gateway/http.

Opening takes two steps, because the page may get lost on its way: `lease` gives the account to one caller, who sends
the page and then says `use_up`, or `release` when nobody was there to read it. Who comes in between waits for how it
ends. A lease whose holder died ends by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime

from gateway.errors import Conflict, NotFound
from gateway.model import Account
from gateway.store import Store, Transaction
from gateway.store import accounts as account_rows
from gateway.store import one_time_links as rows

KEY_BYTES = 40  # 80 hex characters, as v1 spells it
LINK_DAYS = 10
DAY_SECONDS = 86_400
MOST_LINKS = 100  # of one account that were not opened; billing modules make one at each look at a page
LEASE_SECONDS = 60
LEASED_TRIES, LEASED_PAUSE = 20, 0.25  # seconds, while somebody else has the lease


class OneTimeLinks:
    def __init__(self, store: Store, link_days: int = LINK_DAYS, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._seconds = link_days * DAY_SECONDS
        self._now = now

    async def create(self, account_name: str) -> str:
        """A new key for each call. Links that have expired go at the same time. Raises Conflict at MOST_LINKS."""
        key = secrets.token_hex(KEY_BYTES)
        await self._store.change(lambda tx: self._create(tx, account_name, key))
        return key

    async def valid(self, key: str) -> bool:
        """Whether it may still be opened. Uses nothing up."""
        now = int(self._now())
        return await self._store.read(lambda tx: rows.is_open(tx, _digest(key), now))

    async def lease(self, key: str) -> Account | None:
        """Of all callers, one gets the account, until he says what became of it. None = not relevant."""
        for _ in range(LEASED_TRIES):
            account = await self._store.change(lambda tx: self._lease(tx, key))
            if account is not None or not await self.valid(key):
                return account
            await asyncio.sleep(LEASED_PAUSE)
        return None

    async def use_up(self, key: str) -> None:
        """The page was sent."""
        now = int(self._now())
        await self._store.change(lambda tx: rows.use_up(tx, _digest(key), now))

    async def release(self, key: str) -> None:
        """It was not."""
        await self._store.change(lambda tx: rows.release(tx, _digest(key)))

    async def _lease(self, tx: Transaction, key: str) -> Account | None:
        now = int(self._now())
        account_id = await rows.lease(tx, _digest(key), now, now + LEASE_SECONDS)
        return await account_rows.find_id(tx, account_id) if account_id is not None else None

    async def _create(self, tx: Transaction, account_name: str, key: str) -> None:
        kept = await account_rows.find(tx, account_name)
        if kept is None:
            raise NotFound("Account not found")
        now = int(self._now())
        await rows.purge(tx, now)
        count, first = await rows.count(tx, kept.account.id)
        if count >= MOST_LINKS:
            ends = datetime.fromtimestamp(first, UTC).date().isoformat()
            raise Conflict(f"Too many one-time links ({count} of this account were not opened; the first ends {ends})")
        await rows.add(tx, _digest(key), kept.account.id, now, now + self._seconds)


def _digest(key: str) -> bytes:
    """The key has 320 random bits: there is nothing to guess. The store's own key comes to it."""
    return hashlib.sha256(key.encode()).digest()
