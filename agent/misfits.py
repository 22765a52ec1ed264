"""What was asked for and can never be right here: left out of the kernel, and told by name. PURE: no I/O.

A gateway refuses these; an older one may not have, and whoever holds its place need not. One bad row spoils only
itself: a snapshot with it is taken, and the rest of it served. Called by wanted.py and writer.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from agent.desired import Desired
from agent.model import NOWHERE, Account, Server


def of_accounts(desired: Desired, account_ids: Iterable[int]) -> Iterator[tuple[int, str, str]]:
    """Those of these accounts that cannot have their address: id, name, and why."""
    for account_id in account_ids:
        account = desired.accounts.get(account_id)
        if account is not None and (reason := of_address(account, desired.servers[account.server])):
            yield account.id, account.name, reason


def of_address(account: Account, server: Server) -> str:
    """Why the account cannot have its address; "" = it can."""
    address, network = account.address, server.address.network
    if address not in network:
        return f"address {address} is not within {network}, the network of server {server.name}"
    ends = (network.network_address, network.broadcast_address) if network.prefixlen < 31 else ()
    if address == server.address.ip or address in ends:
        return f"address {address} is server {server.name}'s own, or an end of its network {network}"
    return _of_address_ipv6(account, server) if account.address_ipv6 else ""


def _of_address_ipv6(account: Account, server: Server) -> str:
    address, own = account.address_ipv6, server.address_ipv6
    if own is None:
        return f"address {address} is IPv6, which server {server.name} has not"
    if address not in own.network or address in (own.ip, own.network.network_address):
        return f"address {address} is not within {own.network}, or is server {server.name}'s own"
    return ""


def of_servers(desired: Desired) -> dict[str, str]:
    """Why nothing can leave with the external_ip of a server, by its name."""
    found: dict[str, str] = {}
    named = [server for server in desired.servers.values() if server.external_ip]
    taken = {server.address.network: server.name for server in desired.servers.values()} if named else {}
    lengths = {network.prefixlen for network in taken}
    for server in named:
        external = server.external_ip
        assert external is not None
        if _is_nobodys(external):
            found[server.name] = f"external_ip {external} is no address that a host has on the internet: nothing leaves"
        for length in lengths:
            if other := taken.get(IPv4Network((external, length), strict=False)):
                found[server.name] = f"external_ip {external} lies in the network of server {other}: nothing leaves"
    return found


def _is_nobodys(address: IPv4Address) -> bool:
    is_special = address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved
    return is_special or address in NOWHERE[0]
