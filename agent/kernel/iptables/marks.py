"""The MARK rules of the accounts, in the legacy mangle table.

Owns the chains WL_MARK, WL_FROM*, WL_TO* and the one jump to WL_MARK, first in POSTROUTING, and WL_OWN with the one
jump to it, first in OUTPUT; `marktree` draws them. Touches nothing else in the table, with one exception: a rule
elsewhere that leads into these chains counts packets twice, so it is ours to remove. Called by the reconciler (read,
apply) and the sampler (counters).

How a damaged tree is repaired: nothing is remembered. `read` reports an address only if its two rules are right and
packets are led to them, and, if anything at all in our chains is not as it should be, one more entry under the key
`BROKEN`, which nobody wants. So the difference is not empty even where all addresses look well, and it holds `BROKEN`
in `remove`. `apply` looks at the table again inside its own transaction. Asked to remove `BROKEN` it visits every
chain of ours, else only those on the way to the addresses of the difference; top and hook always. In a chain it
visits, every rule that should not be there is deleted and every missing one is added, by position: a rule that stays
is not touched, so the kernel's own counters go on, exactly. All of it is one commit; a second one follows where the
version before has left its jump in FORWARD: a packet that it has marked already is let go meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from ipaddress import IPv4Address

from agent.errors import KernelError
from agent.kernel.iptables import tables, xtables
from agent.kernel.iptables.entries import Image
from agent.kernel.iptables.marktree import (
    DIRECTIONS,
    FROM,
    LET_GO,
    OWN,
    OWN_RULES,
    PREFIXES,
    STAMP,
    TO,
    TOP,
    TOP_RULES,
    Branch,
    Direction,
    LeafRule,
    address_of,
    by_address,
    is_own,
    leaf_rules,
    read_branch,
    stamp_of,
    standing_rules,
)
from agent.kernel.iptables.xtables import Hook, Transaction
from agent.model import Address
from agent.objects import Counters, Diff, Mark, Scope, stamp_after

TABLE = "mangle"
HOOKS = (Hook("POSTROUTING", TOP), Hook("OUTPUT", OWN))
_FIXED = {TOP: TOP_RULES, OWN: OWN_RULES}
_ROOTS = frozenset(direction.root for direction in DIRECTIONS)
BROKEN = IPv4Address("0.0.0.0")
"""Key of the extra entry in what `read` returns when our chains are damaged. It is never the address of an account."""


class IptablesMarks:
    """`agent.parts.MarksPart` by iptables. Any thread, any network namespace; each call opens what it needs."""

    def read(self, scope: Scope) -> dict[Address, Mark]:
        """What is right, with the current counters, and `BROKEN` if something is not. Raises KernelError."""
        image = tables.read(TABLE)
        own = _own(image)
        if not own:
            return {}
        upward, downward, made = read_branch(image, FROM), read_branch(image, TO), stamp_of(own)
        led = xtables.is_hooked(image, HOOKS, own) and all(
            [rule.entry for rule in image.rules(chain)] == list(rules) for chain, rules in _FIXED.items()
        )
        sound = _sound(upward, downward)
        lost = upward.unreached | downward.unreached
        found = {}
        if led:
            for raw in sound - lost if lost else sound:
                address, up, down = address_of(raw), upward.rules[raw], downward.rules[raw]
                found[address] = Mark(address, up[1], counters=_counters(up, down, made))
        if not (led and upward.whole and downward.whole and len(upward.rules) == len(downward.rules) == len(sound)):
            found[BROKEN] = Mark(BROKEN, 0)
        return found

    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        """What both rules of each address have counted, wherever they are led to or not. Raises KernelError.

        An address that has lost one of its rules is left out: its counters go on when it is repaired, from a reading
        before. Half of them would look like a reset.
        """
        image = tables.read(TABLE)
        made = stamp_of(image.chains)
        only = None if addresses is None else {address.packed for address in addresses}
        upward, downward = standing_rules(image, FROM, only), standing_rules(image, TO, only)
        return {address_of(raw): _counters(up, downward[raw], made) for raw, up in upward.items() if raw in downward}

    def apply(self, diff: Diff[Address, Mark]) -> Mapping[Address, KernelError]:
        """One transaction. All or nothing: raises KernelError, and returns no errors of single addresses."""
        if not diff:
            return {}
        if xtables.transact(TABLE, lambda transaction: _Edit(transaction, diff).run()):
            xtables.transact(TABLE, lambda transaction: transaction.fill(TOP, TOP_RULES))
        return {}

    # -- moving from one backend to the other ----------------------------------------------------------------------

    def is_there(self) -> bool:
        """Is any chain of ours there? Raises KernelError; False where there are no legacy tables."""
        return tables.has_table(TABLE) and any(is_own(chain) for chain in tables.read(TABLE).chains)

    def unhook(self) -> None:
        """No packet is led to our chains any more; the rules stay, for `counters`. Raises KernelError."""
        if self.is_there():
            xtables.transact(TABLE, lambda transaction: transaction.unhook(_own(transaction.image)))

    def clear(self) -> None:
        """Removes everything, counters too. Raises KernelError."""
        if self.is_there():
            xtables.transact(TABLE, _clear)


def _own(image: Image) -> set[str]:
    return {chain for chain in image.chains if is_own(chain)}


def _clear(transaction: Transaction) -> None:
    own = _own(transaction.image)
    transaction.unhook(own)
    transaction.drop(own)


def _sound(upward: Branch, downward: Branch) -> set[bytes]:
    """The addresses with exactly one rule in each direction, both with the same mark."""
    down = downward.rules
    pairs = {raw for raw, rule in upward.rules.items() if raw in down and down[raw][1] == rule[1]}
    return pairs - upward.repeated - downward.repeated


def _counters(up: LeafRule, down: LeafRule, made: int) -> Counters:
    return _counted(down[2], down[3], up[2], up[3], made)


@lru_cache(1 << 14)
def _counted(*numbers: int) -> Counters:
    """Most accounts are idle between two readings: theirs need not be made again, which costs as much as reading."""
    return Counters(*numbers)


class _Edit:
    """One `apply` inside its transaction."""

    def __init__(self, transaction: Transaction, diff: Diff[Address, Mark]) -> None:
        self._to = transaction
        self._diff = diff
        self._own = _own(transaction.image)
        self._put = {mark.address.packed: mark for mark in (*diff.add.values(), *diff.change.values())}
        self._gone = {address.packed for address in diff.remove if address != BROKEN} - self._put.keys()
        self._repair = BROKEN in diff.remove
        self._empty: set[str] = set()  # chains that nothing hangs on any more

    def run(self) -> bool:
        """Returns whether packets are under way that the version before has counted."""
        before = any(builtin == "FORWARD" for builtin, _, _ in self._to.image.jumps_from_outside(self._own))
        if self._repair:
            upward, downward = (read_branch(self._to.image, direction) for direction in DIRECTIONS)
            # Whoever is wanted and has no two good rules is in `add`; the rest is nobody's. Whether packets are led
            # to a pair does not count here: that is about to be true.
            self._gone |= (upward.rules.keys() | downward.rules.keys()) - _sound(upward, downward) - self._put.keys()
        left = [self._tree(direction) for direction in DIRECTIONS]
        stamps = {chain for chain in self._own if chain.startswith(STAMP)}
        if not any(left) and self._own - self._empty - stamps <= {*_FIXED, *_ROOTS}:
            self._to.unhook(self._own)
            self._to.drop(self._own)
            return False
        for direction in DIRECTIONS:
            self._to.create(direction.root)
        for chain, rules in _FIXED.items():
            self._to.fill(chain, (LET_GO, *rules) if before and chain == TOP else rules)
        self._to.hook(HOOKS, self._own)
        self._to.drop((self._own & self._empty) - _ROOTS)
        self._stamp(stamps)
        return before

    def _stamp(self, standing: set[str]) -> None:
        """See `Mark`."""
        at = stamp_after(self._diff, stamp_of(standing))
        if at is not None and standing != {chain := f"{STAMP}{at}"}:
            self._to.create(chain)
            self._to.drop(standing - {chain})

    def _tree(self, direction: Direction) -> bool:
        """Settles the leaves and the ways to them, from the leaves to the root. Returns whether anything is left.

        Only the chains on the way to a change are looked at; in a repair all of them, as if there were no way yet.
        """
        wanted: dict[str, dict[bytes, Mark]] = {}
        for raw, mark in self._put.items():
            wanted.setdefault(direction.leaf(raw), {})[raw] = mark
        leaves = {direction.leaf(raw) for raw in self._gone} & self._own
        if self._repair:
            present = {chain for chain in self._own if direction.is_own(chain)}
            leaves = {chain for chain in present if direction.leaf_prefix(chain) is not None}
            self._empty |= present  # until something turns out to hang on it
        stays = {leaf: self._leaf(direction, leaf, wanted.get(leaf, {})) for leaf in leaves | wanted.keys()}
        for _ in PREFIXES:
            self._note(stays)
            level: dict[str, dict[str, bool]] = {}
            for chain, stay in stays.items():
                level.setdefault(direction.parent(chain) or "", {})[chain] = stay
            stays = {chain: self._inner(direction, chain, children) for chain, children in level.items()}
        self._note(stays)
        return stays.get(direction.root, bool(self._to.image.rules(direction.root)))

    def _note(self, stays: Mapping[str, bool]) -> None:
        for chain, stay in stays.items():
            (self._empty.discard if stay else self._empty.add)(chain)

    def _leaf(self, direction: Direction, leaf: str, wanted: Mapping[bytes, Mark]) -> bool:
        """Settles the rules of one leaf. Returns whether it holds any."""
        found = leaf_rules(self._to.image, direction, leaf)
        kept = {raw: rule for raw, rule in by_address(found).items() if raw not in self._gone}
        doomed = []
        unseen = set(kept)
        for position, rule in enumerate(found):
            raw = rule[0]
            if raw not in unseen or rule != kept[raw]:
                doomed.append(position)
                continue
            unseen.remove(raw)
            mark = wanted.get(raw)
            if mark is not None and mark.restart:
                self._to.replace(leaf, _rule(direction, mark), position)
            elif mark is not None and mark.mark != rule[1]:
                self._to.patch(leaf, position, direction.mark(raw, mark.mark))
        for position in reversed(doomed):
            self._to.delete(leaf, position)
        if wanted:
            self._to.create(leaf)
        for raw, mark in wanted.items():
            if raw not in kept:
                self._to.append(leaf, _rule(direction, mark))
        return bool(kept or wanted)

    def _inner(self, direction: Direction, chain: str, children: Mapping[str, bool]) -> bool:
        """Settles the gotos of a chain above the leaves. `children`: those looked at, and whether they stay."""
        rules = [] if self._repair else self._to.image.rules(chain)
        standing = {rule.target for rule in rules if direction.parent(rule.target) == chain}
        left = standing - children.keys() | {child for child, stays in children.items() if stays}
        if not left:
            return False
        missing = {direction.goto(child) for child in left}
        kept = []
        for rule in self._to.image.rules(chain):
            if rule.entry in missing:
                missing.remove(rule.entry)
                kept.append(rule.entry)
        self._to.fill(chain, [*kept, *sorted(missing)])
        return True


def _rule(direction: Direction, mark: Mark) -> bytes:
    counters = mark.counters
    if direction is FROM:
        return FROM.mark(mark.address.packed, mark.mark, counters.upload_packets, counters.upload_bytes)
    return TO.mark(mark.address.packed, mark.mark, counters.download_packets, counters.download_bytes)
