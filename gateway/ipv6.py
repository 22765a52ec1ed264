"""PURE. The second family inside the tunnels: what its texts mean, what is generated, which numbers accounts can have.

Owns the spellings and the defaults. Never looks at what exists: creation.py and servers.py do. Called by them, by
fields.py and by the store.

A number of an account is its distance from the first address of its server's network. Numbers are kept as free ranges,
as those of IPv4 are; a network has far more of them than anybody will use, so what lies beyond LAST_NUMBER can be asked
for by name and is in no range.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from typing import Any

from gateway.allocate import Range, without
from gateway.errors import Conflict, InvalidValue
from gateway.model import Server, ServerValues

MIN_PREFIX, MAX_PREFIX = 48, 112  # room for every mark of a node, and no more than a provider routes to a host
LAST_NUMBER = (1 << 48) - 1
PRIVATE = IPv6Network("fc00::/7")  # RFC 4193
INTERNET = IPv6Network("2000::/3")
NO_HOSTS = tuple(map(IPv6Network, ("2001::/23", "2002::/16")))  # Teredo and other special ones, 6to4
DNS_1, DNS_2 = IPv6Address("2001:4860:4860::8888"), IPv6Address("2606:4700:4700::1111")  # whose IPv4 is ours, too
LEAST_MTU = 1280  # RFC 8200, section 5
NOT_THERE = "The wireguard server has no IPv6"
_WRONG_NETWORK = (
    f"Wrong IPv6 format (only a host's address with a prefix of {MIN_PREFIX}-{MAX_PREFIX}, private or of the internet: "
    "fd00:1:2:3::1/64)"
)


# -- texts --------------------------------------------------------------------------------------------------------


def account_address(text: str | None) -> IPv6Address | None:
    """Bare or with /128. Raises InvalidValue."""
    return None if text is None else _address(text.removesuffix("/128"), "Wrong IPv6 format", "allowed_IPs_ipv6")


def dns(form: Mapping[str, str], key: str) -> IPv6Address | str | None:
    """None = not named, "" = cleared. Raises InvalidValue."""
    text = form.get(key, "").strip()
    if not text:
        return "" if key in form else None
    return _address(text, f"Wrong {key} format (only an IPv6 address)", key)


def server_address(text: str | None) -> IPv6Interface | None:
    """With its prefix. Raises InvalidValue."""
    if text is None:
        return None
    try:
        address = IPv6Interface(text)
    except ValueError:
        raise InvalidValue(_WRONG_NETWORK, "address_ipv6") from None
    network = address.network
    there = any(network.subnet_of(one) for one in (PRIVATE, INTERNET))
    if (
        address.scope_id is not None
        or "/" not in text
        or not MIN_PREFIX <= network.prefixlen <= MAX_PREFIX
        or address.ip == network.network_address  # the routers' anycast address (RFC 4291, 2.6.1)
        or not there
        or any(network.overlaps(one) for one in NO_HOSTS)
    ):
        raise InvalidValue(_WRONG_NETWORK, "address_ipv6")
    return address


def _address(text: str, problem: str, key: str) -> IPv6Address:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise InvalidValue(problem, key) from None
    if address.scope_id is not None:
        raise InvalidValue(problem, key)
    return address


# -- a server -----------------------------------------------------------------------------------------------------


def with_ipv6(server: Server, values: ServerValues) -> Server:
    """The server with what `values` says of its second family. An address turns it on, `ipv6` too, with a network of
    its own; `ipv6=0` turns it off, whatever else is named. Raises InvalidValue."""
    named: dict[str, Any] = {}
    for key in ("dns_1_ipv6", "dns_2_ipv6"):
        if (value := getattr(values, key)) is not None:
            named[key] = value or None
    address = values.address_ipv6 or server.address_ipv6 or (_new_network() if values.ipv6 else None)
    if values.ipv6 is False:
        address = None
    if address and not server.address_ipv6:
        unnamed = {"dns_1_ipv6": DNS_1, "dns_2_ipv6": DNS_2}
        named = {key: dns for key, dns in unnamed.items() if getattr(server, key) is None} | named
    nat = server.nat_ipv6 if values.nat_ipv6 is None else values.nat_ipv6
    if values.nat_ipv6 is None and address != server.address_ipv6:
        nat = address is not None and address.network.subnet_of(PRIVATE)
    new = replace(server, address_ipv6=address, nat_ipv6=nat and address is not None, **named)
    if address and 0 < new.mtu < LEAST_MTU:
        raise InvalidValue(f"Wrong mtu (IPv6 needs at least {LEAST_MTU})", "mtu")
    return new


def refuse_in_use(server: Server, others: Iterable[Server]) -> None:
    """Raises Conflict where another server has some of its network."""
    own = server.address_ipv6
    if own and any(own.network.overlaps(one.address_ipv6.network) for one in others if one.address_ipv6):
        raise Conflict("IP address or subnet already in use")


def refuse_outside(server: Server, addresses: Iterable[IPv6Address]) -> None:
    """`addresses`: of its accounts. Nobody is renumbered between two networks, and all are by turning it off and on."""
    own = server.address_ipv6
    outside = [address for address in addresses if own and not is_assignable(own, address)]
    if outside:
        raise Conflict(
            f"The IPv6 address cannot be changed: {len(outside)} accounts would be outside of it, among them "
            f"{min(outside)}; with ipv6=0 and then ipv6=1 all get new ones"
        )


def _new_network() -> IPv6Interface:
    """Of 2^56: nobody who has one like it will be met (RFC 4193, 3.2)."""
    number = 0xFD << 120 | secrets.randbits(56) << 64 | 1
    return IPv6Interface((number, 64))


# -- its accounts -------------------------------------------------------------------------------------------------


def assignable(server: IPv6Interface) -> list[Range]:
    """The numbers that accounts get unless they name one: all but the network's own and the server's."""
    last = min(server.network.num_addresses - 1, LAST_NUMBER)
    return without([Range(1, last)], [number_of(server, server.ip) or 0])


def is_assignable(server: IPv6Interface, address: IPv6Address) -> bool:
    return address in server.network and address not in (server.ip, server.network.network_address)


def number_of(server: IPv6Interface, address: IPv6Address) -> int | None:
    """None = it is in no range."""
    number = int(address) - int(server.network.network_address)
    return number if 0 < number <= LAST_NUMBER else None


def address_of(server: IPv6Interface, number: int) -> IPv6Address:
    return server.network.network_address + number
