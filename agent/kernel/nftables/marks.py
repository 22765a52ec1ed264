"""The marks of the accounts by nftables: two maps from an address to its mark, with a counter for each element.

Owns the tables `ip wirelane` and `ip6 wirelane` whole, which are alike but for stamp and guard; whatever else is found
in them goes. Touches no other table. Called by the reconciler (read, apply), the sampler (counters) and whoever moves a
host from one backend to the other (the verbs at the end).

    map towards, map from   address : mark, counter
    chain marks             postrouting, priority -149: just after the mangle chain of iptables, see decision 0010
        iifname "wg*" meta mark set ip saddr map @from
        oifname "wg*" iif != 0 meta mark set ip daddr map @towards
                            each also of the device of IKEv2, `ipsec0`;
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
from ipaddress import IPv4Address, IPv6Address

from agent.errors import KernelError
from agent.kernel.nftables import nft, readout, ruleset
from agent.kernel.nftables.readout import Element
from agent.kernel.nftables.ruleset import Chain, Piece, Rule, Set, Table, Writing
from agent.model import IKEV2_DEVICE, LINKS, Address
from agent.objects import NO_STAMP, Counters, Diff, Mark, Scope, stamp_after

TABLE = "wirelane"
MARKS = "marks"
CHAIN = Chain("filter", "postrouting", -149)
BEFORE = Chain("filter", "forward", -149)  # of the version before
# No packet has this address. The bytes of its element are the stamp, see stamp_after().
STAMP = IPv4Address("0.0.0.1").packed
BROKEN = IPv4Address("0.0.0.0")
"""Key of the extra entry in what `read` returns when our table is damaged. It is never the address of an account."""
BROKEN_IPV6 = IPv6Address("::")
ASK_AT_MOST = 300  # elements asked for one by one (10 us each); for more all of them are read

# The size is a promise: the kernel takes a table of fixed size with a faster lookup, and wakes up for no housekeeping.
# There are 34,475 marks.
_SIZE = 65536


def _meta(key: str, op: str, value: str, text: str) -> Piece:
    return Piece(text, {"match": {"op": op, "left": {"meta": {"key": key}}, "right": value}})


DEVICES = (f"{LINKS}*", IKEV2_DEVICE)  # every link of ours, and that of IKEv2
FROM_LINK, TO_LINK = (
    tuple(_meta(key, "==", name, f'{key} "{name}"') for name in DEVICES) for key in ("iifname", "oifname")
)
FORWARDED = _meta("iif", "!=", "0", "meta iif != 0")  # what the box itself sends has come in nowhere
RETURN = Piece("return", {"return": None})
LET_GO = (_meta("mark", "!=", "0", "meta mark != 0"), RETURN)


class Frame:
    """Everything but the elements, in the words of one family: "ip" or "ip6"."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.length = 4 if family == "ip" else 16  # of an address, bytes
        self.broken: Address = BROKEN if family == "ip" else BROKEN_IPV6
        self.write = Writing(TABLE, family)
        kind = f"{family.replace('ip', 'ipv') if family == 'ip6' else 'ipv4'}_addr"
        self.towards, self.from_ = self._map("towards", kind), self._map("from", kind)
        self.moved = Set("set", "moved", f"type {kind} . mark;", {"type": [kind, "mark"]})
        self.plain: tuple[Rule, ...] = (
            *((came_in, self._mark_rule("saddr", self.from_.name)) for came_in in FROM_LINK),
            *((goes_out, FORWARDED, self._mark_rule("daddr", self.towards.name)) for goes_out in TO_LINK),
        )
        self.guarded: tuple[Rule, ...] = (self._guard_rule("daddr"), self._guard_rule("saddr"), *self.plain)

    @staticmethod
    def _map(name: str, kind: str) -> Set:
        listed = {"type": kind, "map": "mark", "size": _SIZE, "stmt": [{"counter": None}]}
        return Set("map", name, f"type {kind} : mark; size {_SIZE}; counter;", listed)

    def _mark_rule(self, field: str, name: str) -> Piece:
        value = {"map": {"key": {"payload": {"protocol": self.family, "field": field}}, "data": f"@{name}"}}
        listed = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": value}}
        return Piece(f"meta mark set {self.family} {field} map @{name}", listed)

    def _guard_rule(self, field: str) -> Rule:
        key = {"concat": [{"payload": {"protocol": self.family, "field": field}}, {"meta": {"key": "mark"}}]}
        match = {"match": {"op": "==", "left": key, "right": f"@{self.moved.name}"}}
        return Piece(f"{self.family} {field} . meta mark @{self.moved.name}", match), RETURN

    @property
    def maps(self) -> tuple[Set, Set]:
        return self.from_, self.towards

    def read(self) -> Table | None:
        return ruleset.find(nft.listing(TABLE, self.family), TABLE, self.family)

    def elements(self, one: Set, *, torn_will_do: bool = False) -> dict[bytes, Element]:
        return readout.read(TABLE, one.name, torn_will_do=torn_will_do, length=self.length)

    def some(self, one: Set, addresses: Iterable[bytes]) -> dict[bytes, Element]:
        return readout.read_some(TABLE, one.name, addresses, self.length)

    def held(self, table: Table, one: Set) -> dict[bytes, Element]:
        """The elements of a map that is as it should be; another kind of map holds nothing of use."""
        return self.elements(one) if table.holds(one) else {}


