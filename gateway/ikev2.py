"""IKEv2: its certificates, whether it is on, who is in. Owns v1's rules for that and their error texts.

Every gateway reads the database at each call: what one has made, all others show. A change gives the servers with IKEv2
and their accounts a new revision, so the nodes get it by the ordinary sync; then they are waited for, as after any
other change. Never speaks SQL or HTTP. Called by gateway/http.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from gateway import certificates
from gateway.accepted import Accepted
from gateway.agents import AgentLacks
from gateway.certificates import NOTHING, Certified, Subject
from gateway.endpoint import is_right
from gateway.errors import AgentUnreachable, Conflict, InvalidValue, NodeUnavailable, NotFound
from gateway.live import Session
from gateway.model import Account, Node, Server
from gateway.store import Store, Transaction
from gateway.store import accounts as account_rows
from gateway.store import ikev2 as rows
from gateway.store import nodes as node_rows
from gateway.store.ikev2 import Ikev2
from gateway.store.servers import Touched
from gateway.store.transaction import INSTALLATION

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.sync import Sync

log = logging.getLogger(__name__)

HAS_ROOT = "The root certificate is already in the system"
NO_ROOT = "The ROOT certificate is not present in the system"
NO_SERVER = "The SERVER certificate is not present in the system"
NOT_ENABLED = "IKEv2 is not enabled on this server"
UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


class Ikev2Service:
    def __init__(self, store: Store, sync: Sync, agents: Agents, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._sync = sync
        self._agents = agents
        self._now = now
        self._away: set[str] = set()  # nodes that online() has complained about

    async def get(self) -> Ikev2:
        return await self._store.read(rows.found)

    async def of(self, server: Server) -> Ikev2:
        """What its accounts are told. Raises Conflict where they do not come in by IKEv2."""
        one = await self.get()
        if not (server.ikev2 and one.serves):
            raise Conflict(NOT_ENABLED)
        return one

    # -- certificates ---------------------------------------------------------------------------------------------

    async def make_authority(self, subject: Subject) -> Accepted[Ikev2]:
        if (await self.get()).authority:
            raise Conflict(HAS_ROOT)
        _check_filled(subject)
        certificates.named(subject)
        made = await asyncio.to_thread(certificates.new_authority, subject, self._date())
        return await self._change(lambda old: _with_authority(old, made, subject))

    async def bring_authority(self, certificate: str, key: str) -> Accepted[Ikev2]:
        if (await self.get()).authority:
            raise Conflict(HAS_ROOT)
        for name, text in (("CaCert", certificate), ("CaKey", key)):
            if not text.strip():
                raise InvalidValue(f"{name} must be filled")
        brought = await asyncio.to_thread(certificates.brought_authority, certificate, key, self._date())
        return await self._change(
            lambda old: _with_authority(old, brought, certificates.subject_of(brought.certificate))
        )

    async def make_server(self, subject: Subject, domain: str, ip: str, ipv6: str) -> Accepted[Ikev2]:
        """In the place of the one that there is."""
        authority = (await self.get()).authority
        if not authority:
            raise Conflict("The root certificate is not present in the system")
        addresses = _checked_server(domain, ip, ipv6)
        _check_filled(subject)
        certificates.named(subject)
        made = await asyncio.to_thread(certificates.new_server, authority, subject, domain, *addresses, self._date())

        def change(old: Ikev2) -> Ikev2:
            if old.authority != authority:
                raise Conflict("The root certificate was changed meanwhile: try again")
            return replace(old, server=made, server_names=dict(subject), domain=domain, ip=ip, ipv6=ipv6)

        return await self._change(change)

    async def drop_authority(self) -> Accepted[Ikev2]:
        """And what it has signed. IKEv2 is off then."""

        def change(old: Ikev2) -> Ikev2:
            if not old.authority:
                raise Conflict(NO_ROOT)
            return Ikev2()

        return await self._change(change)

    async def drop_server(self) -> Accepted[Ikev2]:
        """IKEv2 is off then."""

        def change(old: Ikev2) -> Ikev2:
            if not old.authority:
                raise Conflict(NO_ROOT)
            if not old.server:
                raise Conflict(NO_SERVER)
            kept = replace(old, server=NOTHING, server_names={}, enabled=False)
            return replace(kept, domain="", ip="", ipv6="")

        return await self._change(change)

    async def switch(self, enabled: bool) -> Accepted[Ikev2]:
        def change(old: Ikev2) -> Ikev2:
            if not old.authority:
                raise Conflict(NO_ROOT)
            if not old.server:
                raise Conflict(NO_SERVER)
            return replace(old, enabled=enabled)

        return await self._change(change)

    async def _change(self, change: Callable[[Ikev2], Ikev2]) -> Accepted[Ikev2]:
        async def run(tx: Transaction) -> tuple[Ikev2, Touched]:
            await tx.lock(INSTALLATION)
            old = await rows.found(tx)
            new = change(old)
            if new == old:
                return new, {}
            await rows.save(tx, new)
            # What is not served concerns no node.
            return new, await rows.touch(tx) if old.serves or new.serves else {}

        new, touched = await self._store.change(run)
        pending = await self._sync.all_settled(touched)
        return Accepted(new, ", ".join(touched), ", ".join(pending))

    def _date(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    # -- who is in ------------------------------------------------------------------------------------------------

    async def online(self) -> Sequence[tuple[Account, Session]]:
        """By name. A node that is away is left out; it is logged once where that was not known before."""
        if not (await self.get()).serves:
            return []
        absent = self._sync.absent()
        nodes = [node for node in await self._store.read(node_rows.listed) if node.name not in absent]
        answers = await asyncio.gather(*map(self._sessions, nodes))
        sessions = {session.account_id: session for answer in answers for session in answer}
        accounts = await self._store.read(lambda tx: account_rows.by_ids(tx, sessions))
        return [(one, sessions[one.id]) for one in sorted(accounts.values(), key=lambda account: account.name)]

    async def _sessions(self, node: Node) -> Sequence[Session]:
        try:
            found = await self._agents.sessions(node)
        except AgentUnreachable as error:
            if node.name not in self._away:
                log.warning("node=%s event=left-out-of-ikev2-online reason=%r", node.name, str(error))
            self._away.add(node.name)
            return []
        self._away.discard(node.name)
        return found

    def ago(self, session: Session) -> str:
        """As strongSwan says it: " 11 seconds ago"."""
        seconds = max(int(self._now()) - session.established, 0)
        size, unit = next(((size, unit) for size, unit in UNITS if seconds >= 2 * size), UNITS[-1])
        count = seconds // size
        return f" {count} {unit}{'' if count == 1 else 's'} ago"

    async def disconnect(self, name: str) -> Account:
        """Puts an account out; it may come back. Raises NotFound, NodeUnavailable."""
        kept = await self._store.read(lambda tx: account_rows.find(tx, name))
        if kept is None:
            raise NotFound("Account not found")
        account = kept.account
        node = await self._store.read(lambda tx: node_rows.found(tx, account.node))
        try:
            await self._agents.disconnect(node, account.id)
        except AgentLacks:
            pass  # it is not there yet, so nobody is in
        except AgentUnreachable:
            raise NodeUnavailable(node.name) from None
        return account

    def running(self) -> tuple[str, int]:
        """What answers, and its process: of the first node on which it does; ("", 0) = on none."""
        statuses = sorted(self._sync.statuses().items())
        found = (status.ikev2 for _, status in statuses if status and status.ikev2[0])
        return next(found, ("", 0))


def _with_authority(old: Ikev2, authority: Certified, names: Mapping[str, str]) -> Ikev2:
    if old.authority:
        raise Conflict(HAS_ROOT)
    return replace(old, authority=authority, ca_names=dict(names))


def _check_filled(subject: Subject) -> None:
    for name, what in (("common_name", "Common Name"), ("organization", "Organization")):
        if not subject.get(name):
            raise InvalidValue(f"{what} must be filled")


def _checked_server(domain: str, ip: str, ipv6: str) -> tuple[IPv4Address, IPv6Address | None]:
    if not domain:
        raise InvalidValue("Server Domain must be filled")
    if not ip:
        raise InvalidValue("Server IP must be filled")
    if not is_right(domain) or not domain.isascii():
        raise InvalidValue("Wrong server_domain (only a domain, or an IP address)", "server_domain")
    try:
        address = IPv4Address(ip)
    except AddressValueError:
        raise InvalidValue("Wrong server_ip (only an IPv4 address)", "server_ip") from None
    try:
        return address, IPv6Address(ipv6) if ipv6 else None
    except AddressValueError:
        raise InvalidValue("Wrong server_ipv6 (only an IPv6 address)", "server_ipv6") from None
