"""The marks of the accounts by nftables: two maps from an address to its mark, with a counter for each element.

Owns the table `ip wirelane` whole; whatever else is found in it goes. Touches no other table. Called by the reconciler
(read, apply), the sampler (counters) and whoever moves a host from one backend to the other (the verbs at the end).

    map towards, map from   address : mark, counter
    chain marks             postrouting, priority -149: just after the mangle chain of iptables, see decision 0010
        iifname "wg*" meta mark set ip saddr map @from
        oifname "wg*" iif != 0 meta mark set ip daddr map @towards
                            not what the box itself sends; between two accounts the mark of the receiver wins, see
                            iptables/marktree.py

An address without element leaves the packet as it is. Counters count inner IP bytes, as those of iptables do.

How damage is repaired: as in iptables, nothing is remembered, and `read` adds an entry under the key `BROKEN`, which
nobody wants, if anything in the table is not as it should be. `apply` looks again. It always puts table, maps, chain
and rules right; asked to remove `BROKEN` it visits every element too. An element that is right is not touched, so its
counter goes on, exactly; so does one whose rules, chain or other half were damaged. All of it is one transaction.

What nftables cannot do: an element's mark cannot be changed. The element is replaced by one that starts from the
numbers read a moment before (about 1 ms), and what passes in between is marked but not counted.

The guard, for moving here from iptables while both mark: a set `moved` of address and mark, and two rules before the
others that let go of packets which iptables has given the right mark: neither marked nor counted a second time.
`read` takes a guard for damage, so one that was forgotten goes with the next full pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address

from agent.errors import KernelError
from agent.kernel.nftables import nft, readout, ruleset
from agent.kernel.nftables.readout import Element
from agent.kernel.nftables.ruleset import Chain, Piece, Set, Table, Writing
from agent.objects import NO_STAMP, Counters, Diff, Mark, Scope, stamp_after

TABLE = "wirelane"
MARKS = "marks"
CHAIN = Chain("filter", "postrouting", -149)
BEFORE = Chain("filter", "forward", -149)  # of the version before
# No packet has this address. The bytes of its element are the stamp, see stamp_after().
STAMP = IPv4Address("0.0.0.1").packed
BROKEN = IPv4Address("0.0.0.0")
"""Key of the extra entry in what `read` returns when our table is damaged. It is never the address of an account."""
ASK_AT_MOST = 300  # elements asked for one by one (10 us each); for more all of them are read

# The size is a promise: the kernel takes a table of fixed size with a faster lookup, and wakes up for no housekeeping.
# There are 34,475 marks.
_SIZE = 65536


def _map(name: str) -> Set:
    listed = {"type": "ipv4_addr", "map": "mark", "size": _SIZE, "stmt": [{"counter": None}]}
    return Set("map", name, f"type ipv4_addr : mark; size {_SIZE}; counter;", listed)


TOWARDS, FROM = _map("towards"), _map("from")
MOVED = Set("set", "moved", "type ipv4_addr . mark;", {"type": ["ipv4_addr", "mark"]})


def _meta(key: str, op: str, value: str, text: str) -> Piece:
    return Piece(text, {"match": {"op": op, "left": {"meta": {"key": key}}, "right": value}})


FROM_LINK = _meta("iifname", "==", "wg*", 'iifname "wg*"')
TO_LINK = _meta("oifname", "==", "wg*", 'oifname "wg*"')
FORWARDED = _meta("iif", "!=", "0", "meta iif != 0")  # what the box itself sends has come in nowhere


def _mark_rule(field: str, name: str) -> Piece:
    value = {"map": {"key": {"payload": {"protocol": "ip", "field": field}}, "data": f"@{name}"}}
    return Piece(
        f"meta mark set ip {field} map @{name}", {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}
    )


def _guard_rule(field: str) -> tuple[Piece, Piece]:
    key = {"concat": [{"payload": {"protocol": "ip", "field": field}}, {"meta": {"key": "mark"}}]}
    match = {"match": {"op": "==", "left": key, "right": f"@{MOVED.name}"}}
    return Piece(f"ip {field} . meta mark @{MOVED.name}", match), Piece("return", {"return": None})


PLAIN = (
    (FROM_LINK, _mark_rule("saddr", FROM.name)),
    (TO_LINK, FORWARDED, _mark_rule("daddr", TOWARDS.name)),
)
LET_GO = (_meta("mark", "!=", "0", "meta mark != 0"), Piece("return", {"return": None}))
GUARDED = (_guard_rule("daddr"), _guard_rule("saddr"), *PLAIN)

_write = Writing(TABLE)


class NftablesMarks:
    """`agent.parts.MarksPart` by nftables. Any thread, any network namespace; each call opens what it needs."""

    def read(self, scope: Scope) -> dict[IPv4Address, Mark]:
        """What is right, with the current counters, and `BROKEN` if something is not. Raises KernelError."""
        table = _read_table()
        if table is None:
            return {}
        upward, downward = _held(table, FROM), _held(table, TOWARDS)
        made = _taken_stamp(upward, downward)
        sound = _sound(upward, downward)
        found = {}
        if not table.flags and table.chains.get(MARKS) == CHAIN and _leads(table):
            for raw in sound:
                up, down = upward[raw], downward[raw]
                found[_address_of(raw)] = Mark(_address_of(raw), up[0], counters=_counters(up, down, made))
        if not (_is_whole(table) and sound and len(upward) == len(downward) == len(sound)):
            found[BROKEN] = Mark(BROKEN, 0)
        return found

    def counters(self, addresses: Collection[IPv4Address] | None = None) -> dict[IPv4Address, Counters]:
        """What both elements of each address have counted, wherever packets are led. Raises KernelError.

        An address that has lost one of them is left out, as in iptables; so may be some while others keep changing
        their tables.
        """
        if addresses is not None and len(addresses) <= ASK_AT_MOST:
            some = {STAMP, *(address.packed for address in addresses)}
            upward, downward = (readout.read_some(TABLE, one.name, some) for one in (FROM, TOWARDS))
        else:
            upward, downward = (readout.read(TABLE, one.name, torn_will_do=True) for one in (FROM, TOWARDS))
        made = _taken_stamp(upward, downward)
        if addresses is not None:
            upward = {raw: up for address in addresses if (up := upward.get(raw := address.packed))}
        return {_address_of(raw): _counters(up, downward[raw], made) for raw, up in upward.items() if raw in downward}

    def apply(self, diff: Diff[IPv4Address, Mark]) -> Mapping[IPv4Address, KernelError]:
        """One transaction. All or nothing: raises KernelError, and returns no errors of single addresses."""
        if diff:
            table = _usable_table()
            if table is not None and table.chains.get(MARKS) == BEFORE:
                # A packet that the version before has marked already is let go, until all of these are through.
                nft.apply([*_emptied(table), *_write.add_rules(MARKS, (LET_GO, *PLAIN))])
                table = _usable_table()
            nft.apply(_Edit(table, diff).commands())
        return {}

    # -- moving from one backend to the other ----------------------------------------------------------------------

    def is_there(self) -> bool:
        """Is anything of ours there? Raises KernelError; False where there is no nftables."""
        return nft.has_table(TABLE)

    def unhook(self) -> None:
        """No packet is marked or counted any more; the elements stay, for `counters`. Raises KernelError."""
        table = _read_table()
        if table is not None and MARKS in table.chains:
            nft.apply([_write.flush_chain(MARKS)])

    def clear(self) -> None:
        """Removes everything, counters and guard too. Raises KernelError."""
        if self.is_there():
            nft.apply([_write.delete_table()])

    def defer(self, marks: Mapping[IPv4Address, Mark]) -> None:
        """From now on packets that iptables has given one of these marks, for that address, are left to it.

        Makes the table if need be; call it before the first element is added, with all that stands in iptables.
        Again: with other marks. Raises KernelError.
        """
        table = _usable_table()
        keys = [f"{address} . {mark.mark}" for address, mark in marks.items()]
        nft.apply(
            [
                *_emptied(table, with_guard=True),
                *(_write.elements("add", MOVED.name, keys)),
                *_write.add_rules(MARKS, GUARDED),
            ]
        )

    def undefer(self) -> None:
        """Marks and counts every packet from now on. Does nothing without a table. Raises KernelError."""
        table = _read_table()
        if table is not None and not _is_whole(table):
            nft.apply([*_emptied(table), *_write.add_rules(MARKS, PLAIN)])


def _read_table() -> Table | None:
    return ruleset.find(nft.listing(TABLE), TABLE)


def _usable_table() -> Table | None:
    """Our table, after what has to happen in transactions of its own. Nothing of it is of use to a packet before."""
    table = _read_table()
    if table is not None and table.flags:  # the kernel wakes a table alone
        nft.apply([_write.add_table()])
    if table is not None and any(one.name in table.sets and not table.holds(one) for one in (TOWARDS, FROM)):
        # libnftables would judge new elements by the old map.
        kept = [one.name for one in (TOWARDS, FROM) if table.holds(one)]
        nft.apply([_write.flush_rules(), *_write.delete_strays(table, kept, table.chains)])
        return _read_table()
    return table


def _held(table: Table, one: Set) -> dict[bytes, Element]:
    """The elements of a map that is as it should be; another kind of map holds nothing of use."""
    return readout.read(TABLE, one.name) if table.holds(one) else {}


def _leads(table: Table) -> bool:
    return table.has_rules(MARKS, PLAIN) or _is_guarded(table)


def _is_guarded(table: Table) -> bool:
    return table.has_rules(MARKS, GUARDED) and table.holds(MOVED)


def _is_whole(table: Table, with_guard: bool = False) -> bool:
    """Is everything but the elements as it should be, and nothing else there?"""
    names = {TOWARDS.name, FROM.name, MOVED.name} if with_guard else {TOWARDS.name, FROM.name}
    led = _is_guarded(table) if with_guard else table.has_rules(MARKS, PLAIN)
    maps = table.sets.keys() == names and table.holds(TOWARDS) and table.holds(FROM)
    return not table.flags and maps and table.chains == {MARKS: CHAIN} and led and not table.others


def _emptied(table: Table | None, with_guard: bool = False) -> list[str]:
    """The commands that make table, maps and chain right and leave the chain empty. Good maps keep their elements."""
    commands = [_write.add_table()]
    maps, chains = [TOWARDS, FROM], {MARKS}
    if table is not None:
        kept = [one for one in maps if table.holds(one)]
        maps = [one for one in maps if one not in kept]
        chains = {MARKS} if table.chains.get(MARKS) == CHAIN else set()
        commands += [_write.flush_rules(), *_write.delete_strays(table, {one.name for one in kept}, chains)]
        chains = {MARKS} - chains
    commands += [_write.add_set(one) for one in (*maps, *([MOVED] if with_guard else []))]
    return commands + [_write.add_chain(name, CHAIN) for name in chains]


def _sound(upward: Mapping[bytes, Element], downward: Mapping[bytes, Element]) -> set[bytes]:
    """The addresses with an element in each map, both with the same mark."""
    return {raw for raw, up in upward.items() if raw in downward and downward[raw][0] == up[0]}


def _taken_stamp(*maps: dict[bytes, Element]) -> int:
    """What the table says of itself; of two that differ the older. It is nobody's address: taken out of the maps."""
    said = [stamp[2] for elements in maps if (stamp := elements.pop(STAMP, None)) is not None]
    return min(said, default=NO_STAMP)


