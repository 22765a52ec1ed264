"""How many connections there may be, in all and from one address. Owns the counts, knows no socket. Called by door.py.

One stranger must not shut everybody out: besides the bound for all there is one for each address (of IPv6 for each /64,
which is what one customer gets). Proxies that we trust speak for many, and only the bound for all holds for them: their
strangers are counted by strangers.py. And where all places are taken, the one that has been a stranger's for longest
makes room for the next: strangers with many addresses, or behind a proxy, may fill the house, but those who have a key
get in.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

CONNECTIONS = 1000  # each is a file descriptor: the unit's LimitNOFILE is four times as many
FROM_ONE_ADDRESS = 100
LOG_SECONDS = 60.0

log = logging.getLogger("gateway.http")

Network = IPv4Network | IPv6Network


PLACE = "place"  # of a connection, in the `state` of its requests


class Place:
    """One connection's, from `enter` to `leave`. To leave twice is harmless.

    `is_known`: it may stay whoever comes: its last request came with a right key. `end`: cuts the connection off.
    """

    def __init__(self, admission: Admission, who: str) -> None:
        self._admission, self.who, self.is_known = admission, who, False
        self.end: Callable[[], object] = lambda: None

    def begin(self) -> None:
        """Of a request, of which nobody knows yet whose it is: a proxy sends one caller's after another's."""
        self.is_known = False
        self._admission.renewed(self)

    def leave(self) -> None:
        self._admission.left(self)


class Admission:
    def __init__(self, trusted: Iterable[Network] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._trusted = tuple(trusted)
        self._clock = clock
        self._places: dict[Place, None] = {}  # the longest without a new request first
        self._open: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._said = -LOG_SECONDS

    def enter(self, address: str) -> Place | None:
        """None = there are too many, and it was noted."""
        who, is_trusted = self._who(address)
        if not is_trusted and self._open[who] >= FROM_ONE_ADDRESS:
            self._note(who)
            return None
        if len(self._places) >= CONNECTIONS:
            stranger = next((place for place in self._places if not place.is_known), None)
            self._note(stranger.who if stranger else who)
            if stranger is None:
                return None
            stranger.leave()
            stranger.end()
        place = Place(self, who)
        self._places[place] = None
        self._open[who] += 1
        return place

    def renewed(self, place: Place) -> None:
        if place in self._places:
            del self._places[place]
            self._places[place] = None

    def left(self, place: Place) -> None:
        if place in self._places:
            del self._places[place]
            self._open[place.who] -= 1
            if self._open[place.who] <= 0:
                del self._open[place.who]

    def _note(self, who: str) -> None:
        self._refused[who] += 1
        self._say()

    def _who(self, address: str) -> tuple[str, bool]:
        try:
            client = ip_address(address.partition("%")[0])
        except ValueError:
            return "-", False
        if isinstance(client, IPv6Address):
            if client.ipv4_mapped is None:
                return f"{IPv6Network((client, 64), strict=False)}", any(client in one for one in self._trusted)
            client = client.ipv4_mapped
        return str(client), any(client in one for one in self._trusted)

    def _say(self) -> None:
        """At most one line in a minute, whatever comes."""
        if self._clock() - self._said < LOG_SECONDS:
            return
        self._said = self._clock()
        (most, count), *_ = self._refused.most_common(1)
        log.warning(
            "event=connections-refused count=%d addresses=%d most=%s its_count=%d open=%d",
            self._refused.total(),
            len(self._refused),
            most,
            count,
            len(self._places),
        )
        self._refused.clear()
