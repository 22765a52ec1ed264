"""How many connections an account may have at a time: a bound, so that one cannot use up the table of all.

Owns the nftables tables `ip wirelane_connections` and, where a server has IPv6, `ip6 wirelane_connections` (a bound for
each family) whole, whatever marks the packets: legacy iptables counts connections
too, but forgets all of them whenever anybody writes the same table. Wraps the part that lets traffic through, for the
two come and go together. Called by the reconciler.

    forwarded  forward, 50  from a link, first packet of a connection: goto bound     behind what lets it through
    arriving   input, 50    the same: to the box itself
    bound                   from an address that was refused a moment ago: drop, counted
                            by the other end and the ports: goto one of the shares; without any, to the first
    share0 ..               the address has no more than its share: accept; else goto refuse
    refuse                  remembers the address for a second; drop, counted

Why shares: to count, Linux looks at each connection of the list again, 0.15 us for each, at most once a jiffy. With one
list of 4,000 that is 0.6 ms for each new connection, and a few customers who open them steadily would use up a CPU; see
decision 0014. Together the shares never hold more than the bound; because they do not fill evenly, an account is
refused from about nine tenths of it on. What it has already goes on.

An entry is counted when its connection begins and let go of when Linux has forgotten the connection. Connections that
were there before the table are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Interface
from typing import Any, Protocol

from agent.errors import KernelError
from agent.kernel.nftables import nft, ruleset
from agent.kernel.nftables.ruleset import Chain, Piece, Rule, Set, Table, Writing
from agent.model import IKEV2_DEVICE, LINKS
from agent.objects import Diff, Forwarding, Scope

TABLE = "wirelane_connections"
SHARE = 250  # connections in one list
MOST_SHARES = 64
BROKEN = ""  # as in the part that is wrapped
_NOTHING = Forwarding(BROKEN, IPv4Interface("0.0.0.0/32"), "", 0, False, None)
_EVERYWHERE = Scope(frozenset(), "")
BOUND, REFUSE, FULL = "bound", "refuse", "full"
HOOKS = {"forwarded": Chain("filter", "forward", 50), "arriving": Chain("filter", "input", 50)}

FAMILIES = ("ip", "ip6")
COUNTER, DROP, RETURN = (Piece(word, {word: None}) for word in ("counter", "drop", "return"))


def _match(text: str, left: dict[str, Any], right: str) -> Piece:
    return Piece(text, {"match": {"op": "==", "left": left, "right": right}})


def _goto(chain: str) -> Piece:
    return Piece(f"goto {chain}", {"goto": {"target": chain}})


FROM_LINK = tuple(
    _match(f'iifname "{name}"', {"meta": {"key": "iifname"}}, name) for name in (f"{LINKS}*", IKEV2_DEVICE)
)
NEW = _match("ct state new", {"ct": {"key": "state"}}, "new")
KNOWN = _match("ct status confirmed", {"ct": {"key": "status"}}, "confirmed")  # not its first packet


def _source(family: str) -> dict[str, Any]:
    return {"payload": {"protocol": family, "field": "saddr"}}


def _was_refused(family: str) -> Piece:
    return _match(f"{family} saddr @{FULL}", _source(family), f"@{FULL}")


def _remember(family: str) -> Piece:
    listed = {"set": {"op": "add", "elem": _source(family), "set": f"@{FULL}"}}
    return Piece(f"add @{FULL} {{ {family} saddr }}", listed)


def _count(family: str, held: str, most: int) -> Piece:
    counted = [{"ct count": {"val": most, "inv": True}}]
    listed = {"op": "add", "elem": _source(family), "set": f"@{held}", "stmt": counted}
    return Piece(f"add @{held} {{ {family} saddr ct count over {most} }}", {"set": listed})


def _shared_out(family: str, shares: int) -> Piece:
    if shares == 1:
        return _goto("share0")
    text = ", ".join(f"{i} : goto share{i}" for i in range(shares))
    data = {"set": [[i, {"goto": {"target": f"share{i}"}}] for i in range(shares)]}
    ends = ((family, "daddr"), ("th", "sport"), ("th", "dport"))
    other_end = [{"payload": {"protocol": protocol, "field": field}} for protocol, field in ends]
    key = {"jhash": {"mod": shares, "expr": {"concat": other_end}}}
    return Piece(
        f"jhash {family} daddr . th sport . th dport mod {shares} vmap {{ {text} }}",
        {"vmap": {"key": key, "data": data}},
    )


def wanted_rules(limit: int, family: str = "ip") -> dict[str, tuple[Rule, ...]]:
    """By chain; what is led to comes before what leads there."""
    shares = min(max(limit // SHARE, 1), MOST_SHARES)
    return {
        REFUSE: ((_remember(family), COUNTER, DROP),),
        **{f"share{i}": ((_count(family, f"held{i}", limit // shares), _goto(REFUSE)),) for i in range(shares)},
        BOUND: (
            *((KNOWN, RETURN), (_was_refused(family), COUNTER, DROP), (_shared_out(family, shares),)),
            *([(_goto("share0"),)] if shares > 1 else []),  # what has nothing where ports are
        ),
        **{name: tuple((came_in, NEW, _goto(BOUND)) for came_in in FROM_LINK) for name in HOOKS},
    }


def _sets(rules: Mapping[str, object], family: str) -> list[Set]:
    kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
    held = [f"held{name.removeprefix('share')}" for name in rules if name.startswith("share")]
    memory = Set("set", FULL, f"type {kind}; size 65535; flags dynamic,timeout; timeout 1s;", {})
    return [memory, *(Set("set", name, f"type {kind}; size 65535; flags dynamic;", {}) for name in held)]


class Inner(Protocol):
    """The part that lets traffic through."""

    def read(self, scope: Scope) -> dict[str, Forwarding]: ...
    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]: ...


class Bounded:
    """`Part[str, Forwarding]`. `limit`: of connections that an account has begun; 0 = no bound."""

    def __init__(self, inner: Inner, limit: int) -> None:
        self._inner = inner
        self._limit = limit

    def read(self, scope: Scope) -> dict[str, Forwarding]:
        """What the wrapped part says, and `BROKEN` if the bound is not as it should be. Raises KernelError."""
        found = self._inner.read(scope)
        if _is_usable() and not all(self._is_right(of, _read_table(of), _has(found, of)) for of in FAMILIES):
            found[BROKEN] = _NOTHING
        return found

    def apply(self, diff: Diff[str, Forwarding]) -> Mapping[str, KernelError]:
        """The bound stands before what it bounds, and goes after it. An error of the bound spoils nothing else."""
        errors: dict[str, KernelError] = {}
        if diff.add or diff.change:
            errors = self._make({**self._inner.read(_EVERYWHERE), **diff.add, **diff.change})
        errors |= self._inner.apply(diff)
        return errors | self._make(self._inner.read(_EVERYWHERE))

    def _make(self, bounded: Mapping[str, Forwarding]) -> dict[str, KernelError]:
        if not _is_usable():
            return {}
        try:
            for family in FAMILIES:
                table, wanted = _read_table(family), _has(bounded, family)
                if not self._is_right(family, table, wanted):
                    nft.apply(self._commands(family, table, wanted and bool(self._limit)))
        except KernelError as error:
            return {BROKEN: KernelError(f"bound of connections: {error}", retry=error.retry)}
        return {}

    def _is_right(self, family: str, table: Table | None, wanted: bool) -> bool:
        wanted = wanted and bool(self._limit)
        if table is None or not wanted:
            return table is None and not wanted
        rules = wanted_rules(self._limit, family)
        chains = {name: HOOKS.get(name) for name in rules}
        sets = table.sets.keys() == {one.name for one in _sets(rules, family)}
        led = all(table.has_rules(name, chain) for name, chain in rules.items())
        return table.chains == chains and sets and led and not (table.flags or table.others)

    def _commands(self, family: str, table: Table | None, wanted: bool) -> list[str]:
        """All anew: what was counted begins at zero."""
        write = Writing(TABLE, family)
        gone = [write.delete_table()] if table is not None else []
        if not wanted:
            return gone
        rules = wanted_rules(self._limit, family)
        made = [write.add_table(), *(write.add_set(one) for one in _sets(rules, family))]
        for name, chain in rules.items():
            hangs = HOOKS.get(name)
            made.append(write.add_chain(name, hangs) if hangs else write.add_plain_chain(name))
            made += write.add_rules(name, chain)
        return [*gone, *made]


def refused() -> int:
    """How many packets that would have begun a connection were refused since the table was made."""
    tables = [table for family in FAMILIES if (table := _read_table(family))] if _is_usable() else []
    rules = [rule for table in tables for chain in (BOUND, REFUSE) for rule in table.rules.get(chain, [])]
    pieces = [piece for rule in rules for piece in rule]
    return sum(piece["counter"]["packets"] for piece in pieces if isinstance(piece.get("counter"), dict))


def warnings(scope: Scope) -> Iterable[str]:
    """Where there is no nftables."""
    if scope.interfaces and not _is_usable():
        yield (
            "nothing bounds how many connections one account may have, so one can use up the table of all: this host "
            "has no nftables; install the package libnftables1 and load the module nf_tables"
        )


def _is_usable() -> bool:
    try:
        nft.check()
    except KernelError as error:
        return error.retry
    return True


def _has(found: Mapping[str, Forwarding], family: str) -> bool:
    """Is there anything to bound? Also what is damaged may let something through."""
    return any(one.ipv6 for one in found.values()) if family == "ip6" else bool(found)


def _read_table(family: str) -> Table | None:
    return ruleset.find(nft.listing(TABLE, family), TABLE, family)
