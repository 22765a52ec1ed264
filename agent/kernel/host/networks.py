"""Which networks are the host's already, and which a server of ours may therefore not have. Called by `links`.

A server whose network overlaps one of the host's takes its traffic: the LAN, Docker's, or the provider's own, and with
it the box. It is refused with the name of the interface that has it; a link that stands already is not torn down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network

from agent.objects import HostNetwork

SHORTEST = 8  # prefix length
MOST_TOLD = 1_000
# Whose addresses a customer can have without taking somebody's: RFC 1918, RFC 6598 (carriers), RFC 2544 (benchmarks).
PRIVATE = tuple(
    IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15")
)


def told(networks: Sequence[HostNetwork]) -> tuple[HostNetwork, ...]:
    """Those that a status tells: a router has a million routes, and a status has to fit into a message. Of too many the
    private ones, for no server gets another; what is not told is refused here all the same."""
    if len(networks) > MOST_TOLD:
        networks = [one for one in networks if any(one.network.overlaps(private) for private in PRIVATE)]
    return tuple(networks[:MOST_TOLD])


def refusal(network: IPv4Network, host: Iterable[HostNetwork], allow_public: bool) -> str:
    """Why a server may not have this network here, with the cure; "" = it may."""
    if network.prefixlen < SHORTEST:
        return f"network {network} is too large: give one of /{SHORTEST} or smaller, such as 10.0.0.1/24"
    if (
        network.is_loopback
        or network.is_link_local
        or network.is_multicast
        or network.is_reserved
        or network.network_address in IPv4Network("0.0.0.0/8")
    ):
        return f"network {network} has a meaning of its own for Linux: give a private one, such as 10.0.0.1/24"
    for other in host:
        if network.overlaps(other.network):
            return (
                f"network {network} overlaps {other.network}, which the host has on {other.interface}: give the server "
                "another address"
            )
    if not allow_public and not any(network.subnet_of(one) for one in PRIVATE):
        return (
            f"network {network} is public, and its owner would be out of reach from here: give a private one, or set "
            "public_networks = true in agent.toml"
        )
    return ""
