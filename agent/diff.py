"""How to get from found to wanted. PURE.

Applying the difference to found gives wanted, and the difference of two equal maps is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from agent.model import Diff

K = TypeVar("K")
V = TypeVar("V")
Diffs = Mapping[str, Diff[Any, Any]]  # by part


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


def sliced(
    diffs: Mapping[str, Diff[Any, Any]], parts: Sequence[str], size: int
) -> Iterator[Mapping[str, Diff[Any, Any]]]:
    """Everything of the owners of which anything changes, at once, for they may swap things; and what is only to add,
    `size` owners after the others. Without what is to be removed. `parts`: those whose values have an owner."""
    owners = dict.fromkeys(value.owner for part in reversed(parts) for value in diffs[part].add.values())
    changed = {value.owner for part in parts for value in diffs[part].change.values()}
    fresh = [owner for owner in owners if owner not in changed]
    slice_of = dict.fromkeys(changed, 0) | {owner: number // size for number, owner in enumerate(fresh)}
    slices: list[dict[str, dict[Any, Any]]] = [{part: {} for part in parts} for _ in range(0, max(len(fresh), 1), size)]
    for part in parts:
        for key, value in diffs[part].add.items():
            slices[slice_of[value.owner]][part][key] = value
    for adds in slices:
        changes = {part: diffs[part].change if adds is slices[0] else {} for part in parts}
        yield {part: Diff(adds[part], changes[part]) for part in parts}
