"""Desired state: the servers and accounts that the gateway asked for, at a revision of this agent's epoch.

A frozen value: a patch or a snapshot makes a new one and leaves the old one whole, so that what was applied and what
shall be applied can be compared. Old and new share what did not change, so a patch of k accounts costs k. No I/O.
reconcile.py holds the current one, store.py keeps it.

What two accounts of a node may not share (address, mark, a server's public key) is checked here too, although the
gateway's database promises it: two peers with one address would send one customer's packets to the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from immutables import Map, MapMutation

from agent.errors import InvalidValue, StaleRevision
from agent.model import Account, Address, Login, Server
from agent.origin import NO_WORD, NOBODY, Origin, Version

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Patch:
    """Everything that changed after `base`, up to and including `revision`."""

    epoch: str
    base: int
    revision: int
    put_servers: tuple[Server, ...] = ()
    remove_servers: tuple[str, ...] = ()
    put_accounts: tuple[Account, ...] = ()
    remove_accounts: tuple[int, ...] = ()
    time_zone: str = ""
    origin: Origin = NOBODY
    base_mark: int = 0

    @property
    def account_ids(self) -> frozenset[int]:
        return frozenset(a.id for a in self.put_accounts) | frozenset(self.remove_accounts)

    @property
    def server_names(self) -> frozenset[str]:
        return frozenset(s.name for s in self.put_servers) | frozenset(self.remove_servers)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it."""

    revision: int
    servers: tuple[Server, ...] = ()
    accounts: tuple[Account, ...] = ()
    time_zone: str = ""
    origin: Origin = NOBODY
    replaces: Version = NO_WORD  # what an operator said that it may take the place of


@dataclass(frozen=True, slots=True)
class Desired:
    """Build with `of` or `patched`; both check. The indexes say who holds what."""

    epoch: str
    revision: int = 0
    time_zone: str = "UTC"
    servers: Mapping[str, Server] = field(default_factory=dict)
    accounts: Map[int, Account] = field(default_factory=Map)
    by_address: Map[Address, int] = field(default_factory=Map)
    by_mark: Map[int, int] = field(default_factory=Map)
    by_key: Map[tuple[str, str], int] = field(default_factory=Map)
    by_username: Map[str, int] = field(default_factory=Map)
    by_port: Map[tuple[str, int], int] = field(default_factory=Map)
    origin: Origin = NOBODY

    @classmethod
    def of(cls, epoch: str, snapshot: Snapshot) -> Desired:
        """The state that a snapshot describes. Raises InvalidValue."""
        taken = cls(epoch)._with(snapshot.revision, snapshot.time_zone, (), snapshot.servers, (), snapshot.accounts)
        return replace(taken, origin=snapshot.origin)

    @property
    def version(self) -> Version:
        return Version(self.revision, self.origin)

    def check_replaced(self, snapshot: Snapshot) -> None:
        """Raises StaleRevision where the snapshot must not take the place of this; see origin.py."""
        self.version.check_replaced(Version(snapshot.revision, snapshot.origin), snapshot.replaces)

    def patched(self, patch: Patch) -> Desired:
        """The state after a patch; itself when the patch brings nothing new.

        Raises StaleRevision when the patch does not start here, InvalidValue when it cannot be right.
        """
        if patch.epoch != self.epoch:
            raise StaleRevision(f"this agent's epoch is {self.epoch}, the patch is for {patch.epoch}")
        if patch.base > self.revision:
            raise StaleRevision(f"this agent holds revision {self.revision}, the patch starts at {patch.base}")
        self.origin.check_follows(patch.origin)
        self.version.check_same(Version(patch.base, replace(patch.origin, mark=patch.base_mark)))
        self.version.check_same(Version(patch.revision, patch.origin))
        if patch.revision <= self.revision:
            known = self.origin.identity or patch.revision < self.revision or not patch.origin.identity
            return self if known else replace(self, origin=patch.origin)
        patched = self._with(
            patch.revision,
            patch.time_zone,
            patch.remove_servers,
            patch.put_servers,
            patch.remove_accounts,
            patch.put_accounts,
        )
        return replace(patched, origin=patch.origin)

    def servers_on(self, device: str) -> tuple[Server, ...]:
        """Whose accounts come in by this interface; by that of IKEv2 those of several."""
        return tuple(server for server in self.servers.values() if device in server.devices)

    def server_of(self, interface: str) -> Server | None:
        """Whose WireGuard link it is."""
        return next((server for server in self.servers.values() if interface == server.interface), None)

    def leaving(self, after: Desired, account_ids: Iterable[int]) -> frozenset[int]:
        """Who of these gets in here, and afterwards no more, or by another key, login or server only."""
        old = [account for i in account_ids if (account := self.accounts.get(i)) is not None and account.enabled]
        return frozenset(account.id for account in old if _door(after.accounts.get(account.id)) != _door(account))

    def without(self, account_ids: Collection[int]) -> Desired:
        """The same with these accounts switched off."""
        off = {i: replace(self.accounts[i], enabled=False) for i in account_ids if i in self.accounts}
        return replace(self, accounts=self.accounts.update(off)) if off else self

    def _with(
        self,
        revision: int,
        time_zone: str,
        remove_servers: Iterable[str],
        put_servers: Iterable[Server],
        remove_accounts: Iterable[int],
        put_accounts: Iterable[Account],
    ) -> Desired:
        servers = _patched(self.servers, remove_servers, tuple(put_servers))
        accounts, put_accounts = self.accounts.mutate(), tuple(put_accounts)
        by_address, by_mark, by_key = self.by_address.mutate(), self.by_mark.mutate(), self.by_key.mutate()
        by_username, by_port = self.by_username.mutate(), self.by_port.mutate()
        # Everything touched lets go first, so that two accounts may swap addresses in one patch.
        for account_id in (*remove_accounts, *(account.id for account in put_accounts)):
            if (old := accounts.pop(account_id, None)) is not None:
                del by_mark[old.mark], by_key[old.server, old.public_key]
                _let_go(old, by_address, by_username, by_port)
        for account in put_accounts:
            for address in account.addresses:
                _claim(by_address, address, account, "address")
            _claim(by_mark, account.mark, account, "mark")
            _claim(by_key, (account.server, account.public_key), account, "public_key")
            if account.login:
                _claim(by_username, account.login.username, account, "username")
            for port in account.ports:
                _claim(by_port, port.key, account, f"port {port.port}/{port.protocol}")
            accounts[account.id] = account
        _check_servers(servers)
        zone = checked_zone(time_zone) if time_zone else self.time_zone
        maps = accounts.finish(), by_address.finish(), by_mark.finish(), by_key.finish(), by_username.finish()
        desired = Desired(self.epoch, revision, zone, servers, *maps, by_port.finish())
        for account in desired.accounts.values() if self.servers.keys() - servers.keys() else put_accounts:
            if account.server not in servers:
                raise InvalidValue(f"account {account.name}: server", f"there is no server {account.server!r} here")
        return desired


