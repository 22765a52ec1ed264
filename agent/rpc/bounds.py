"""How much may be asked for in one call: whoever holds the gateway's group must not be able to fill this process.

Numbers that SQLite cannot hold and counts that no node has are refused as INVALID_ARGUMENT, before anything is made of
them. Called by codec.py and server.py.
"""

from __future__ import annotations

from collections.abc import Sized

from agent.errors import InvalidValue

LARGEST_NUMBER = (1 << 63) - 1  # SQLite's integers are signed
MOST_ACCOUNTS = 40_000  # a node has marks for 34,475
MOST_SERVERS = 4_000
MOST_PORTS = 1_000  # that lead to one account
MOST_FILTER_RULES = 100
MOST_ASKED_FOR = 10_000  # ids in one question
LONGEST_TEXT = 256  # characters
LONGEST_REACH = 1024  # 32 networks
LONGEST_CERTIFICATES = 32_768  # bytes
CHUNK_SECONDS = 30.0  # for the next part of a snapshot
SNAPSHOT_SECONDS = 150.0  # for all of it: 40,000 accounts by a line of 256 kbit/s
TURN_SECONDS = 30.0  # to wait while another one is on its way: each takes up to 90 MB here
MESSAGE_BYTES = 4 * 1024 * 1024
CALLS_AT_ONCE = 100


def number(field: str, value: int) -> int:
    """Raises InvalidValue."""
    if value > LARGEST_NUMBER:
        raise InvalidValue(field, f"{value} must be within 0-2^63-1")
    return value


def count(field: str, values: Sized | int, most: int) -> None:
    """Raises InvalidValue."""
    found = values if isinstance(values, int) else len(values)
    if found > most:
        raise InvalidValue(field, f"{found} are too many: at most {most} in one call")


def text(field: str, value: str, longest: int = LONGEST_TEXT) -> str:
    """Raises InvalidValue."""
    if len(value) > longest:
        raise InvalidValue(field, f"{len(value)} characters are too many: at most {longest}")
    return value
