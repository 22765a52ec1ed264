"""Access keys: who may call the API, and from where. The hash is shown once; only a digest is stored, which nobody can
make without the key file.

Called by the command line, and by gateway/http for every request.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from gateway import fields
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.model import Secret
from gateway.store import Store
from gateway.store import keys as rows
from gateway.store.keys import AccessKey, KeptKey

HASH_BYTES = 40  # 80 hex characters, as v1 spells it
CACHE_SECONDS = 3.0  # a revoked key works so much longer
MOST_GONE = 50  # revoked keys that are remembered
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`key`: the name of the key whose hash it is, "" = of none. `reason`: a word, "" = it is allowed."""

    is_allowed: bool
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Entry:
    kept: KeptKey
    networks: tuple[IPv4Network | IPv6Network, ...]


class Keys:
    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._entries: Sequence[_Entry] = ()
        self._gone: list[KeptKey] = []  # revoked since this program runs, to say so
        self._good_until = float("-inf")
        self._loading = asyncio.Lock()

    async def add(self, name: str, networks: Iterable[str]) -> Secret:
        """The only time that the hash can be seen."""
        if not _NAME.fullmatch(name):
            raise InvalidValue("Wrong name of a key (only letters, numbers and '_', '-', '.', at most 64)")
        checked = tuple(str(_network(text)) for text in networks)
        if not checked:
            raise InvalidValue("A key is bound to addresses: give at least one, such as 192.0.2.10 or 192.0.2.0/24")
        access_hash = secrets.token_hex(HASH_BYTES)
        key = AccessKey(name, checked, datetime.now(UTC))
        kept = KeptKey(key, self._store.key_digest(key, access_hash))
        if not await self._store.change(lambda tx: rows.insert(tx, kept)):
            raise Conflict(f"There is a key {name} already; revoke it first")
        return Secret(access_hash)

    async def list(self) -> list[AccessKey]:
        return [kept.key for kept in await self._store.read(rows.listed)]

    async def revoke(self, name: str) -> None:
        """Raises NotFound."""
        if not await self._store.change(lambda tx: rows.remove(tx, name)):
            raise NotFound(f"There is no key {name}")

    async def judged(self, access_hash: str, client: IPv4Address | IPv6Address) -> Verdict:
        """Whether this hash may be used from this address. Costs no SQL but every CACHE_SECONDS."""
        if self._now() >= self._good_until:
            await self._load()
        # An IPv6 socket shows IPv4 clients as ::ffff:a.b.c.d.
        address = (client.ipv4_mapped or client) if isinstance(client, IPv6Address) else client
        for entry in self._entries:
            if self._store.opens(entry.kept, access_hash):
                is_near = any(address in network for network in entry.networks)
                return Verdict(is_near, entry.kept.key.name, "" if is_near else "wrong-address")
        gone = next((kept for kept in self._gone if self._store.opens(kept, access_hash)), None)
        return Verdict(False, gone.key.name, "revoked-key") if gone else Verdict(False, "", "unknown-key")

    async def _load(self) -> None:
        async with self._loading:
            asked = self._now()
            if asked < self._good_until:
                return  # another call has loaded them meanwhile
            kept = await self._store.read(rows.listed)
            lost = [entry.kept for entry in self._entries if entry.kept not in kept]
            self._gone = [*(each for each in self._gone if each not in kept), *lost][-MOST_GONE:]
            self._entries = [_Entry(each, tuple(map(_network, each.key.networks))) for each in kept]
            self._good_until = asked + CACHE_SECONDS


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return fields.network(text)
    except ValueError as error:
        raise InvalidValue(f"Wrong address of a key: {error}") from None
