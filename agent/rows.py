"""Servers, accounts and baselines as rows of the agent's file, and back. The order of the columns is store.py's SCHEMA.

Raises ValueError or InvalidValue where a row cannot be right. No I/O. Called by store.py alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface

from agent.model import NO_SECRET, Account, Reach, Secret, Server
from agent.usage import Baseline


def baseline_rows(baselines: Mapping[IPv4Address, Baseline]) -> Iterator[tuple[int, ...]]:
    for address, base in baselines.items():
        c = base.counters
        counted = c.download_packets, c.download_bytes, c.upload_packets, c.upload_bytes
        yield int(address), base.owner, *counted, base.since


def account_row(a: Account) -> tuple[object, ...]:
    rates, key = (a.download, a.upload), a.preshared_key.reveal()
    return a.id, a.name, a.server, int(a.address), a.public_key, a.mark, *rates, a.enabled, key


def account_of(row: tuple[int, str, str, int, str, int, int, int, int, str]) -> Account:
    number, name, server, address, key, mark, download, upload, enabled, preshared = row
    secret = Secret(preshared) if preshared else NO_SECRET
    return Account(number, name, server, IPv4Address(address), key, mark, download, upload, bool(enabled), secret)


def server_row(s: Server) -> tuple[object, ...]:
    external = str(s.external_ip) if s.external_ip else None
    key = s.private_key.reveal()
    return s.name, s.interface, key, s.listen_port, str(s.address), s.mtu, s.internal_traffic, external, str(s.reach)


def server_of(row: tuple[str, str, str, int, str, int, int, str | None, str]) -> Server:
    name, interface, key, port, address, mtu, internal, external, reach = row
    external_ip = IPv4Address(external) if external else None
    secret, own = Secret(key), IPv4Interface(address)
    return Server(name, interface, secret, port, own, mtu, bool(internal), external_ip, Reach.parse(reach))
