"""From what was asked for to what Linux shall hold. PURE: no I/O, no clock, no configuration.

What one server and one account come to is said part by part (parts/). A disabled account has nothing of it: nothing
passes any more, not even what waited in its classes, and what others go on sending to it is not counted. Its numbers
are kept: rules that come back start where they stood (usage.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from agent.desired import Desired
from agent.misfits import of_address, of_servers
from agent.model import DEFAULT_MTU
from agent.objects import Scope
from agent.parts import ACCOUNT_PARTS, LINKS, PARTS, RESPONDER, SERVER_PARTS, Part, Place
from agent.parts.forwarding import free_ports

K = TypeVar("K")
V = TypeVar("V")


class Wanted:
    """Kernel objects by key, a map for each part. `found` has the same shape."""

    def __init__(self, held: Mapping[Part[Any, Any], dict[Any, Any]] | None = None) -> None:
        self._held: dict[Part[Any, Any], dict[Any, Any]] = {part: {} for part in PARTS} | dict(held or {})

    def __getitem__(self, part: Part[K, V]) -> dict[K, V]:
        held: dict[K, V] = self._held[part]
        return held


def wanted(desired: Desired, uplink: str, first: Iterable[int] = (), mtu: int = DEFAULT_MTU) -> Wanted:
    """Everything; the objects of the accounts `first` (ids) before the others'. `mtu`: where a server names none."""
    listening = (server.listen_port for server in desired.servers.values())
    place = Place(uplink, mtu, of_servers(desired), free_ports(listening))
    result = wanted_accounts(desired, dict.fromkeys((*first, *desired.accounts)), uplink)
    for server in desired.servers.values():
        for part in SERVER_PARTS:
            part.into(result[part], server, place)
    return result


def wanted_accounts(desired: Desired, account_ids: Iterable[int], uplink: str) -> Wanted:
    """Only the objects of these accounts; ids that are not (or no longer) there have none."""
    result, place = Wanted(), Place(uplink)
    kinds = [(part.into, result[part]) for part in ACCOUNT_PARTS]
    for account_id in account_ids:
        account = desired.accounts.get(account_id)
        if account is None or not account.enabled or of_address(account, server := desired.servers[account.server]):
            continue
        for into, held in kinds:
            into(held, account, server, place)
    return result


def scope_of(want: Wanted, uplink: str) -> Scope:
    """Where to look for what of it is there already."""
    links = want[LINKS]
    keys = {name: link.private_key for name, link in links.items()}
    return Scope(frozenset({*links, *want[RESPONDER]}), uplink, keys)
