"""From what was asked for to what Linux shall hold. PURE: no I/O, no clock, no configuration.

One server is one link, one qdisc on it, one set of forwarding rules. One account is two classes (none where its rate
is unlimited), one pair of mark rules and one peer. Together the servers need one more qdisc, on the uplink.

A disabled account has nothing of it: nothing passes any more, not even what waited in its classes, and what others go
on sending to it is not counted. Its numbers are kept: rules that come back start where they stood (usage.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from agent.desired import Desired
from agent.misfits import of_address, of_servers
from agent.model import (
    DEFAULT_MTU,
    Account,
    Class,
    ClassKey,
    Forwarding,
    Link,
    Mark,
    Peer,
    PeerKey,
    Qdisc,
    Scope,
    Server,
    clamped,
    mark_of,
    minor,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Kernel objects by key, one map for each part of the kernel. `found` has the same shape."""

    links: dict[str, Link] = field(default_factory=dict)
    qdiscs: dict[str, Qdisc] = field(default_factory=dict)
    classes: dict[ClassKey, Class] = field(default_factory=dict)
    forwarding: dict[str, Forwarding] = field(default_factory=dict)
    marks: dict[IPv4Address, Mark] = field(default_factory=dict)
    peers: dict[PeerKey, Peer] = field(default_factory=dict)


def wanted(desired: Desired, uplink: str, first: Iterable[int] = (), mtu: int = DEFAULT_MTU) -> Wanted:
    """Everything; the objects of the accounts `first` (ids) before the others'. `mtu`: where a server names none."""
    nowhere = of_servers(desired)
    result = wanted_accounts(desired, dict.fromkeys((*first, *desired.accounts)), uplink)
    for server in desired.servers.values():
        result.links[server.interface] = _link(server, mtu)
        result.qdiscs[server.interface] = Qdisc(server.interface)
        result.forwarding[server.interface] = _forwarding(server, "" if server.name in nowhere else uplink)
    if desired.servers:
        result.qdiscs[uplink] = Qdisc(uplink)
    return result


def scope_of(want: Wanted, uplink: str) -> Scope:
    """Where to look for what of it is there already."""
    return Scope(frozenset(want.links), uplink, {name: link.private_key for name, link in want.links.items()})


def wanted_accounts(desired: Desired, account_ids: Iterable[int], uplink: str) -> Wanted:
    """Only the objects of these accounts; ids that are not (or no longer) there have none."""
    result = Wanted()
    for account_id in account_ids:
        account = desired.accounts.get(account_id)
        if account is not None and not of_address(account, server := desired.servers[account.server]):
            _add(result, account, server.interface, uplink)
    return result


def _add(result: Wanted, account: Account, interface: str, uplink: str) -> None:
    if not account.enabled:
        return
    # The link's egress is the client's download, the uplink's egress its upload.
    for device, rate in ((interface, account.download), (uplink, account.upload)):
        if rate:
            key = (device, minor(account.mark))
            result.classes[key] = Class(*key, rate, account.id)
    result.marks[account.address] = Mark(account.address, account.mark, account.id)
    result.peers[interface, account.public_key] = Peer(interface, account.public_key, account.address, account.id)


def _link(server: Server, mtu: int) -> Link:
    return Link(server.interface, clamped(server.private_key), server.listen_port, server.address, server.mtu or mtu)


def _forwarding(server: Server, uplink: str) -> Forwarding:
    return Forwarding(
        server.interface,
        server.address,
        uplink,
        server.listen_port,
        server.internal_traffic,
        server.external_ip,
        server.reach,
    )


# -- and back -----------------------------------------------------------------------------------------------------


def owner_of(desired: Desired, part: str, key: Any) -> int:
    """Whose a class, mark or peer is, by its key: the account's id; 0 = nobody's."""
    if part == "marks":
        return desired.by_address.get(key, 0)
    if part == "classes":
        return desired.by_mark.get(mark_of(key[1]), 0)
    server = server_on(desired, key[0])
    return desired.by_key.get((server.name, key[1]), 0) if server else 0


def server_on(desired: Desired, interface: str) -> Server | None:
    return next((server for server in desired.servers.values() if server.interface == interface), None)
