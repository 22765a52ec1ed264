"""PURE: the tree of chains that leads a packet to the MARK rule of its address.

Owns the names and rules of that tree and how they are found in a reading of the mangle table. It opens nothing and
changes nothing. Called by `marks`.

    POSTROUTING 1: -j WL_MARK     behind whatever may drop a packet, and before NAT: see decision 0010
    WL_MARK:   -i wg+ -j WL_FROM, then -o wg+ -m mark ! --mark 0xffff -j WL_TO: between two accounts the mark of the
               receiver wins; it is the one that chooses the download class on the link, where such a packet leaves.
               Each rule of these two chains stands for the device of IKEv2 too, `ipsec0`
    OUTPUT 1:  -j WL_OWN
    WL_OWN:    -o wg+ -j MARK --set-xmark 0xffff/0xffffffff: what the box itself sends is told apart from what it
               forwards, for POSTROUTING sees both
    WL_FROM:               -s 10.64.0.0/20 -g WL_FROM_10.64.0.0/20, ...
    WL_FROM_10.64.0.0/20:  -s 10.64.1.0/24 -g WL_FROM_10.64.1.0/24, ...     at most 16
    WL_FROM_10.64.1.0/24:  -s 10.64.1.32/28 -g WL_FROM_10.64.1.32/28, ...   at most 16
    WL_FROM_10.64.1.32/28: -s 10.64.1.42/32 -j MARK --set-xmark 0x6d/0xffffffff, ...   a leaf, at most 16

and WL_TO the same by destination. A goto's chain returns to where WL_FROM was called from, so the way back is short.
The order of rules within a chain of the tree means nothing: their prefixes do not overlap.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from agent.kernel.iptables import entries
from agent.kernel.iptables.entries import Image
from agent.model import IKEV2_DEVICE, LINKS, Address
from agent.objects import NO_STAMP

PREFIXES = (20, 24, 28)  # lengths of the levels under a root; the last are the leaves
LEAF_MASK = 0xFFFFFFF0
TOP, OWN = "WL_MARK", "WL_OWN"
DEVICES = (f"{LINKS}+", IKEV2_DEVICE)  # every link of ours; the gateway gives them no other name. And that of IKEv2
OWN_MARK = 0xFFFF  # of no account, and in no class

# A MARK rule whole: source, destination, the rest of ipt_ip, offsets, packets, bytes, size and name of the target (and
# nothing of what is behind the name: see entries._cleaned), its revision, mark, mask.
_LEAF_RULE = struct.Struct("=4s4s76s4x4s4xQQ7s24xBI4s")
_NOWHERE = bytes(4)  # also the address in the two templates
_ONE = IPv4Network("0.0.0.0/32")
_, _, _BY_SOURCE, _OFFSETS, _, _, _MARK_HEAD, _REVISION, _, _MARK_MASK = _LEAF_RULE.unpack(
    entries.entry(entries.mark(0), source=_ONE)
)
_BY_DESTINATION = _LEAF_RULE.unpack(entries.entry(entries.mark(0), destination=_ONE))[2]

# address (None: not a MARK rule of this leaf), mark, packets, bytes
LeafRule = tuple[bytes | None, int, int, int]
_STRANGE: LeafRule = (None, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Direction:
    """One of the two trees."""

    root: str
    by_source: bool

    def leaf(self, address: bytes) -> str:
        """The chain that the rule of an address (4 bytes) belongs into."""
        return _chain(self.root, int.from_bytes(address, "big") & LEAF_MASK, PREFIXES[-1])

    def leaf_prefix(self, chain: str) -> int | None:
        node = _node(self.root, chain)
        return node[0] if node and node[1] == PREFIXES[-1] else None

    def parent(self, chain: str) -> str | None:
        """The chain one level up; None for the root and for a name that is not one of the tree."""
        node = _node(self.root, chain)
        if node is None or not node[1]:
            return None
        level = PREFIXES.index(node[1])
        if level == 0:
            return self.root
        length = PREFIXES[level - 1]
        return _chain(self.root, node[0] >> (32 - length) << (32 - length), length)

    def goto(self, chain: str) -> bytes:
        """The rule in its parent that leads to a chain of the tree."""
        return _goto(self.by_source, self.root, chain)

    def mark(self, address: bytes, number: int, packets: int = 0, octets: int = 0) -> bytes:
        """The MARK rule of an address (4 bytes), to start from these counters."""
        tail = _OFFSETS, packets, octets, _MARK_HEAD, _REVISION, number, _MARK_MASK
        if self.by_source:
            return _LEAF_RULE.pack(address, _NOWHERE, _BY_SOURCE, *tail)
        return _LEAF_RULE.pack(_NOWHERE, address, _BY_DESTINATION, *tail)

    def is_own(self, chain: str) -> bool:
        return chain == self.root or chain.startswith(self.root + "_")


FROM = Direction("WL_FROM", by_source=True)
TO = Direction("WL_TO", by_source=False)
DIRECTIONS = (FROM, TO)
TOP_RULES = (
    *(entries.entry(entries.jump(FROM.root), came_in=name) for name in DEVICES),
    *(entries.entry(entries.jump(TO.root), goes_out=name, match=entries.not_marked(OWN_MARK)) for name in DEVICES),
)
LET_GO = entries.entry(entries.jump("RETURN"), match=entries.not_marked(0))  # only while the version before goes
OWN_RULES = tuple(entries.entry(entries.mark(OWN_MARK), goes_out=name) for name in DEVICES)

_OWN_CHAINS = frozenset({TOP, OWN, FROM.root, TO.root})
STAMP = "WL_AT_"  # an empty chain that nothing leads to: its name is the stamp, see stamp_after()
_OWN_PREFIXES = (FROM.root + "_", TO.root + "_", STAMP)


def is_own(chain: str) -> bool:
    return chain.startswith(_OWN_PREFIXES) or chain in _OWN_CHAINS


def stamp_of(chains: Iterable[str]) -> int:
    """What a table says of itself; of several (a save was put back into it) the oldest."""
    said = [int(number) for chain in chains if chain.startswith(STAMP) and (number := chain[len(STAMP) :]).isdecimal()]
    return min(said, default=NO_STAMP)


@lru_cache(1 << 16)
def address_of(raw: bytes) -> Address:
    """The same object each time: to make one costs as much as to read one rule."""
    return IPv4Address(raw)


@lru_cache(1 << 16)
def _chain(root: str, prefix: int, length: int) -> str:
    return f"{root}_{IPv4Address(prefix)}/{length}"  # at most 26 characters; the kernel's limit is 28


@lru_cache(1 << 16)
def _node(root: str, chain: str) -> tuple[int, int] | None:
    """(prefix, length) of a chain of the tree, (0, 0) for the root, None for any other name."""
    if chain == root:
        return 0, 0
    address, _, length = chain.removeprefix(root + "_").partition("/")
    try:
        node = int(IPv4Address(address)), int(length)
    except ValueError:
        return None
    in_tree = node[1] in PREFIXES and not node[0] & ((1 << (32 - node[1])) - 1)
    return node if in_tree and _chain(root, *node) == chain else None


@lru_cache(1 << 16)
def _goto(by_source: bool, root: str, chain: str) -> bytes:
    node = _node(root, chain)
    if node is None:
        raise ValueError(f"{chain} is not a chain of the tree {root}")
    network = IPv4Network(node)
    target = entries.jump(chain)
    if by_source:
        return entries.entry(target, source=network, goto=True)
    return entries.entry(target, destination=network, goto=True)


# -- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Branch:
    """One direction as it was found."""

    direction: Direction
    rules: dict[bytes, LeafRule]  # see `by_address`
    repeated: frozenset[bytes]  # addresses that have several
    unreached: frozenset[bytes]  # addresses that no packet is led to
    whole: bool  # every chain is as it should be


def standing_rules(image: Image, direction: Direction, only: Collection[bytes] | None = None) -> dict[bytes, LeafRule]:
    """The MARK rule of each address, or of `only` these, whatever else there is."""
    chains: Iterable[str] = image.chains if only is None else {direction.leaf(address) for address in only}
    rules: dict[bytes, LeafRule] = {}
    for chain in chains:
        rules |= by_address(leaf_rules(image, direction, chain))
    return rules if only is None else {address: rules[address] for address in only if address in rules}


def by_address(found: list[LeafRule]) -> dict[bytes, LeafRule]:
    """The rule of each address in a leaf; of several the one that has counted most, for it has stood longest."""
    rules = {rule[0]: rule for rule in found if rule[0] is not None}
    if len(rules) < len(found):
        rules = {rule[0]: rule for rule in sorted(found, key=lambda rule: rule[3]) if rule[0] is not None}
    return rules


def read_branch(image: Image, direction: Direction) -> Branch:
    """One tree with all that is wrong in it."""
    reached, whole = _reached(image, direction)
    rules: dict[bytes, LeafRule] = {}
    repeated: set[bytes] = set()
    unreached: set[bytes] = set()
    for chain in image.chains:
        if direction.leaf_prefix(chain) is None:
            continue
        found = leaf_rules(image, direction, chain)
        ours = by_address(found)
        rules |= ours
        if not found or len(ours) < len(found):
            whole = False
            times = Counter(rule[0] for rule in found)
            repeated.update(address for address in ours if times[address] > 1)
        if chain not in reached:
            unreached |= ours.keys()
    return Branch(direction, rules, frozenset(repeated), frozenset(unreached), whole)


def _reached(image: Image, direction: Direction) -> tuple[set[str], bool]:
    """The chains that gotos lead to, and whether the inner chains hold these gotos, once, and nothing else."""
    reached, whole, waiting = {direction.root}, direction.root in image.chains, [direction.root]
    while waiting:
        chain = waiting.pop()
        rules = image.rules(chain)
        whole = whole and bool(rules)
        for rule in rules:
            child = rule.target
            if direction.parent(child) != chain or rule.entry != direction.goto(child) or child in reached:
                whole = False
                continue
            reached.add(child)
            if direction.leaf_prefix(child) is None:
                waiting.append(child)
    return reached, whole and reached == {chain for chain in image.chains if direction.is_own(chain)}


def leaf_rules(image: Image, direction: Direction, chain: str) -> list[LeafRule]:
    """The rules of a leaf in order; none if there is no such chain. Written for thousands of leaves."""
    prefix, span = direction.leaf_prefix(chain), image.chains.get(chain)
    if prefix is None or span is None:
        return []
    blob = memoryview(image.blob)[span.start : span.end]
    if len(blob) % _LEAF_RULE.size == 0:
        found = _decoded(_LEAF_RULE.iter_unpack(blob), direction, prefix)
        if _STRANGE not in found:
            return found
    found = []  # some are of another kind, and so perhaps of another size: one by one
    for offset, size in image.offsets(span):
        if size == _LEAF_RULE.size:
            found += _decoded([_LEAF_RULE.unpack_from(image.blob, offset)], direction, prefix)
        else:
            found.append(_STRANGE)
    return found


def _decoded(unpacked: Iterable[tuple[Any, ...]], direction: Direction, prefix: int) -> list[LeafRule]:
    """Written for speed: 20,000 times in each reading."""
    found: list[LeafRule] = []
    other, expected = _NOWHERE, _BY_SOURCE if direction.by_source else _BY_DESTINATION
    for source, destination, rest, offsets, packets, octets, head, revision, number, mask in unpacked:
        address, nowhere = (source, destination) if direction.by_source else (destination, source)
        if (
            nowhere == other
            and rest == expected
            and offsets == _OFFSETS
            and head == _MARK_HEAD
            and revision == _REVISION
            and mask == _MARK_MASK
            and int.from_bytes(address, "big") & LEAF_MASK == prefix
        ):
            found.append((address, number, packets, octets))
        else:
            found.append(_STRANGE)
    return found