IPV4, IPV6 = Frame("ip"), Frame("ip6")
TOWARDS = IPV4.towards


class NftablesMarks:
    """`agent.parts.MarksPart` by nftables. Any thread, any network namespace; each call opens what it needs."""

    def __init__(self, ipv6: bool = False) -> None:
        self._of = IPV6 if ipv6 else IPV4
        self._stamp = () if ipv6 else (STAMP,)
        self._known: tuple[nft.State, Table | None] | None = None

    def read(self, scope: Scope) -> dict[Address, Mark]:
        """What is right, with the current counters, and `BROKEN` if something is not. Raises KernelError."""
        table = self._of.read()
        if table is None:
            return {}
        upward, downward = self._of.held(table, self._of.from_), self._of.held(table, self._of.towards)
        made = _taken_stamp(upward, downward)
        sound = _sound(upward, downward)
        found = {}
        if not table.flags and table.chains.get(MARKS) == CHAIN and _leads(self._of, table):
            for raw in sound:
                up, down = upward[raw], downward[raw]
                found[_address_of(raw)] = Mark(_address_of(raw), up[0], counters=_counters(up, down, made))
        if not (_is_whole(self._of, table) and sound and len(upward) == len(downward) == len(sound)):
            found[self._of.broken] = Mark(self._of.broken, 0)
        return found

    def counters(self, addresses: Collection[Address] | None = None) -> dict[Address, Counters]:
        """What both elements of each address have counted, wherever packets are led. Raises KernelError.

        An address that has lost one of them is left out, as in iptables; so may be some while others keep changing
        their tables.
        """
        if addresses is not None and len(addresses) <= ASK_AT_MOST:
            some = {*self._stamp, *(address.packed for address in addresses)}
            upward, downward = (self._of.some(one, some) for one in self._of.maps)
        else:
            upward, downward = (self._of.elements(one, torn_will_do=True) for one in self._of.maps)
        made = _taken_stamp(upward, downward)
        if addresses is not None:
            upward = {raw: up for address in addresses if (up := upward.get(raw := address.packed))}
        return {_address_of(raw): _counters(up, downward[raw], made) for raw, up in upward.items() if raw in downward}

    def apply(self, diff: Diff[Address, Mark]) -> Mapping[Address, KernelError]:
        """One transaction. All or nothing: raises KernelError, and returns no errors of single addresses."""
        if diff:
            if self._of.broken in diff.remove:
                self._known = None  # whoever says that something is wrong has looked
            table = self._usable()
            if table is not None and table.chains.get(MARKS) == BEFORE:
                # A packet that the version before has marked already is let go, until all of these are through.
                nft.apply([*_emptied(self._of, table), *self._of.write.add_rules(MARKS, (LET_GO, *self._of.plain))])
                table = self._usable()
            edit = _Edit(self._of, table, diff)
            commands = edit.commands()
            nft.apply(commands, elements=edit.is_of_elements)
        return {}

    def _usable(self) -> Table | None:
        """Listed anew where anything but elements of ours may have changed: see `nft.state`."""
        state = nft.state()
        if self._known is None or self._known[0] is not state:
            table = _usable_table(self._of)
            self._known = (state, table) if nft.state() is state else None
            return table
        return self._known[1]

    # -- moving from one backend to the other ----------------------------------------------------------------------

    def is_there(self) -> bool:
        """Is anything of ours there? Raises KernelError; False where there is no nftables."""
        return nft.has_table(TABLE, self._of.family)

    def unhook(self) -> None:
        """No packet is marked or counted any more; the elements stay, for `counters`. Raises KernelError."""
        table = self._of.read()
        if table is not None and MARKS in table.chains:
            nft.apply([self._of.write.flush_chain(MARKS)])

    def clear(self) -> None:
        """Removes everything, counters and guard too. Raises KernelError."""
        if self.is_there():
            nft.apply([self._of.write.delete_table()])

    def defer(self, marks: Mapping[Address, Mark]) -> None:
        """From now on packets that iptables has given one of these marks, for that address, are left to it.

        Makes the table if need be; call it before the first element is added, with all that stands in iptables.
        Again: with other marks. Raises KernelError.
        """
        table = _usable_table(self._of)
        keys = [f"{address} . {mark.mark}" for address, mark in marks.items()]
        nft.apply(
            [
                *_emptied(self._of, table, with_guard=True),
                *(self._of.write.elements("add", self._of.moved.name, keys)),
                *self._of.write.add_rules(MARKS, self._of.guarded),
            ]
        )

    def undefer(self) -> None:
        """Marks and counts every packet from now on. Does nothing without a table. Raises KernelError."""
        table = self._of.read()
        if table is not None and not _is_whole(self._of, table):
            nft.apply([*_emptied(self._of, table), *self._of.write.add_rules(MARKS, self._of.plain)])