def _patched(held: Mapping[str, Server], remove: Iterable[str], put: tuple[Server, ...]) -> dict[str, Server]:
    """The filter is the node's: one that comes with a server holds for all, also for those that did not come."""
    servers = dict(held)
    for name in remove:
        servers.pop(name, None)
    servers.update((server.name, server) for server in put)
    if not put:
        return servers
    rules = put[-1].filter
    return {name: replace(one, filter=rules) for name, one in servers.items()}


def _door(account: Account | None) -> tuple[str, str, Login | None] | None:
    return (account.server, account.public_key, account.login) if account and account.enabled else None


def _let_go(
    old: Account,
    by_address: MapMutation[Address, int],
    by_username: MapMutation[str, int],
    by_port: MapMutation[tuple[str, int], int],
) -> None:
    if old.login:
        del by_username[old.login.username]
    for address in old.addresses:
        del by_address[address]
    for port in old.ports:
        del by_port[port.key]


def _claim(index: MapMutation[K, int], key: K, account: Account, what: str) -> None:
    owner = index.get(key)
    if owner not in (None, account.id):
        raise InvalidValue(f"account {account.name}: {what}", f"account id {owner} has it already")
    index[key] = account.id


def _check_servers(servers: Mapping[str, Server]) -> None:
    seen: dict[tuple[str, object], str] = {}
    for server in servers.values():
        for what, value in (("interface", server.interface), ("listen_port", server.listen_port)):
            other = seen.setdefault((what, value), server.name)
            if other != server.name:
                raise InvalidValue(f"server {server.name}: {what}", f"{value} is server {other}'s already")


def checked_zone(name: str) -> str:
    """The name of a time zone that this host knows. Raises InvalidValue."""
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidValue("time_zone", f"{name!r} is not an IANA time zone such as Europe/Warsaw") from None
