"""Where behind the uplink the accounts of a server may go, as text in one spelling. PURE. Called by gateway/fields.py.

`internet`, `all`, or a list of networks in which `internet` may stand too. What the internet is, the agent says.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Network, NetmaskValueError, collapse_addresses

from gateway.errors import InvalidValue

INTERNET, ALL = "internet", "all"
EVERYWHERE = IPv4Network("0.0.0.0/0")
MAX_NETWORKS = 32  # each is a rule that packets are compared with
# There is nobody: "this" network, loopback, multicast and reserved. The agent refuses them too.
NOWHERE = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")))
WRONG = (
    f"Wrong reach (only {INTERNET}, {ALL}, or a list of at most {MAX_NETWORKS} networks in which {INTERNET} may stand: "
    "internet,10.20.0.0/16)"
)


def parse(text: str) -> str:
    """Raises InvalidValue."""
    words = [word.strip().lower() for word in text.split(",")]
    named = [word for word in words if word != INTERNET]
    if named == [ALL]:
        return ALL
    try:
        networks = list(collapse_addresses(IPv4Network(word, strict=False) for word in named))
    except (AddressValueError, NetmaskValueError, ValueError):
        raise InvalidValue(WRONG, "reach") from None
    if len(named) > MAX_NETWORKS or any(one.subnet_of(nowhere) for one in networks for nowhere in NOWHERE):
        raise InvalidValue(WRONG, "reach")
    if networks == [EVERYWHERE]:
        return ALL
    return ",".join([*([INTERNET] if INTERNET in words else []), *map(str, networks)])