def _usable_table(of: Frame) -> Table | None:
    """Our table, after what has to happen in transactions of its own. Nothing of it is of use to a packet before."""
    table = of.read()
    if table is not None and table.flags:  # the kernel wakes a table alone
        nft.apply([of.write.add_table()])
    if table is not None and any(one.name in table.sets and not table.holds(one) for one in of.maps):
        # libnftables would judge new elements by the old map.
        kept = [one.name for one in of.maps if table.holds(one)]
        nft.apply([of.write.flush_rules(), *of.write.delete_strays(table, kept, table.chains)])
        return of.read()
    return table


def _leads(of: Frame, table: Table) -> bool:
    return table.has_rules(MARKS, of.plain) or _is_guarded(of, table)


def _is_guarded(of: Frame, table: Table) -> bool:
    return table.has_rules(MARKS, of.guarded) and table.holds(of.moved)


def _is_whole(of: Frame, table: Table, with_guard: bool = False) -> bool:
    """Is everything but the elements as it should be, and nothing else there?"""
    names = {one.name for one in (*of.maps, *([of.moved] if with_guard else []))}
    led = _is_guarded(of, table) if with_guard else table.has_rules(MARKS, of.plain)
    maps = table.sets.keys() == names and all(table.holds(one) for one in of.maps)
    return not table.flags and maps and table.chains == {MARKS: CHAIN} and led and not table.others


