"""What this gateway shows to agents on other hosts: a certificate of its own, whose key lives in memory only.

Made from the authority in the database when the gateway starts, renewed each day, and made anew when the authorities
change or an operator has revoked what there was. Without an authority (no node was ever added by its address) there is
none. A database that is away for a while changes nothing: what was made last holds for days. Called by wiring and the
command line, for gateway/agents.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from gateway import host
from gateway.agents import Agents
from gateway.authority import Credentials, gateway_certificate
from gateway.errors import DatabaseUnavailable, SealBroken
from gateway.store import Store, authorities
from gateway.store.authorities import Trust

LOOK_SECONDS = 3.0  # a new authority is trusted, a first one used, so much later
RENEWED_AFTER = timedelta(days=1)

log = logging.getLogger(__name__)
T = TypeVar("T")


class OwnCredentials:
    """`current`: None = there is no authority. It is another object when it is to be used in place of the last one."""

    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now
        self._trust: Trust | None = None
        self._made = now()
        self.current: Credentials | None = None

    async def run(self) -> None:
        """Until it is cancelled."""
        trouble = ""
        while True:
            try:
                await self.look()
                trouble = ""
            except (DatabaseUnavailable, SealBroken) as error:
                if str(error) != trouble:
                    log.error("event=credentials-kept reason=%r", str(error))
                trouble = str(error)
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Raises DatabaseUnavailable, SealBroken; what is there stays."""
        trust = await self._store.read(authorities.listed)
        age = self._now() - self._made
        # A clock that went back makes a new one too: the old one may lie ahead of the agents'.
        if trust is None or (trust == self._trust and timedelta() <= age < RENEWED_AFTER):
            return
        key, certificate = gateway_certificate(trust.signs, self._now(), trust.series)
        self._trust, self._made = trust, self._now()
        self.current = Credentials(certificate, key, b"".join(trust.certificates))


async def with_agents(store: Store, work: Callable[[Agents], Awaitable[T]]) -> T:
    """For a command, which asks agents itself."""
    credentials = OwnCredentials(store)
    await credentials.look()
    agents = Agents(lambda: credentials.current, host.identity() if store.is_shared else "")
    try:
        return await work(agents)
    finally:
        await agents.close()
