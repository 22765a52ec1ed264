"""The peers of our links: the part of the kernel that lets an account in.

Owns which peers WireGuard holds on links of ours (`ownership`), with their preshared keys. Never touches a peer of
another link, nor the session of one that is right; what is wrong is mended in place. Only with another preshared key a
peer begins anew, for its session would go on without that for two minutes. An endpoint is given to a peer that comes
back, and to no other. The keepalive is the client's business: a peer that has one is drift.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace

from agent.errors import KernelError
from agent.kernel.host.interfaces import Interface, read_interfaces, read_link, set_threaded
from agent.kernel.wireguard.door import Absent, HeldPeer, PeerChange, WireGuard
from agent.kernel.wireguard.genetlink import KernelWireGuard
from agent.kernel.wireguard.ownership import Ownership
from agent.kernel.wireguard.uapi import UserspaceWireGuard
from agent.objects import Diff, Peer, PeerKey, PeerState, Scope

SESSION_SECONDS = 180  # WireGuard's own (REJECT_AFTER_TIME): from then on a client begins a new one by itself
CALLED_AT_ONCE = 100  # their handshakes take some 20 ms
# But wireguard-go stands still while its packets wait for a router that does not answer. Then nobody is called for a
# while, for nobody would hear it, and whoever is to be let in is not kept waiting.
SLOW_SECONDS = 0.5
REST_SECONDS = 30.0


class Peers:
    """`owned`: shared with the links, which learn whose they are."""

    def __init__(self, owned: Ownership | None = None) -> None:
        self._owned = owned or Ownership()
        self._doors: dict[str, WireGuard] = {"wireguard": KernelWireGuard(), "tun": UserspaceWireGuard()}
        self._rests_until = 0.0  # monotonic

    def read(self, scope: Scope) -> dict[PeerKey, Peer]:
        """The peers of the links of the scope that exist and are ours."""
        links = read_interfaces()
        found: dict[PeerKey, Peer] = {}
        for name in sorted(scope.interfaces & links.keys()):
            if not self._owned.owns(links[name]):
                continue
            try:
                held = self._doors[links[name].kind].read_peers(name)
            except Absent:
                continue  # its process is gone, and with it the peers; the link itself is next
            except KernelError:
                continue  # it does not answer: `links` tells, and nobody takes what is not here for gone
            for peer in held:
                found[name, peer.state.public_key] = _peer(name, peer)
        return found

    def endpoints(self, keys: Collection[PeerKey]) -> dict[PeerKey, str]:
        """Of those of these peers that are there, and whose clients may believe in their session. Raises KernelError.

        Reads their links to the end, which takes 10,000 peers some tens of milliseconds.
        """
        found: dict[PeerKey, str] = {}
        for name in sorted({interface for interface, _ in keys}):
            only = {key for interface, key in keys if interface == name}
            for held in self._doors[self._link(name).kind].read_peers(name, only):
                if endpoint := _recent(held):
                    found[name, held.state.public_key] = endpoint
        return found

    def apply(self, diff: Diff[PeerKey, Peer]) -> Mapping[PeerKey, KernelError]:
        """Link by link: removals first, since they may set free an address that another peer is to have."""
        changes: dict[str, list[PeerChange]] = {}
        for interface, public_key in diff.remove:
            changes.setdefault(interface, []).append(PeerChange(public_key, None))
        for peers, reset in ((diff.change, True), (diff.add, False)):
            for (interface, public_key), peer in peers.items():
                given = peer.preshared_key, peer.endpoint, peer.anew, peer.address_ipv6
                changes.setdefault(interface, []).append(PeerChange(public_key, peer.address, reset, *given))
        errors: dict[PeerKey, KernelError] = {}
        for interface, wanted in changes.items():
            refused = self._set_peers(interface, wanted)
            errors |= {(interface, public_key): error for public_key, error in refused.items()}
        return errors

    def peer_states(self, interface: str) -> dict[str, PeerState]:
        """The peers of a link by public key, as WireGuard has them now. Raises KernelError."""
        held = self._doors[self._link(interface).kind].read_peers(interface)
        return {peer.state.public_key: peer.state for peer in held}

    def _set_peers(self, interface: str, wanted: list[PeerChange]) -> dict[str, KernelError]:
        try:
            link = self._link(interface)
            door = self._doors[link.kind]
            refused = door.set_peers(interface, wanted)
            self._call(door, interface, [one.public_key for one in wanted if one.endpoint])
            if link.kind == "wireguard":
                set_threaded(link)
        except KernelError as error:
            refused = {change.public_key: error for change in wanted}
        # A peer of a link that is not there is removed already.
        gone = {change.public_key for change in wanted if change.address is None}
        return {key: error for key, error in refused.items() if not (isinstance(error, Absent) and key in gone)}

    def _call(self, door: WireGuard, interface: str, public_keys: list[str]) -> None:
        """Where clients were whose peers are back: they believe in their old session, and begin a new one only after
        15 s without an answer. Who cannot be called begins then, so an error here is nobody's."""
        for start in range(0, len(public_keys), CALLED_AT_ONCE):
            began = time.monotonic()
            if began < self._rests_until:
                return
            with suppress(KernelError):
                door.call_peers(interface, public_keys[start : start + CALLED_AT_ONCE])
            if time.monotonic() - began > SLOW_SECONDS:
                self._rests_until = time.monotonic() + REST_SECONDS

    def _link(self, name: str) -> Interface:
        interface = read_link(name)
        if interface is not None and self._owned.owns(interface):
            return interface
        if (now := self._owned.elsewhere(name)) and now != name:
            # Absent would mean that its peers are gone, and what shapes and counts them may go too.
            raise KernelError(f"link {name} was renamed to {now} by somebody: its peers live on there")
        raise Absent(f"there is no link {name}" if interface is None else f"{name} is not a link of ours")


def _peer(interface: str, held: HeldPeer) -> Peer:
    state = held.state
    address, second = (None, None) if state.keepalive else (state.address, state.address_ipv6)
    found = Peer(interface, state.public_key, address, preshared_key=held.preshared, endpoint=_recent(held))
    return replace(found, address_ipv6=second) if second else found


def _recent(held: HeldPeer) -> str:
    """The endpoint of a client that may believe in its session; "" = there is none."""
    return held.state.endpoint if time.time() - held.state.latest_handshake < SESSION_SECONDS else ""
