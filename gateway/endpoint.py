"""PURE. Where clients connect to: one rule for what an endpoint is, and one spelling of it in every text.

A host name (RFC 1123), an IPv4 or an IPv6 address; no port, which is the server's, and nothing else: it ends in files
that customers run. Called by whatever takes an endpoint in, and by profile.py and servers.py, which give it out.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address

RIGHT = "a host name such as vpn.example.com, an IPv4 or an IPv6 address, without a port"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}\Z")


def parsed(text: str) -> str:
    """As it is kept: addresses in their shortest spelling, without brackets. Raises ValueError."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    try:
        address = ip_address(bare)
    except ValueError:
        address = None
    if address is not None:
        return _address(text, address)
    name = text.removesuffix(".")
    if not _NAME.match(name) or name.rpartition(".")[2].isdecimal():  # such as 1.2.3 or 10.0.0.256
        raise ValueError(text)
    return name.lower()


def _address(text: str, address: IPv4Address | IPv6Address) -> str:
    scoped = isinstance(address, IPv6Address) and address.scope_id is not None
    if scoped or address.is_unspecified or address.is_multicast or address == IPv4Address("255.255.255.255"):
        raise ValueError(text)
    return str(address)


def is_right(text: str) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


def with_port(endpoint: str, port: int) -> str:
    """ "vpn.example.com:51820", "[2001:db8::1]:51820"."""
    return f"[{endpoint}]:{port}" if ":" in endpoint else f"{endpoint}:{port}"
