"""PURE: one table of nftables, both ways: what a listing (libnftables-json(5)) says of it, and commands (nft(8)).

Owns both spellings and what counts as "the same rule". It opens nothing and decides nothing. Called by
what owns a table, which says what should be there.

A rule is made of pieces that know themselves in both spellings, so that what was written can be found again. Some
things are listed in different ways by different releases of libnftables and are taken for one here: a set of flags is
a list or an "|", "in" is "==", and a protocol is a name or a number.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FAMILY = "ip"
PROTOCOLS = {"1": "icmp", "6": "tcp", "17": "udp", "58": "icmpv6", "ipv6-icmp": "icmpv6"}  # as they are written here
Expressions = list[Any]  # a rule as it is listed


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a rule: as it is written, and as it is listed."""

    text: str
    listed: Any


Rule = tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Set:
    """A set or map as it should be. `listed`: without the names."""

    kind: str  # "set" or "map"
    name: str
    text: str
    listed: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of a hook."""

    kind: str  # "filter" or "nat"
    hook: str
    priority: int
    policy: str = "accept"


@dataclass(frozen=True, slots=True)
class Table:
    """One table as it was found. Elements of sets and maps are not in it."""

    name: str
    flags: bool = False  # of the table itself: dormant, most likely
    chains: dict[str, Chain | None] = field(default_factory=dict)  # None = hangs on no hook
    rules: dict[str, list[Expressions]] = field(default_factory=dict)  # by chain, in order
    sets: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)  # "set" or "map", what it holds
    others: list[tuple[str, str]] = field(default_factory=list)  # kind and name of whatever else there is
    handles: dict[tuple[str, str], int] = field(default_factory=dict)  # by kind and name

    def holds(self, one: Set) -> bool:
        """Is this set there, as it should be?"""
        kind, held = self.sets.get(one.name, ("", {}))
        return kind == one.kind and _same(held, one.listed)

    def has_rules(self, chain: str, wanted: Sequence[Rule]) -> bool:
        """Are these, and no others, the rules of the chain, in this order?"""
        return _same(self.rules.get(chain, []), [[piece.listed for piece in rule] for rule in wanted])


def find(listing: Iterable[Mapping[str, Any]], name: str, family: str = FAMILY) -> Table | None:
    """The table of this name, or None."""
    found: Table | None = None
    for entry in listing:
        for kind, value in entry.items():
            if kind == "table" and value["name"] == name and value["family"] == family:
                found = Table(name, bool(value.get("flags")))
            elif found and value.get("table") == name and value["family"] == family:
                _take(found, kind, value)
    return found


def _take(table: Table, kind: str, value: Mapping[str, Any]) -> None:
    if kind == "chain":
        hangs = Chain(value["type"], value["hook"], value["prio"], value["policy"]) if "hook" in value else None
        table.chains[value["name"]] = None if hangs and "dev" in value else hangs
        table.rules.setdefault(value["name"], [])
    elif kind == "rule":
        table.rules.setdefault(value["chain"], []).append(value["expr"])
    elif kind in ("set", "map"):
        held = {key: of for key, of in value.items() if key not in ("family", "table", "name", "handle")}
        table.sets[value["name"]] = kind, held
    elif kind != "element":
        table.others.append((kind, value["name"]))
    if "name" in value and "handle" in value:
        table.handles[kind, value["name"]] = value["handle"]


def _same(found: Any, wanted: Any) -> bool:
    """Most often the spelling is the same too, and this is asked for every account that changes."""
    return bool(found == wanted or normal(found) == normal(wanted))


def normal(value: Any) -> Any:
    """One spelling for what releases of libnftables spell in several ways."""
    if isinstance(value, list):
        return [normal(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {key: normal(of) for key, of in value.items()}
    if isinstance(made.get("|"), list):
        made["|"] = sorted(made["|"], key=repr)
    if isinstance(made.get("&"), list):
        made["&"] = [{"|": sorted(one, key=repr)} if isinstance(one, list) else one for one in made["&"]]
    if made.get("op") == "in":
        made["op"] = "=="
    if made.get("left") == {"meta": {"key": "l4proto"}}:
        made["right"] = _protocols(made["right"])
    if made.get("left") == {"meta": {"key": "iif"}}:  # an index that is no interface's
        made["right"] = str(made["right"])
    if isinstance(made.get("right"), list):
        made["right"] = sorted(made["right"], key=repr)
    if isinstance(made.get("set"), list):
        made["set"] = sorted(made["set"], key=repr)
    if isinstance(made.get("counter"), dict):  # of a set: what its elements count; the numbers say nothing there
        made["counter"] = None
    return made


def matched(rule: Expressions, field: str, op: str = "==") -> Any:
    """What a rule compares a field of the packet with; None = it does not."""
    for piece in rule:
        match = piece.get("match", {}) if isinstance(piece, dict) else {}
        left = match.get("left", {})
        if match.get("op") != op:
            continue
        if isinstance(left, dict) and field in (left.get("meta", {}).get("key"), left.get("payload", {}).get("field")):
            return match.get("right")
    return None


def _protocols(right: Any) -> Any:
    """One, or a set. Where the host has no /etc/protocols, some are listed as numbers."""
    if isinstance(right, dict) and isinstance(right.get("set"), list):
        return {"set": sorted(map(str, map(_protocols, right["set"])))}
    return PROTOCOLS.get(str(right), right)


class Writing:
    """The commands for one table, in the language of nft(8)."""

    def __init__(self, table: str, family: str = FAMILY) -> None:
        self._at = f"{family} {table}"

    def add_table(self) -> str:
        """Also wakes a dormant one."""
        return f"add table {self._at}"

    def delete_table(self) -> str:
        return f"delete table {self._at}"

    def flush_rules(self) -> str:
        """Of all chains; sets and maps keep their elements."""
        return f"flush table {self._at}"

    def add_chain(self, name: str, chain: Chain) -> str:
        hangs = f"type {chain.kind} hook {chain.hook} priority {chain.priority}; policy {chain.policy};"
        return f"add chain {self._at} {name} {{ {hangs} }}"

    def add_plain_chain(self, name: str) -> str:
        """One that hangs on no hook, for others to lead to."""
        return f"add chain {self._at} {name}"

    def flush_chain(self, name: str) -> str:
        return f"flush chain {self._at} {name}"

    def add_rules(self, chain: str, rules: Iterable[Rule]) -> list[str]:
        return [f"add rule {self._at} {chain} {' '.join(piece.text for piece in rule)}" for rule in rules]

    def add_set(self, one: Set) -> str:
        return f"add {one.kind} {self._at} {one.name} {{ {one.text} }}"

    def elements(self, verb: str, name: str, elements: Collection[str]) -> list[str]:
        return [f"{verb} element {self._at} {name} {{ {', '.join(elements)} }}"] if elements else []

    def delete_strays(self, found: Table, sets: Collection[str], chains: Collection[str]) -> list[str]:
        """All but these sets and chains, in the order in which they can go once no rule is left.

        By their handles: a name given by others may be a word of the language.
        """
        stray_sets = [(kind, name) for name, (kind, _) in found.sets.items() if name not in sets]
        stray_chains = [("chain", name) for name in found.chains if name not in chains]
        doomed = [(kind, found.handles[kind, name]) for kind, name in (*stray_sets, *stray_chains, *found.others)]
        return [f"delete {'set' if kind == 'map' else kind} {self._at} handle {handle}" for kind, handle in doomed]
