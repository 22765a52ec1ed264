"""Where the clients are whose peers are gone for a while: so that they are back at once, not when they notice.

A client whose peer is taken away and put back believes in its old session, and begins a new one only after 15 seconds
without an answer. The other end could, but a new peer knows no endpoint. So the last one is kept here meanwhile and
goes with the peer that is added again; the door has a handshake sent there (agent/kernel/wireguard/door.py).

Kept in memory alone, for KEPT_SECONDS and until the next sample, and for the same key of the same account only: whoever
has another key, or the name or key of an account that is deleted, inherits nothing. Called by writer.py and steps.py,
on the writer thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from agent.desired import Desired
from agent.doors import Kernel
from agent.errors import KernelError
from agent.objects import Diff, Peer, PeerKey
from agent.parts import PEERS

# A session lasts 180 seconds at most, and who cannot begin a new one tries for 90 (WireGuard's REJECT_AFTER_TIME and
# REKEY_ATTEMPT_TIME). After that a client begins by itself, with the first packet that it has to send.
KEPT_SECONDS = 270.0


@dataclass(frozen=True, slots=True)
class Gone:
    """`owner`: account id. `at`: of the clock, when it was read."""

    owner: int
    endpoint: str
    at: float


class Endpoints:
    def __init__(self, kernel: Kernel, clock: Callable[[], float] = time.monotonic) -> None:
        self._kernel = kernel
        self._clock = clock
        self._gone: dict[PeerKey, Gone] = {}
        self._there: Mapping[PeerKey, Peer] = {}  # of the last full reading, kept up to date by the passes

    def read(self, found: Mapping[PeerKey, Peer], applied: Desired | None, desired: Desired) -> None:
        """All peers were read. Whoever is missing was taken away by somebody else since."""
        now = self._clock()
        if applied is not None:
            lost = {key: peer.endpoint for key, peer in self._there.items() if key not in found and peer.endpoint}
            self._gone |= {key: Gone(PEERS.owner(applied, key), endpoint, now) for key, endpoint in lost.items()}
        self._there = found
        self.forget(desired)

    def forget(self, desired: Desired) -> None:
        """What is too old by now, and of accounts that are deleted or have another key."""
        now = self._clock()
        self._gone = {key: one for key, one in self._gone.items() if self._is_kept(one, PEERS.owner(desired, key), now)}

    def _is_kept(self, one: Gone, owner: int, now: float) -> bool:
        return one.owner == owner != 0 and now - one.at < KEPT_SECONDS

    def before(
        self, difference: Diff[PeerKey, Peer], found: Mapping[PeerKey, Peer], applied: Desired, desired: Desired
    ) -> Diff[PeerKey, Peer]:
        """The same difference as it is to be written. To be called just before that: then it is known where they are.

        `applied`, `desired`: whose the peers that go were, and are.
        """
        going = {key: owner for key in difference.remove if (owner := PEERS.owner(desired, key))}
        staying = {key: owner for key, owner in going.items() if PEERS.owner(applied, key) == owner}
        rekeyed = {key for key, peer in difference.change.items() if _is_rekeyed(found.get(key), peer)}
        now, there = self._clock(), dict[PeerKey, str]()
        if staying or rekeyed:
            with suppress(KernelError):  # then they come back when they notice
                there = dict(self._kernel.endpoints((*staying, *rekeyed)))
        self._gone |= {key: Gone(owner, there[key], now) for key, owner in staying.items() if key in there}
        change = {
            key: replace(peer, anew=True, endpoint=there.get(key, "")) if key in rekeyed else peer
            for key, peer in difference.change.items()
        }
        return Diff(self._coming(difference.add, now), change, difference.remove)

    def _coming(self, add: Mapping[PeerKey, Peer], now: float) -> Mapping[PeerKey, Peer]:
        if not self._gone:
            return add
        known = {key: one for key in add if (one := self._gone.get(key)) and self._is_kept(one, add[key].owner, now)}
        return {key: replace(peer, endpoint=known[key].endpoint) if key in known else peer for key, peer in add.items()}


def _is_rekeyed(found: Peer | None, wanted: Peer) -> bool:
    return found is not None and found.preshared_key != wanted.preshared_key
