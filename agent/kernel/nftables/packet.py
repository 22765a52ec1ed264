"""PURE: where a packet ends in rules of nftables as they are listed (libnftables-json(5)), as far as can be told.

Knows the matches that firewalls filter forwarded packets by; whatever it does not know may match or not. So the answer
is all the ends that are possible. It opens nothing. Called by `foreign`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

Rules = Mapping[str, list[list[dict[str, Any]]]]  # by chain, in order
Ends = frozenset[str]  # "accept", "drop", and "continue": it came out at the end

MAX_DEPTH = 16  # of jumps; the kernel's own bound
PROTOCOLS = {"tcp": 6, "udp": 17}
# linux/netfilter/xt_conntrack.h
STATES = {"new": 8, "established": 2}
_SILENT = ("counter", "log", "comment", "mangle", "notrack", "ct helper", "ct timeout", "flow", "set", "dup", "map")


@dataclass(frozen=True, slots=True)
class Packet:
    came_in: str
    goes_out: str  # "" = to the host itself
    source: IPv4Address
    destination: IPv4Address | None  # None = one of the host's own
    protocol: str
    source_port: int
    destination_port: int
    state: str  # of its connection: "new" or "established"


def with_states(expressions: list[Any], states: Sequence[int]) -> list[dict[str, Any]]:
    """The same rule with what the conntrack matches of iptables ask for, in order; -1 = not known."""
    masks = iter(states)
    pieces = (piece for piece in expressions if isinstance(piece, dict) and piece)
    return [{"states": next(masks, -1)} if _asks_states(piece) else piece for piece in pieces]


def _asks_states(piece: dict[str, Any]) -> bool:
    return (piece.get("xt") or {}).get("name") == "conntrack"


def outcomes(rules: Rules, chain: str, policy: str, packet: Packet) -> Ends:
    """How it may end in a base chain: of "accept" and "drop"."""
    ends = _walked(rules, chain, packet, {}, 0)
    return ends - {"continue"} | ({policy} if "continue" in ends else frozenset())


def _walked(rules: Rules, chain: str, packet: Packet, known: dict[str, Ends], depth: int) -> Ends:
    if depth > MAX_DEPTH or chain not in rules:
        return frozenset({"accept", "drop", "continue"})
    if chain in known:
        return known[chain]
    ends: set[str] = set()
    for rule in rules[chain]:
        matches, verdict = _met(rule, packet)
        if matches is False or not verdict:
            continue
        name, target = verdict
        if name in ("jump", "goto"):
            inner = _walked(rules, target, packet, known, depth + 1)
            ends |= inner if name == "goto" else inner - {"continue"}
            goes_on = name == "jump" and "continue" in inner
        else:
            ends.add({"return": "continue", "reject": "drop"}.get(name, name))
            goes_on = False
        if matches and not goes_on:
            break
    else:
        ends.add("continue")
    known[chain] = frozenset(ends)
    return known[chain]


def _met(rule: list[dict[str, Any]], packet: Packet) -> tuple[bool | None, tuple[str, str] | None]:
    """Does the packet match (None = perhaps), and what happens to it then: (verdict, chain)."""
    result: bool | None = True
    for piece in rule:
        kind, value = next(iter(piece.items()))
        if verdict := _verdict(kind, value):
            return result, verdict
        if kind == "vmap":
            found = _mapped(value, packet)
            if isinstance(found, tuple):
                return result, found
            one: bool | None = found
        elif kind == "match":
            one = _compared(value, packet)
        elif kind == "states":
            one = None if value < 0 else bool(value & STATES[packet.state])
        elif kind in _SILENT or (kind == "xt" and (value or {}).get("type") == "target"):
            continue
        else:
            one = None
        if one is False:
            return False, None
        result = None if one is None else result
    return result, None


def _verdict(kind: str, value: Any) -> tuple[str, str] | None:
    if kind in ("accept", "drop", "return", "reject"):
        return kind, ""
    if kind in ("jump", "goto"):
        return kind, value["target"]
    if kind == "queue":
        return "accept", ""  # a program decides
    if kind == "xt" and (value or {}).get("type") == "target" and value.get("name") == "REJECT":
        return "drop", ""
    return None


def _mapped(vmap: Mapping[str, Any], packet: Packet) -> tuple[str, str] | bool | None:
    """The verdict of a map; False = none of its keys; None = cannot be told."""
    data = vmap.get("data")
    pairs = data.get("set") if isinstance(data, dict) else None
    if not isinstance(pairs, list):
        return None
    for key, verdict in pairs:
        met = _compared({"op": "==", "left": vmap.get("key"), "right": key}, packet)
        if met is None:
            return None
        if met:
            ((kind, value),) = verdict.items()
            return _verdict(kind, value)
    return False


def _compared(match: Mapping[str, Any], packet: Packet) -> bool | None:
    values = _values(match.get("left"), packet)
    if values is None:
        return None
    met = _is_among(values, match.get("right"))
    if met is None or match.get("op") in ("==", "in"):
        return met
    return not met if match.get("op") == "!=" else None


def _values(left: Any, packet: Packet) -> tuple[Any, ...] | None:
    """What the packet has there, in all spellings; () = it has nothing there; None = cannot be told."""
    if not isinstance(left, dict):
        return None
    if "meta" in left:
        number = PROTOCOLS[packet.protocol]
        known: dict[str, tuple[Any, ...]] = {
            "iifname": (packet.came_in,),
            "iif": (packet.came_in,),
            "oifname": (packet.goes_out,),
            "oif": (packet.goes_out,),
            "l4proto": (packet.protocol, number),
            "nfproto": ("ipv4", 2),
            "protocol": ("ip",),
        }
        return known.get(left["meta"].get("key"))
    if "ct" in left:
        return {"state": (packet.state,), "status": ("",)}.get(left["ct"].get("key"))
    payload = left.get("payload")
    return _field(payload.get("protocol"), payload.get("field"), packet) if isinstance(payload, dict) else None


def _field(protocol: Any, name: Any, packet: Packet) -> tuple[Any, ...] | None:
    if protocol == "ip":
        destination = (packet.destination,) if packet.destination else None
        number = PROTOCOLS[packet.protocol]
        fields = {"saddr": (packet.source,), "daddr": destination, "protocol": (packet.protocol, number)}
        return fields.get(name)
    if protocol in ("th", packet.protocol):
        return {"sport": (packet.source_port,), "dport": (packet.destination_port,)}.get(name)
    return ()


def _is_among(values: tuple[Any, ...], right: Any) -> bool | None:
    """Is one of the values what stands on the right?"""
    if isinstance(right, dict) and "set" in right:
        right = right["set"]
    if isinstance(right, list):
        met = [_is_among(values, one) for one in right]
        return True if True in met else (None if None in met else False)
    if not values:
        return False
    if values == ("",) and isinstance(right, str):  # the status of a connection: only that nothing turned it round
        return False if right == "dnat" else None
    if isinstance(right, str) and right.startswith("@"):
        return None
    return any(_is_same(value, right) for value in values)


def _is_same(value: Any, right: Any) -> bool:
    if isinstance(right, dict) and "range" in right:
        low, high = right["range"]
        low, high = (IPv4Address(low), IPv4Address(high)) if isinstance(value, IPv4Address) else (low, high)
        return isinstance(low, type(value)) and bool(low <= value <= high)
    if isinstance(value, IPv4Address):
        return _is_in(value, right)
    if isinstance(value, str) and isinstance(right, str) and right.endswith("*"):
        return value.startswith(right[:-1])
    return bool(value == right)


def _is_in(address: IPv4Address, right: Any) -> bool:
    prefix = right.get("prefix", {}) if isinstance(right, dict) else {"addr": right, "len": 32}
    try:
        return address in IPv4Network((prefix.get("addr"), prefix.get("len")), strict=False)
    except (AddressValueError, ValueError):
        return False
