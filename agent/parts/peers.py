"""Peers: the way in of WireGuard, the first kind of tunnel."""

from __future__ import annotations

from agent.desired import Desired
from agent.model import Account, Server
from agent.objects import Peer, PeerKey
from agent.parts.part import AccountPart, Place


def _into(held: dict[PeerKey, Peer], account: Account, server: Server, place: Place) -> None:
    interface, public_key = server.interface, account.public_key
    given = account.address, account.id, account.preshared_key
    held[interface, public_key] = Peer(interface, public_key, *given, address_ipv6=account.address_ipv6)


def _owner(desired: Desired, key: PeerKey) -> int:
    interface, public_key = key
    server = desired.server_of(interface)
    return desired.by_key.get((server.name, public_key), 0) if server else 0


PEERS = AccountPart[PeerKey, Peer](
    name="peers",
    noun="peer",
    device=lambda key: key[0],
    detail=lambda one: f"{one.interface} {one.address or 'without an address of ours'}",
    goes_first=True,  # from then on its account passes no packet
    into=_into,
    owner=_owner,
    leads=True,  # to the rules of its address
)
