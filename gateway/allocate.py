"""PURE. What a create does not name: the lowest free number, name, address, mark, server.

Owns: the arithmetic of free ranges, and what a number is called. Never touches the database; the store keeps the
ranges (gateway/store/ranges.py) and asks here what becomes of them. Free numbers are kept as disjoint ranges that do
not touch, so finding, taking and giving back cost the same at ten accounts and at thirty thousand.
"""

from __future__ import annotations

import re
import secrets
import string
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, collapse_addresses

PASSWORD_LENGTH = 10
PASSWORD_ALPHABET = string.ascii_letters + string.digits + "*#%!@$&"

FIRST_PORT = 51820
LAST_PORT = 65535
# Ports end first: 51820 + N <= 65535.
LAST_SERVER_NUMBER = LAST_PORT - FIRST_PORT

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Free numbers from `lo` to `hi`, both included."""

    lo: int
    hi: int

    def __contains__(self, number: int) -> bool:
        return self.lo <= number <= self.hi


# Numbers of generated names. The end only has to be out of reach, and to fit `_NUMBER`.
NAME_NUMBERS = Range(1, 999_999_999)
# The v1 API: a mark and its class minor must not share a spelling with another account's (v1-api.md, "class id").
MARKS = (Range(100, 9999), Range(40960, 65534))


# -- ranges -------------------------------------------------------------------------------------------------------


def given(neighbours: Iterable[Range], number: int) -> tuple[tuple[Range, ...], Range]:
    """Which of the `neighbours` melt with `number`, and what they become together."""
    touching = tuple(part for part in neighbours if part.lo - 1 <= number <= part.hi + 1)
    lo = min((part.lo for part in touching), default=number)
    hi = max((part.hi for part in touching), default=number)
    return touching, Range(min(lo, number), max(hi, number))


def without(ranges: Iterable[Range], used: Iterable[int]) -> list[Range]:
    """The ranges that are left when every number of `used` is taken."""
    left: list[Range] = []
    numbers = sorted(set(used))
    for part in sorted(ranges):
        lo = part.lo
        for number in numbers:
            if lo <= number <= part.hi:
                if lo < number:
                    left.append(Range(lo, number - 1))
                lo = number + 1
        if lo <= part.hi:
            left.append(Range(lo, part.hi))
    return left


def together(ranges: Iterable[Range], numbers: Iterable[int]) -> list[Range]:
    """The ranges with these numbers in them too."""
    joined: list[Range] = []
    for part in sorted((*ranges, *(Range(number, number) for number in numbers))):
        if joined and part.lo <= joined[-1].hi + 1:
            joined[-1] = Range(joined[-1].lo, max(joined[-1].hi, part.hi))
        else:
            joined.append(part)
    return joined


class Free:
    """The free numbers of one scope, as far as those who are about to take some need to know them.

    `resting`: numbers that were given back lately, the longest ago first: taken only where nothing else is left.
    """

    def __init__(self, ranges: Iterable[Range] = (), resting: Iterable[int] = ()) -> None:
        self._known = frozenset(ranges)
        self._ranges = sorted(self._known)
        self._resting = dict.fromkeys(resting)
        self.others: set[int] = set()  # what was taken and is in no range: resting perhaps

    def lowest(self) -> int | None:
        return self._ranges[0].lo if self._ranges else next(iter(self._resting), None)

    def take(self, number: int) -> None:
        """Nothing happens if it is not free, or never was one of the scope's."""
        at = bisect_right(self._ranges, number, key=lambda part: part.lo) - 1
        if at >= 0 and number in self._ranges[at]:
            self._ranges[at : at + 1] = without([self._ranges[at]], [number])
        else:
            self._resting.pop(number, None)
            self.others.add(number)

    def changes(self) -> tuple[list[Range], list[Range]]:
        """Which ranges are gone, and which have come instead."""
        now = frozenset(self._ranges)
        return sorted(self._known - now), sorted(now - self._known)


# -- names --------------------------------------------------------------------------------------------------------


def name_of(prefix: str, number: int) -> str:
    return f"{prefix}_{number}"


def number_of(prefix: str, name: str) -> int | None:
    """The number that `name` takes from the generated ones; None = none of ours (`peer_007`, `peer_0`, `bob`)."""
    head, _, tail = name.partition("_")
    return int(tail) if head == prefix and _NUMBER.fullmatch(tail) else None


def new_password() -> str:
    # All its characters from one question to the kernel: ten of them cost half as much as the rest of a create.
    number, letters = secrets.randbelow(len(PASSWORD_ALPHABET) ** PASSWORD_LENGTH), []
    for _ in range(PASSWORD_LENGTH):
        number, letter = divmod(number, len(PASSWORD_ALPHABET))
        letters.append(PASSWORD_ALPHABET[letter])
    return "".join(letters)


def new_id() -> int:
    """Random, 63 bits, never 0: ids are never used again, also not by another installation on the same node."""
    return secrets.randbelow((1 << 63) - 1) + 1


# -- addresses ----------------------------------------------------------------------------------------------------


def assignable(address: IPv4Interface) -> list[Range]:
    """The addresses of a server's network that accounts can have: all but network, broadcast and the server's own."""
    network = address.network
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    return without([Range(first, last)], [int(address.ip)])


def is_assignable(server: IPv4Interface, address: IPv4Address) -> bool:
    return any(int(address) in part for part in assignable(server))


# -- servers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NumberedServer:
    """What a server is called when nobody says otherwise."""

    name: str
    interface: str
    listen_port: int
    address: IPv4Interface


def numbered_server(number: int) -> NumberedServer:
    """Source: v1-api.md, servers: `Default_N`, `wgN`, port 51820+N, `10.0.(N-1).1/24`, going on at 10.1.0.1."""
    high, low = divmod(number - 1, 256)
    address = IPv4Interface(f"10.{high}.{low}.1/24")
    return NumberedServer(f"Default_{number}", f"wg{number}", FIRST_PORT + number, address)


def free_server(is_free: Callable[[NumberedServer], bool]) -> NumberedServer | None:
    """The one with the lowest number of which everything that is going to be used is free."""
    candidates = (numbered_server(number) for number in range(1, LAST_SERVER_NUMBER + 1))
    return next((candidate for candidate in candidates if is_free(candidate)), None)


class NetworkSet:
    """Networks that are in use. A node that is a router has thousands, and thousands of numbers are tried."""

    def __init__(self, networks: Iterable[IPv4Network]) -> None:
        apart = sorted(collapse_addresses(networks))
        self._first = [int(one.network_address) for one in apart]
        self._last = [int(one.broadcast_address) for one in apart]

    def overlaps(self, network: IPv4Network) -> bool:
        before = bisect_right(self._first, int(network.broadcast_address))
        return before > 0 and self._last[before - 1] >= int(network.network_address)