def _emptied(of: Frame, table: Table | None, with_guard: bool = False) -> list[str]:
    """The commands that make table, maps and chain right and leave the chain empty. Good maps keep their elements."""
    commands = [of.write.add_table()]
    maps, chains = [*of.maps], {MARKS}
    if table is not None:
        kept = [one for one in maps if table.holds(one)]
        maps = [one for one in maps if one not in kept]
        chains = {MARKS} if table.chains.get(MARKS) == CHAIN else set()
        commands += [of.write.flush_rules(), *of.write.delete_strays(table, {one.name for one in kept}, chains)]
        chains = {MARKS} - chains
    commands += [of.write.add_set(one) for one in (*maps, *([of.moved] if with_guard else []))]
    return commands + [of.write.add_chain(name, CHAIN) for name in chains]


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
def _address_of(raw: bytes) -> Address:
    """The same object each time, as in iptables/marktree.py."""
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


class _Edit:
    """One `apply`."""

    def __init__(self, of: Frame, table: Table | None, diff: Diff[Address, Mark]) -> None:
        self._of = of
        self._stamp = {STAMP} if of is IPV4 else set()
        self._table = table
        self._diff = diff
        self._put = {mark.address.packed: mark for mark in (*diff.add.values(), *diff.change.values())}
        self._gone = {address.packed for address in diff.remove if address != of.broken} - self._put.keys()
        self._repair = of.broken in diff.remove
        self.is_of_elements = False  # it leaves all else as it is; of `commands`

    def commands(self) -> list[str]:
        """What has to be done, nothing if all is well. Reads the elements concerned."""
        held = {one.name: self._touched(one) for one in self._of.maps}
        if self._repair:
            # Whoever is wanted and has no two good elements is in `add`; the rest is nobody's.
            upward, downward = held.values()
            self._gone |= (upward.keys() | downward.keys()) - _sound(upward, downward) - self._put.keys()
        if not self._put and self._is_emptied(held):
            return [self._of.write.delete_table()] if self._table is not None else []
        return self._framed([line for one in self._of.maps for line in self._elements(one, held[one.name])])

    def _framed(self, elements: list[str]) -> list[str]:
        """With whatever has to be put right around the elements. A guard stays unless all is repaired."""
        table = self._table
        if table is not None and (
            _is_whole(self._of, table) or (not self._repair and _is_whole(self._of, table, with_guard=True))
        ):
            self.is_of_elements = True
            return elements
        return [*_emptied(self._of, table), *elements, *self._of.write.add_rules(MARKS, self._of.plain)]

    def _touched(self, one: Set) -> dict[bytes, Element]:
        """What the map holds of the addresses of the difference; all it holds, if all may matter."""
        if self._table is None or not self._table.holds(one):
            return {}
        addresses = self._put.keys() | self._gone | self._stamp
        if self._repair or len(addresses) > ASK_AT_MOST:
            return self._of.elements(one)
        return self._of.some(one, addresses)

    def _is_emptied(self, held: Mapping[str, dict[bytes, Element]]) -> bool:
        """Will both maps be empty, if nothing is put?"""
        present = [one for one in self._of.maps if self._table is not None and self._table.holds(one)]
        return not any(
            _outlast(self._of, one, held[one.name], self._gone | self._stamp, self._repair) for one in present
        )

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
        if self._stamp and at not in (None, said):
            doomed += [STAMP] if STAMP in held else []
            made.append(f"{_address_of(STAMP)} counter packets 0 bytes {at} : 0")
        gone = [str(_address_of(raw)) for raw in dict.fromkeys(doomed)]
        return self._of.write.elements("delete", one.name, gone) + self._of.write.elements("add", one.name, made)


def _outlast(of: Frame, one: Set, held: Iterable[bytes], gone: Collection[bytes], complete: bool) -> bool:
    """Does any element of a map outlast the removal? `held`: some of its elements, or `complete`."""
    if complete or any(raw not in gone for raw in held):
        return any(raw not in gone for raw in held)
    few = readout.peek(TABLE, one.name, of.length)
    if any(raw not in gone for raw in few):
        return True
    return bool(few) and any(raw not in gone for raw in of.elements(one))


def _start(one: Set, counters: Counters) -> tuple[int, int]:
    if one.name == IPV4.from_.name:
        return counters.upload_packets, counters.upload_bytes
    return counters.download_packets, counters.download_bytes
