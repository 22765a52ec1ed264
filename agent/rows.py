"""Servers, accounts and baselines as rows of the agent's file, and back. The order of the columns is schema.py's.

Raises ValueError or InvalidValue where a row cannot be right. No I/O. Called by store.py alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any

from agent.model import NO_SECRET, Account, Address, FilterRule, Ikev2, Login, PortForward, Reach, Secret, Server
from agent.objects import Counters
from agent.usage import Baseline


def by_version(addresses: Iterable[Address]) -> dict[int, list[Address]]:
    """Each family has a table of baselines."""
    found: dict[int, list[Address]] = {}
    for address in addresses:
        found.setdefault(address.version, []).append(address)
    return found


def key_of(address: Address) -> int | bytes:
    return int(address) if isinstance(address, IPv4Address) else address.packed


def baseline_rows(
    addresses: Iterable[Address], baselines: Mapping[Address, Baseline]
) -> Iterator[tuple[int | bytes, ...]]:
    for address in addresses:
        base = baselines[address]
        c = base.counters
        counted = c.download_packets, c.download_bytes, c.upload_packets, c.upload_bytes
        yield key_of(address), base.owner, *counted, base.since


def baseline_of(row: tuple[int, ...]) -> Baseline:
    return Baseline(row[1], Counters(*row[2:6]), row[6])


def account_row(a: Account) -> tuple[object, ...]:
    rates, key = (a.download, a.upload), a.preshared_key.reveal()
    ipv6 = a.address_ipv6.packed if a.address_ipv6 else None
    login = (a.login.username, a.login.password.reveal()) if a.login else (None, None)
    ports = json.dumps([(one.protocol, one.port, one.to_port) for one in a.ports]) if a.ports else None
    return a.id, a.name, a.server, int(a.address), a.public_key, a.mark, *rates, a.enabled, key, ipv6, *login, ports


def account_of(row: tuple[Any, ...]) -> Account:
    number, name, server, address, key, mark, download, upload, enabled, preshared, ipv6, username, password, led = row
    secret, second = Secret(preshared) if preshared else NO_SECRET, IPv6Address(ipv6) if ipv6 else None
    first = number, name, server, IPv4Address(address), key, mark, download, upload, bool(enabled)
    ports = tuple(PortForward(*one) for one in json.loads(led)) if led else ()
    return Account(*first, secret, second, Login(username, Secret(password)) if username else None, ports)


def server_row(s: Server) -> tuple[object, ...]:
    external = str(s.external_ip) if s.external_ip else None
    key, reach = s.private_key.reveal(), str(s.reach)
    ipv6 = str(s.address_ipv6) if s.address_ipv6 else None
    row = s.name, s.interface, key, s.listen_port, str(s.address), s.mtu, s.internal_traffic, external, reach
    return *row, ipv6, s.nat_ipv6, _ikev2_row(s.ikev2) if s.ikev2 else None, _filter_row(s.filter) if s.filter else None


def _filter_row(rules: Iterable[FilterRule]) -> str:
    ends = ((one, (str(one.source), str(one.destination))) for one in rules)
    return json.dumps([(one.accepts, *end, one.protocol, one.source_port, one.destination_port) for one, end in ends])


def _filter_of(text: str) -> tuple[FilterRule, ...]:
    return tuple(
        FilterRule(accepts, ip_network(source), ip_network(destination), *rest)
        for accepts, source, destination, *rest in json.loads(text)
    )


def _ikev2_row(one: Ikev2) -> str:
    dns = list(map(str, one.dns))
    return json.dumps([one.certificate, one.private_key.reveal(), one.authority, one.identity, dns])


def _ikev2_of(text: str) -> Ikev2:
    certificate, key, authority, identity, dns = json.loads(text)
    return Ikev2(certificate, Secret(key), authority, identity, tuple(map(ip_address, dns)))


def server_of(row: tuple[Any, ...]) -> Server:
    name, interface, key, port, address, mtu, internal, external, reach, ipv6, nat, ikev2, filtered = row
    external_ip = IPv4Address(external) if external else None
    secret, own, second = Secret(key), IPv4Interface(address), IPv6Interface(ipv6) if ipv6 else None
    fields = name, interface, secret, port, own, mtu, bool(internal), external_ip, Reach.parse(reach)
    rules = _filter_of(filtered) if filtered else ()
    return Server(*fields, second, bool(nat), _ikev2_of(ikev2) if ikev2 else None, rules)