def _counters(up: Element, down: Element, made: int) -> Counters:
    return _counted(down[1], down[2], up[1], up[2], made)


@lru_cache(1 << 14)
def _counted(*numbers: int) -> Counters:
    """Most accounts are idle between two readings: theirs need not be made again, which costs as much as reading."""
    return Counters(*numbers)


@lru_cache(1 << 16)
def _address_of(raw: bytes) -> IPv4Address:
    """The same object each time, as in iptables/marktree.py."""
    return IPv4Address(raw)


class _Edit:
    """One `apply`."""

    def __init__(self, table: Table | None, diff: Diff[IPv4Address, Mark]) -> None:
        self._table = table
        self._diff = diff
        self._put = {mark.address.packed: mark for mark in (*diff.add.values(), *diff.change.values())}
        self._gone = {address.packed for address in diff.remove if address != BROKEN} - self._put.keys()
        self._repair = BROKEN in diff.remove

    def commands(self) -> list[str]:
        """What has to be done, nothing if all is well. Reads the elements concerned."""
        held = {one.name: self._touched(one) for one in (FROM, TOWARDS)}
        if self._repair:
            # Whoever is wanted and has no two good elements is in `add`; the rest is nobody's.
            upward, downward = held.values()
            self._gone |= (upward.keys() | downward.keys()) - _sound(upward, downward) - self._put.keys()
        if not self._put and self._is_emptied(held):
            return [_write.delete_table()] if self._table is not None else []
        return self._framed([line for one in (FROM, TOWARDS) for line in self._elements(one, held[one.name])])

    def _framed(self, elements: list[str]) -> list[str]:
        """With whatever has to be put right around the elements. A guard stays unless all is repaired."""
        table = self._table
        if table is not None and (_is_whole(table) or (not self._repair and _is_whole(table, with_guard=True))):
            return elements
        return [*_emptied(table), *elements, *_write.add_rules(MARKS, PLAIN)]

    def _touched(self, one: Set) -> dict[bytes, Element]:
        """What the map holds of the addresses of the difference; all it holds, if all may matter."""
        if self._table is None or not self._table.holds(one):
            return {}
        addresses = self._put.keys() | self._gone | {STAMP}
        if self._repair or len(addresses) > ASK_AT_MOST:
            return readout.read(TABLE, one.name)
        return readout.read_some(TABLE, one.name, addresses)

    def _is_emptied(self, held: Mapping[str, dict[bytes, Element]]) -> bool:
        """Will both maps be empty, if nothing is put?"""
        present = [one for one in (FROM, TOWARDS) if self._table is not None and self._table.holds(one)]
        return not any(_outlast(one, held[one.name], self._gone | {STAMP}, self._repair) for one in present)

    def _elements(self, one: Set, held: Mapping[bytes, Element]) -> list[str]:
        doomed = [raw for raw in self._gone if raw in held]
        made = []
        for raw, mark in self._put.items():
            element = held.get(raw)
            if element is not None and not mark.restart:
                if element[0] == mark.mark:
                    continue
                packets, octets = element[1:]
            else:
                packets, octets = _start(one, mark.counters)
            if element is not None:
                doomed.append(raw)
            made.append(f"{mark.address} counter packets {packets} bytes {octets} : {mark.mark}")
        said = held[STAMP][2] if STAMP in held else NO_STAMP
        at = stamp_after(self._diff, said)
        if at not in (None, said):
            doomed += [STAMP] if STAMP in held else []
            made.append(f"{_address_of(STAMP)} counter packets 0 bytes {at} : 0")
        gone = [str(_address_of(raw)) for raw in dict.fromkeys(doomed)]
        return _write.elements("delete", one.name, gone) + _write.elements("add", one.name, made)


def _outlast(one: Set, held: Iterable[bytes], gone: Collection[bytes], complete: bool) -> bool:
    """Does any element of a map outlast the removal? `held`: some of its elements, or `complete`."""
    if complete or any(raw not in gone for raw in held):
        return any(raw not in gone for raw in held)
    few = readout.peek(TABLE, one.name)
    if any(raw not in gone for raw in few):
        return True
    return bool(few) and any(raw not in gone for raw in readout.read(TABLE, one.name))


def _start(one: Set, counters: Counters) -> tuple[int, int]:
    if one is FROM:
        return counters.upload_packets, counters.upload_bytes
    return counters.download_packets, counters.download_bytes
