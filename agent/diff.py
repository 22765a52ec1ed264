"""How to get from found to wanted. PURE.

Applying the difference to found gives wanted, and the difference of two equal maps is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from agent.objects import Diff
from agent.parts import ACCOUNT_PARTS, PARTS, Part
from agent.wanted import Wanted

K = TypeVar("K")
V = TypeVar("V")


class Diffs:
    """A difference for each part."""

    def __init__(self, held: Mapping[Part[Any, Any], Diff[Any, Any]]) -> None:
        self._held = dict(held)

    def __getitem__(self, part: Part[K, V]) -> Diff[K, V]:
        return self._held[part]

    def __setitem__(self, part: Part[K, V], difference: Diff[K, V]) -> None:
        self._held[part] = difference


def diffs(want: Wanted, found: Wanted) -> Diffs:
    """The whole difference."""
    return Diffs({part: diff(want[part], found[part]) for part in PARTS})


def diffs_of(keys_of: Iterable[Wanted], want: Wanted, found: Wanted) -> Diffs:
    """The difference as far as the keys of these go, at a cost that depends on them alone."""
    keys_of = tuple(keys_of)
    return Diffs(
        {part: diff_of([key for one in keys_of for key in one[part]], want[part], found[part]) for part in PARTS}
    )


def diff(wanted: Mapping[K, V], found: Mapping[K, V]) -> Diff[K, V]:
    """Of one part."""
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


def sliced(changes: Diffs, size: int) -> Iterator[Diffs]:
    """What is to add and to change of the accounts: everything of those of whom anything changes, at once, for they may
    swap things; and what is only to add, `size` accounts after the others."""
    owners = dict.fromkeys(value.owner for part in reversed(ACCOUNT_PARTS) for value in changes[part].add.values())
    changed = {value.owner for part in ACCOUNT_PARTS for value in changes[part].change.values()}
    fresh = [owner for owner in owners if owner not in changed]
    slice_of = dict.fromkeys(changed, 0) | {owner: number // size for number, owner in enumerate(fresh)}
    slices: list[dict[Part[Any, Any], dict[Any, Any]]] = [
        {part: {} for part in ACCOUNT_PARTS} for _ in range(0, max(len(fresh), 1), size)
    ]
    for part in ACCOUNT_PARTS:
        for key, value in changes[part].add.items():
            slices[slice_of[value.owner]][part][key] = value
    for adds in slices:
        first = adds is slices[0]
        yield Diffs({part: Diff(adds[part], changes[part].change if first else {}) for part in ACCOUNT_PARTS})
