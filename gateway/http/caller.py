"""Whose address counts: the peer's, or the one that a trusted proxy saw. Pure. Called by access.py and
journal.py.

A proxy appends whom it saw to X-Forwarded-For, so only the right end can be believed: the client may have written the
rest. A hop is read in every spelling that proxies use; a proxy that names nobody vouches for nobody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from starlette.datastructures import Headers
from starlette.types import Scope

MOST_HOPS = 32  # that are proxies of ours; nobody has so many, and each costs a look
MOST_CHARACTERS = 60  # characters of a hop that is no address, for the log

HANDED_ON = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "forwarded", "via")

_BRACKETS = re.compile(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?")
_WITH_PORT = re.compile(r"([0-9.]+):([0-9]{1,5})")

Address = IPv4Address | IPv6Address
Networks = Iterable[IPv4Network | IPv6Network]


@dataclass(frozen=True, slots=True)
class Caller:
    """`address` None: nobody can tell who calls, and `problem` says why, for the operator."""

    address: Address | None
    problem: str = ""

    @property
    def network(self) -> str:
        """Where callers are counted, one is this: a customer of an IPv6 provider has a whole /64."""
        if isinstance(self.address, IPv6Address):
            return str(ip_network((self.address, 64), strict=False))
        return str(self)

    def __str__(self) -> str:
        return "-" if self.address is None else str(self.address)


def caller_of(scope: Scope, trusted: Networks) -> Caller:
    """The peer, or, where the peer is a trusted proxy, the rightmost hop of X-Forwarded-For that is not one."""
    peer = scope.get("client")
    found = read_hop(peer[0]) if peer else None
    if found is None or not _is_in(found, trusted):
        return Caller(found, "" if found else "the connection has no address")
    lines = Headers(scope=scope).getlist("x-forwarded-for")
    if not lines:
        return Caller(None, f"the trusted proxy {found} sent no X-Forwarded-For")
    hops = ",".join(lines).rsplit(",", MOST_HOPS)
    for hop in reversed(hops[-MOST_HOPS:]):
        proxy, found = found, read_hop(hop)
        if found is None:
            written = ascii(hop.strip()[:MOST_CHARACTERS])
            return Caller(None, f"the trusted proxy {proxy} sent an X-Forwarded-For that names no address: {written}")
        if not _is_in(found, trusted):
            return Caller(found)
    if len(hops) > MOST_HOPS:
        return Caller(None, f"X-Forwarded-For has more than {MOST_HOPS} trusted proxies")
    return Caller(found)  # only proxies of ours in sight: the first of them is the caller


def calls_directly_from(scope: Scope, networks: Networks) -> bool:
    """Whether the peer is in one of these, and no proxy: what a proxy hands on may be anybody's, trusted or not."""
    peer = scope.get("client")
    address = read_hop(peer[0]) if peer else None
    headers = Headers(scope=scope)
    return address is not None and _is_in(address, networks) and not any(name in headers for name in HANDED_ON)


def read_hop(text: str) -> Address | None:
    """One address as proxies write it: bare, with a port, in brackets, in quotes, with a zone. None = it is none."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip()
    if match := _BRACKETS.fullmatch(text):
        text, port = match[1], match[2]
        if ":" not in text:
            return None  # brackets are for IPv6 (RFC 3986, 3.2.2)
    elif match := _WITH_PORT.fullmatch(text):
        text, port = match[1], match[2]
    else:
        port = None
    if port is not None and int(port) > 65535:
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # A zone is text of the sender's, and means nothing beyond his own host.
        address = IPv6Address(int(address)) if address.scope_id is not None else address
        return address.ipv4_mapped or address  # a dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d
    return address


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
