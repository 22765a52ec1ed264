"""One-time links to a customer's configuration. The key is shown once; only a digest is stored.

Never says why a link is not relevant: unknown, used and expired look alike. Called by gateway/http.

Opening takes two steps, because the page may get lost on its way: `lease` gives the account to one caller, who says
`use_up` when nothing stands between the page and its reader any more, and shows it only if he may; or `release` when
nobody was there to read it. Who comes in between waits for how it ends. A lease whose holder died, or is too slow, ends
by itself, and then it is not his any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType

from gateway.errors import Conflict, NotFound
from gateway.link_page import DEFAULTS, Values
from gateway.model import Account
from gateway.store import Store, Transaction, settings
from gateway.store import accounts as account_rows
from gateway.store import one_time_links as rows
from gateway.store.one_time_links import ShownLink
from gateway.tuning import Tuning

KEY_BYTES = 40  # 80 hex characters, as v1 spells it
DAY_SECONDS = 86_400
MOST_LINKS = 100  # of one account that were not opened; billing modules make one at each look at a page
LEASE_SECONDS = 60
NOTHING: Mapping[str, int | None] = MappingProxyType({})
LEASED_TRIES, LEASED_PAUSE = 20, 0.25  # seconds, while somebody else has the lease


@dataclass(frozen=True, slots=True)
class Lease:
    """`until`: Unix seconds, and what tells it from a later one."""

    account: Account
    digest: bytes = field(repr=False)
    until: int


class OneTimeLinks:
    def __init__(
        self,
        store: Store,
        tuning: Tuning = Tuning(),  # noqa: B008
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._tuning = tuning
        self._now = now

    async def create(self, account_name: str) -> str:
        """A new key for each call. Links that have expired go at the same time. Raises Conflict at MOST_LINKS."""
        key = secrets.token_hex(KEY_BYTES)
        await self._store.change(lambda tx: self._create(tx, account_name, key))
        return key

    async def visit(self, page: Callable[[list[ShownLink]], None]) -> None:
        """Shows those that can still be opened, some at a time."""

        async def work(tx: Transaction) -> None:
            async for some in rows.pages(tx, int(self._now())):
                page(some)

        await self._store.read(work)

    async def page(self) -> dict[str, Values]:
        """What is shown on the page around the configuration, by the groups of gateway/link_page.py."""
        found = await self._store.read(settings.link_page)
        return {group: {**values, **found.get(group, {})} for group, values in DEFAULTS.items()}

    async def set_page(self, group: str, values: Values, tuning: Mapping[str, int | None] = NOTHING) -> None:
        """Only what is named changes. `tuning`: of gateway/tuning.py; None = as the file says again."""

        async def work(tx: Transaction) -> None:
            await settings.tune(tx, tuning)
            found = await settings.link_page(tx)
            await settings.set_link_page(tx, {**found, group: {**found.get(group, {}), **values}})

        await self._store.change(work)

    async def days(self) -> int:
        """How long a new link is valid."""
        return (await self._store.read(lambda tx: settings.tuning(tx, self._tuning))).link_days

    async def valid(self, key: str) -> bool:
        """Whether it may still be opened. Uses nothing up."""
        now = int(self._now())
        return await self._store.read(lambda tx: rows.is_open(tx, _digest(key), now))

    async def lease(self, key: str) -> Lease | None:
        """Of all callers, one gets the account, until he says what became of it. None = not relevant."""
        for _ in range(LEASED_TRIES):
            if not await self.valid(key):  # a stranger's guess must not take the one writer
                return None
            if (lease := await self._store.change(lambda tx: self._lease(tx, key))) is not None:
                return lease
            await asyncio.sleep(LEASED_PAUSE)
        return None

    async def use_up(self, lease: Lease) -> bool:
        """Whether the page may be shown, now: nobody else has opened the link, or ever will."""
        now = int(self._now())
        return await self._store.change(lambda tx: rows.use_up(tx, lease.digest, now, lease.until))

    async def release(self, lease: Lease) -> None:
        """It was not shown."""
        await self._store.change(lambda tx: rows.release(tx, lease.digest, lease.until))

    async def _lease(self, tx: Transaction, key: str) -> Lease | None:
        now, digest = int(self._now()), _digest(key)
        account_id = await rows.lease(tx, digest, now, now + LEASE_SECONDS)
        account = await account_rows.find_id(tx, account_id) if account_id is not None else None
        return Lease(account, digest, now + LEASE_SECONDS) if account is not None else None

    async def _create(self, tx: Transaction, account_name: str, key: str) -> None:
        kept = await account_rows.find(tx, account_name)
        if kept is None:
            raise NotFound("Account not found")
        now, days = int(self._now()), (await settings.tuning(tx, self._tuning)).link_days
        await rows.purge(tx, now)
        count, first = await rows.count(tx, kept.account.id)
        if count >= MOST_LINKS:
            ends = datetime.fromtimestamp(first, UTC).date().isoformat()
            raise Conflict(f"Too many one-time links ({count} of this account were not opened; the first ends {ends})")
        await rows.add(tx, _digest(key), kept.account.id, now, now + days * DAY_SECONDS)


def _digest(key: str) -> bytes:
    """The key has 320 random bits: there is nothing to guess. The store's own key comes to it."""
    return hashlib.sha256(key.encode()).digest()
