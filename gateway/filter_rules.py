"""The operator's rules for what accounts send and get, on every node. v1's rules and error texts.

Only of what is forwarded for accounts: what the host itself receives and sends is the host's own. A change gives every
server a new revision, so the nodes get it by the ordinary sync; then they are waited for. Never speaks SQL or HTTP.
Called by gateway/http.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, TypeVar

from gateway.accepted import Accepted
from gateway.errors import Conflict, InvalidValue, NotFound
from gateway.store import Store, Transaction
from gateway.store import filter_rules as rows
from gateway.store import servers as server_rows
from gateway.store.filter_rules import FilterRule
from gateway.store.servers import Touched
from gateway.store.transaction import INSTALLATION

if TYPE_CHECKING:
    from gateway.sync import Sync

T = TypeVar("T")
HOSTS_OWN = "The firewall of the host itself is not managed by this API: its policies and its own rules are the host's"
NO_RULE = "No rule found with given name"
IN_USE = "A rule with the same name already exists"
CHAIN, NOT_OURS = "FORWARD", ("INPUT", "OUTPUT")
ACTIONS = ("ACCEPT", "DROP")
PROTOCOLS = ("TCP", "UDP", "ICMP", "ANY")
LONGEST_NAME = 64
MOST = 100  # as agents take them: each packet is compared with all of them
FULL = f"There are {MOST} rules already"


class FilterRules:
    def __init__(self, store: Store, sync: Sync) -> None:
        self._store = store
        self._sync = sync

    async def list(self) -> Sequence[FilterRule]:
        return await self._store.read(rows.listed)

    async def add(self, form: Mapping[str, str], at_top: bool) -> Accepted[FilterRule]:
        one = _checked(form)

        async def work(tx: Transaction) -> Touched:
            await tx.lock(INSTALLATION)
            there = await rows.listed(tx)
            if one.name in (other.name for other in there):
                raise Conflict(IN_USE)
            if len(there) >= MOST:
                raise Conflict(FULL)
            await rows.add(tx, one, at_top)
            return await server_rows.touch(tx)

        return await self._settle(one, await self._store.change(work))

    async def remove(self, name: str) -> Accepted[None]:
        async def work(tx: Transaction) -> Touched:
            await tx.lock(INSTALLATION)
            if name not in (other.name for other in await rows.listed(tx)):
                raise NotFound(NO_RULE)
            await rows.remove(tx, name)
            return await server_rows.touch(tx)

        return await self._settle(None, await self._store.change(work))

    async def _settle(self, value: T, touched: Touched) -> Accepted[T]:
        pending = await self._sync.all_settled(touched)
        return Accepted(value, ", ".join(touched), ", ".join(pending))


def _checked(form: Mapping[str, str]) -> FilterRule:
    """Raises InvalidValue, Conflict."""
    said = {name: text.strip() for name, text in form.items()}
    name, action, chain = said.get("name", ""), said.get("action", "").upper(), said.get("chain", "").upper()
    if not (name.isascii() and name.isalnum() and len(name) <= LONGEST_NAME):
        raise InvalidValue("Wrong rule name. Must be letters and numbers only", "name")
    if action not in ACTIONS:
        raise InvalidValue("Action must be ACCEPT or DROP", "action")
    if chain in NOT_OURS:
        raise Conflict(HOSTS_OWN)
    if chain != CHAIN:
        raise InvalidValue("Not correct Chain", "chain")
    destination = _network(said.get("d_ip", ""), "Destination IP must be in CIDR format", "d_ip")
    source = _network(said.get("s_ip", ""), "Source IP must be in CIDR format", "s_ip")
    if destination.version != source.version:
        raise InvalidValue("Source IP must be of the same family as Destination IP", "s_ip")
    protocol = said.get("protocol", "").upper() or "ANY"
    if protocol not in PROTOCOLS:
        raise InvalidValue("Protocol must be TCP, UDP, ICMP or ANY", "protocol")
    d_port, s_port = _port(said.get("d_port", ""), "d_port"), _port(said.get("s_port", ""), "s_port")
    if protocol == "ICMP" and (d_port or s_port):
        raise InvalidValue("ICMP has no ports: d_port and s_port must be 0", "d_port" if d_port else "s_port")
    return FilterRule(name, action == "ACCEPT", str(source), str(destination), protocol.lower(), s_port, d_port)


def _network(text: str, error: str, field: str) -> IPv4Network | IPv6Network:
    """Bits behind the prefix do not matter, as iptables(8) has it."""
    try:
        if "/" in text and "%" not in text:
            return ip_network(text, strict=False)
    except ValueError:
        pass
    raise InvalidValue(error, field)


def _port(text: str, field: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535):
        raise InvalidValue(f"{'Destination' if field == 'd_port' else 'Source'} port must be within 0-65535", field)
    return int(text)
