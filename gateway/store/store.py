"""The store: one database and its key.

Owns: when a transaction begins, is tried again, and what its failure means. Who needs the database passes its work to
`read` or `change`, one transaction each, and calls the rows of this folder in it. Never caches: another gateway may
have changed everything since.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from gateway.errors import ConfigError, DatabaseUnavailable
from gateway.store import copying, keys, schema, settings
from gateway.store.engine import Engine, parsed_url
from gateway.store.keys import AccessKey, KeptKey
from gateway.store.seal import Seal
from gateway.store.transaction import Transaction
from gateway.store.trouble import POOLER, is_read_only, translated, try_again_helps

T = TypeVar("T")
Work = Callable[[Transaction], Awaitable[T]]

PING_SECONDS = 5.0
_ATTEMPTS = 5  # of a change that another one was in the way of


class Store:
    """Made by `open_store`."""

    def __init__(self, engine: Engine, seal: Seal) -> None:
        self._engine = engine
        self._seal = seal
        self.troubles: Counter[str] = Counter()  # how often the database did not do its work, by what was wrong
        self._pinged: asyncio.Task[DatabaseUnavailable | None] | None = None
        self._ping_again = 0.0

    @property
    def is_shared(self) -> bool:
        """May other gateways, on other hosts, work with this database?"""
        return not self._engine.is_sqlite

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._pinged is not None:
            await asyncio.wait((self._pinged,))
        await self._engine.close()

    async def read(self, work: Work[T]) -> T:
        """`work` sees one moment of the database, and cannot write."""
        async with self._explained(), self._engine.read() as connection:
            return await work(Transaction(connection, self._seal, self._engine.is_sqlite))

    async def change(self, work: Work[T]) -> T:
        """What `work` did is durable when this returns, and nothing of it is there when it raises.

        (Save DatabaseUnavailable: a connection that is lost during the commit leaves it open.) `work` may be called
        again from the start, so it does nothing but read and write the database.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with self._engine.change() as connection:
                    return await work(Transaction(connection, self._seal, self._engine.is_sqlite))
            except Exception as error:
                known = await self._understood(error)
                most = _ATTEMPTS if try_again_helps(error) else 2 if is_read_only(error) else 1
                if attempt >= most:
                    if known is not None:
                        raise self._counted(known) from error
                    raise
            await asyncio.sleep(random.uniform(0, 0.05) * attempt)
        raise AssertionError("unreachable")

    async def check_pooler(self) -> None:
        """Raises ConfigError where something between us and PostgreSQL breaks up our sessions."""
        try:
            async with self._explained():
                await self._engine.check_pooler()
        except DatabaseUnavailable as error:
            if error.reason == POOLER:
                raise ConfigError([f"database: {POOLER}"]) from error
            raise

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            if (known := await self._understood(error)) is not None:
                raise self._counted(known) from error
            raise

    async def _understood(self, error: Exception) -> ConfigError | DatabaseUnavailable | None:
        """What it means to people; and connections to a server that is not the one any more are let go of."""
        if is_read_only(error):
            await self._engine.renew()
        return translated(error)

    def _counted(self, known: ConfigError | DatabaseUnavailable) -> ConfigError | DatabaseUnavailable:
        if isinstance(known, DatabaseUnavailable):
            self.troubles[known.state] += 1
        return known

    @asynccontextmanager
    async def rehearsal(self) -> AsyncIterator[Store]:
        """A store to try changes of accounts on: everything is in it, and nothing of it stays."""
        with tempfile.TemporaryDirectory(prefix="wirelane-") as folder:  # mode 0700
            url = f"sqlite:///{folder}/rehearsal.db"
            await schema.migrate(url)
            copy = Store(Engine(parsed_url(url)), self._seal)
            try:
                await self.read(lambda source: copy.change(lambda to: copying.copy(source, to, copying.REHEARSAL)))
                yield copy
            finally:
                await copy.close()

    async def copy_from(self, other: Store) -> dict[str, int]:
        """Everything of another database into this one, which is empty: rows by table. Raises ConfigError."""

        async def work(source: Transaction, target: Transaction) -> dict[str, int]:
            await copying.check_unused(target)
            return await copying.copy(source, target, copying.ALL)

        return await other.read(lambda source: self.change(lambda target: work(source, target)))

    async def ping(self) -> None:
        """Raises DatabaseUnavailable unless it can be written to: a full disk or a standby answers all questions.

        Strangers may ask: it is tried once in PING_SECONDS, whoever asks shares the answer.
        """
        now = asyncio.get_running_loop().time()
        if self._pinged is None or (self._pinged.done() and now >= self._ping_again):
            self._ping_again = now + PING_SECONDS
            self._pinged = asyncio.create_task(self._ping())
        if (trouble := await asyncio.shield(self._pinged)) is not None:
            raise DatabaseUnavailable(trouble.reason, trouble.state)

    async def _ping(self) -> DatabaseUnavailable | None:
        try:
            await self.change(lambda tx: settings.note_writing(tx, time.time()))
        except DatabaseUnavailable as error:
            return error
        return None

    # -- access keys ----------------------------------------------------------------------------------------------

    def key_digest(self, key: AccessKey, access_hash: str) -> bytes:
        """What of a hash lies in the database. The hash has 320 random bits: there is nothing to guess."""
        return keys.digest_of(self._seal, key, hashlib.sha256(access_hash.encode()).digest())

    def opens(self, kept: KeptKey, access_hash: str) -> bool:
        return hmac.compare_digest(kept.digest, self.key_digest(kept.key, access_hash))


async def open_store(url: str, key: bytes) -> Store:
    """`key`: 32 bytes. Raises ConfigError: another key, a schema that is not ours, no database at all."""
    seal = Seal(key)
    engine = Engine(parsed_url(url))
    store = Store(engine, seal)
    try:
        await store.check_pooler()
        await store.read(lambda tx: tx.connection.run_sync(schema.check))
        await store.change(settings.check_key)
    except BaseException:
        await engine.close()
        raise
    return store
