"""Renews the certificates of nodes over their living lines, and tells nodes whom to trust: nobody has to go there.

Each node says what it shows and whom it trusts (AgentStatus). Where that is not what the database has now, or
a third of a certificate's life is left, it makes a key, gets a certificate for it, and shows that to new connections.
Two gateways that do it at the same time do no harm: the later certificate stays. A node that is away keeps what it has;
one that is away until its certificate ends needs a new join token. Started by wiring.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.authority import NODE_LIFE, checked_public_key, node_certificate
from gateway.errors import AgentUnreachable, GatewayError, InvalidValue
from gateway.store import authorities
from gateway.store import nodes as node_rows

if TYPE_CHECKING:
    from gateway.agents import Agents
    from gateway.model import AgentStatus, Node
    from gateway.store import Store
    from gateway.store.authorities import Trust

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
RENEWED_BEFORE = NODE_LIFE / 3


class Renewal:
    """`statuses`: what each agent last said, by the name of its node; None = it is away."""

    def __init__(
        self,
        store: Store,
        agents: Agents,
        statuses: Callable[[], dict[str, AgentStatus | None]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._agents = agents
        self._statuses = statuses
        self._now = now
        self._said: dict[str, str] = {}  # the trouble with each node, "" = with the database

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.8, 1.2))  # gateways do not do it in step
            try:
                await self.look()
                self._said.pop("", None)
            except GatewayError as error:
                self._say("", str(error))

    async def look(self) -> None:
        """Renews what is due. Raises DatabaseUnavailable, SealBroken."""
        trust = await self._store.read(authorities.listed)
        if trust is None:
            return
        statuses = self._statuses()
        for node in await self._store.read(node_rows.listed):
            status = statuses.get(node.name)
            if status is None or node.is_local or not is_due(status, trust, self._now()):
                continue
            try:
                await self._renew(node, trust)
                self._said.pop(node.name, None)
            except (AgentUnreachable, InvalidValue) as error:
                self._say(node.name, str(error))

    async def _renew(self, node: Node, trust: Trust) -> None:
        """The name stays: it is what this node's enrolment was given."""
        key = checked_public_key(await self._agents.new_key(node))
        certificate = node_certificate(trust.signs, key, node.name, node.tls_name, self._now())
        await self._agents.set_certificate(node, certificate, b"".join(trust.certificates))
        log.info("node=%s event=certificate-renewed authority=%s", node.name, trust.signs.pin)

    def _say(self, who: str, trouble: str) -> None:
        """Each trouble once."""
        if self._said.get(who) != trouble:
            log.error("node=%s event=not-renewed reason=%r cure='is tried again'", who or "-", trouble)
        self._said[who] = trouble


def is_due(status: AgentStatus, trust: Trust, now: datetime) -> bool:
    standing = status.standing
    if standing is None:
        return False
    left = status.certificate_expires - now.timestamp()
    is_ours = standing.authority == trust.signs.pin and standing.authorities == trust.pins
    return not is_ours or left < RENEWED_BEFORE.total_seconds()
