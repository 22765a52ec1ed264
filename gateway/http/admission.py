"""How many connections there may be, in all and from one address. Owns the counts, knows no socket. Called by door.py.

One stranger must not shut everybody out: besides the bound for all there is one for each address (of IPv6 for each /64,
which is what one customer gets). Proxies that we trust speak for many, and only the bound for all holds for them.
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


class Place:
    """One connection's, from `enter` to `leave`. To leave twice is harmless."""

    def __init__(self, connections: Counter[str], who: str) -> None:
        self._connections, self._who = connections, who
        connections[who] += 1

    def leave(self) -> None:
        connections, self._connections = self._connections, Counter()
        connections[self._who] -= 1
        if connections[self._who] <= 0:
            del connections[self._who]


class Admission:
    def __init__(self, trusted: Iterable[Network] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._trusted = tuple(trusted)
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._said = -LOG_SECONDS

    def enter(self, address: str) -> Place | None:
        """None = there are too many, and it was noted."""
        who, is_trusted = self._who(address)
        if self._open.total() < CONNECTIONS and (is_trusted or self._open[who] < FROM_ONE_ADDRESS):
            return Place(self._open, who)
        self._refused[who] += 1
        self._say()
        return None

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
            self._open.total(),
        )
        self._refused.clear()
