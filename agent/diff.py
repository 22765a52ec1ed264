"""How to get from found to wanted. PURE.

Applying the difference to found gives wanted, and the difference of two equal maps is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from agent.model import Diff

K = TypeVar("K")
V = TypeVar("V")


def diff(wanted: Mapping[K, V], found: Mapping[K, V]) -> Diff[K, V]:
    """The whole difference."""
    return Diff(
        add={key: value for key, value in wanted.items() if key not in found},
        change={key: value for key, value in wanted.items() if key in found and found[key] != value},
        remove={key: value for key, value in found.items() if key not in wanted},
    )


def diff_of(keys: Iterable[K], wanted: Mapping[K, V], found: Mapping[K, V]) -> Diff[K, V]:
    """The difference as far as these keys go, at a cost that depends on them alone."""
    keys = dict.fromkeys(keys)  # in the order given, so that a pass can be told as a story
    return diff(
        {key: wanted[key] for key in keys if key in wanted},
        {key: found[key] for key in keys if key in found},
    )
