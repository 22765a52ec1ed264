"""PURE: the binary form of legacy iptables rules, both ways.

Owns the layouts: `entry()` builds a rule as libiptc takes it, `Image` cuts the blob that the kernel gives for a
whole table into chains and rules. It opens nothing and decides nothing. `xtables` moves these bytes to and from the
kernel; `marks` and `forwarding` say what they should be.

Two forms of one rule exist. *Written* (what libiptc takes): a jump names its chain or verdict. *Read* (what the
kernel gives): a jump is an offset into the blob, and the kernel has filled in `comefrom` and the counters. Rules are
compared in the written form with counters zero, so what was written reads back equal, byte by byte.

Layouts: linux/netfilter_ipv4/ip_tables.h (ipt_entry), linux/netfilter/x_tables.h (targets, matches), and the headers
named below. All are kernel ABI: native byte order, addresses and SNAT values in network order.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

ENTRY_SIZE = 112  # struct ipt_entry without matches and target
JUMP_SIZE = 40  # struct xt_standard_target
_HEAD_SIZE = 32  # struct xt_entry_match and xt_entry_target: size, name[29], revision
_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")  # struct ipt_ip
_OFFSETS_AT = 88  # target_offset, next_offset
_OFFSETS = struct.Struct("=HH")
_COUNTERS_AT = 96
_COUNTERS = struct.Struct("=QQ")  # packets, bytes
_NFCACHE_AND_OFFSETS = struct.Struct("=IHHI")
_MODULE = struct.Struct("=H29sB")
_VERDICT = struct.Struct("=i4x")
_JUMP_HEAD = b"\x28\0\0"  # size 40, empty name

NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED, NF_NAT_RANGE_PROTO_RANDOM_FULLY = 0x01, 0x02, 0x10  # nf_nat.h
Ports = tuple[int, int]  # first and last

IPT_F_GOTO = 0x02
IPT_INV_VIA_IN = 0x01
# Verdicts are stored as -NF_x - 1; RETURN is -NF_REPEAT - 1 (x_tables.h).
_VERDICTS = {-2: "ACCEPT", -1: "DROP", -5: "RETURN", -4: "QUEUE"}

# A user-defined chain starts with an entry whose target is ERROR and carries the chain's name; so does the end.
# The last entry of a chain is no rule: libiptc ends each with a RETURN.
_CHAIN_HEAD_SIZE = 176
_CHAIN_END_SIZE = ENTRY_SIZE + JUMP_SIZE
_CHAIN_HEAD_OFFSETS = _OFFSETS.pack(ENTRY_SIZE, _CHAIN_HEAD_SIZE)
_CHAIN_HEAD = b"\x40\0ERROR\0"  # size and name of the target; for what is behind the name see `_cleaned`
BUILTINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")  # by number of the hook

ANYWHERE = IPv4Network("0.0.0.0/0")


# -- targets ------------------------------------------------------------------------------------------------------


def _module(name: str, revision: int, data: bytes) -> bytes:
    padded = data.ljust(-(-len(data) // 8) * 8, b"\0")
    return _MODULE.pack(_HEAD_SIZE + len(padded), name.encode(), revision) + padded


def jump(chain: str) -> bytes:
    """A jump to a chain, or a verdict: ACCEPT, DROP, RETURN."""
    return _module(chain, 0, _VERDICT.pack(0))


def mark(number: int) -> bytes:
    """MARK --set-xmark number/0xffffffff (xt_mark.h, revision 2)."""
    return _module("MARK", 2, struct.pack("=II", number, 0xFFFFFFFF))


def tcpmss_clamp() -> bytes:
    """TCPMSS --clamp-mss-to-pmtu (xt_TCPMSS.h: XT_TCPMSS_CLAMP_PMTU)."""
    return _module("TCPMSS", 0, struct.pack("=H", 0xFFFF))


def snat(address: IPv4Address, ports: Ports | None = None) -> bytes:
    """SNAT --to-source address[:first-last --random-fully]."""
    return _translation("SNAT", NF_NAT_RANGE_MAP_IPS, address.packed, ports)


def masquerade(ports: Ports | None = None) -> bytes:
    """MASQUERADE [--to-ports first-last --random-fully]."""
    return _translation("MASQUERADE", 0, bytes(4), ports)


def _translation(name: str, flags: int, address: bytes, ports: Ports | None) -> bytes:
    """nf_nat.h: one range of addresses and ports. With `ports` the rule must name TCP or UDP."""
    if ports:
        flags |= NF_NAT_RANGE_PROTO_SPECIFIED | NF_NAT_RANGE_PROTO_RANDOM_FULLY
    head = struct.pack("=II4s4s", 1, flags, address, address)
    return _module(name, 0, head + struct.pack("!HH", *(ports or (0, 0))))


# -- matches ------------------------------------------------------------------------------------------------------


def udp_destination(port: int) -> bytes:
    """-m udp --dport port (xt_tcpudp.h)."""
    return _module("udp", 0, struct.pack("=HHHHB", 0, 0xFFFF, port, port, 0))


def tcp_destination(port: int) -> bytes:
    """-m tcp --dport port (xt_tcpudp.h)."""
    return _module("tcp", 0, struct.pack("=HHHHBBBB", 0, 0xFFFF, port, port, 0, 0, 0, 0))


def echo_request() -> bytes:
    """-m icmp --icmp-type 8 (ip_tables.h, ipt_icmp: type, codes, inversion)."""
    return _module("icmp", 0, struct.pack("=BBBB", 8, 0, 0xFF, 0))


def tcp_syn() -> bytes:
    """-m tcp --tcp-flags SYN,RST SYN: the packets that carry the MSS option."""
    return _module("tcp", 0, struct.pack("=HHHHBBBB", 0, 0xFFFF, 0, 0xFFFF, 0, 0x06, 0x02, 0))


def not_marked(number: int) -> bytes:
    """-m mark ! --mark number (xt_mark.h, xt_mark_mtinfo1)."""
    return _module("mark", 1, struct.pack("=IIB", number, 0xFFFFFFFF, 1))


def established() -> bytes:
    """-m conntrack --ctstate RELATED,ESTABLISHED (xt_conntrack.h, xt_conntrack_mtinfo3)."""
    flags = struct.pack("=HHHH", 1, 0, 0x06, 0)  # XT_CONNTRACK_STATE, no inversion, states, status
    return _module("conntrack", 3, bytes(146) + flags + bytes(10))


def stray() -> bytes:
    """-m conntrack --ctstate INVALID,RELATED: what belongs to no connection and begins none, so that NAT leaves it
    alone; and errors about connections, of which nobody says that they are the sender's."""
    flags = struct.pack("=HHHH", 1, 0, 0x05, 0)
    return _module("conntrack", 3, bytes(146) + flags + bytes(10))


def replies() -> bytes:
    """-m conntrack --ctstate ESTABLISHED --ctdir REPLY: answers to who began, and never his own packets."""
    flags = struct.pack("=HHHH", 0x1001, 0x1000, 0x02, 0)  # state and XT_CONNTRACK_DIRECTION, which is "original"
    return _module("conntrack", 3, bytes(146) + flags + bytes(10))


def led_in() -> bytes:
    """-m conntrack --ctstate DNAT --ctdir ORIGINAL, and NEW,ESTABLISHED: to whom a port of the box leads."""
    return _conntrack(0x1001, 0, 0x80) + _conntrack(1, 0, 0x0A)


def led_back() -> bytes:
    """-m conntrack --ctstate DNAT --ctdir REPLY, and ESTABLISHED: the answers."""
    return _conntrack(0x1001, 0x1000, 0x80) + _conntrack(1, 0, 0x02)


def _conntrack(asks: int, inverted: int, states: int) -> bytes:
    return _module("conntrack", 3, bytes(146) + struct.pack("=HHHH", asks, inverted, states, 0) + bytes(10))


# -- a whole rule -------------------------------------------------------------------------------------------------


def _interface(name: str) -> tuple[bytes, bytes]:
    """Name and mask; the mask covers the final zero, or it would be a prefix match ("wg1" would match "wg10"), which
    is what a "+" at the end asks for."""
    if name.endswith("+"):
        return name.encode(), b"\xff" * (len(name) - 1)
    return (name.encode(), b"\xff" * (len(name) + 1)) if name else (b"", b"")


def entry(
    target: bytes,
    *,
    source: IPv4Network = ANYWHERE,
    destination: IPv4Network = ANYWHERE,
    came_in: str = "",
    not_in: str = "",
    goes_out: str = "",
    protocol: int = 0,
    match: bytes = b"",
    goto: bool = False,
) -> bytes:
    """A rule in written form, counters zero. `not_in` is the inverted `came_in`; give one of the two."""
    in_name, in_mask = _interface(came_in or not_in)
    out_name, out_mask = _interface(goes_out)
    ip = _IP.pack(
        source.network_address.packed,
        destination.network_address.packed,
        source.netmask.packed,
        destination.netmask.packed,
        in_name,
        out_name,
        in_mask,
        out_mask,
        protocol,
        IPT_F_GOTO if goto else 0,
        IPT_INV_VIA_IN if not_in else 0,
    )
    target_at = ENTRY_SIZE + len(match)
    return ip + _NFCACHE_AND_OFFSETS.pack(0, target_at, target_at + len(target), 0) + bytes(16) + match + target


def with_counters(rule: bytes, packets: int, octets: int) -> bytes:
    """The same rule, to start from these counters."""
    return rule[:_COUNTERS_AT] + _COUNTERS.pack(packets, octets) + rule[_COUNTERS_AT + 16 :]


def target_at(rule: bytes) -> int:
    """Where the target of a rule starts."""
    offset: int = _OFFSETS.unpack_from(rule, _OFFSETS_AT)[0]
    return offset


def target_name(rule: bytes) -> str:
    """Name of a rule's target: of the chain or verdict if it is a jump; "" = a rule without target."""
    at = target_at(rule)
    return _text(rule[at + 2 : at + 31])


def _text(field: bytes | bytearray) -> str:
    """A name up to its zero; others may use names that are no UTF-8."""
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def source(rule: bytes) -> IPv4Network:
    return IPv4Network((rule[0:4], int.from_bytes(rule[8:12], "big").bit_count()), strict=False)


def destination(rule: bytes) -> IPv4Network:
    return IPv4Network((rule[4:8], int.from_bytes(rule[12:16], "big").bit_count()), strict=False)


def protocol(rule: bytes) -> int:
    return int.from_bytes(rule[80:82], sys.byteorder)


def in_interface(rule: bytes) -> str:
    """The interface in -i, also in an inverted one; "" = any."""
    return _text(rule[16:32])


def is_not_in(rule: bytes) -> bool:
    """Is it for what comes in on any but this interface?"""
    return bool(rule[83] & IPT_INV_VIA_IN)


def out_interface(rule: bytes) -> str:
    return _text(rule[32:48])


def udp_port(rule: bytes) -> int:
    """The port of `udp_destination`; 0 = the rule has no such match, alone."""
    match = rule[ENTRY_SIZE : target_at(rule)]
    port: int = struct.unpack_from("=H", match, _HEAD_SIZE + 4)[0] if len(match) == len(udp_destination(0)) else 0
    return port if match == udp_destination(port) else 0


def snat_address(rule: bytes) -> IPv4Address | None:
    """The address of `snat`; None = another target."""
    target = rule[target_at(rule) :]
    if len(target) != len(masquerade()) or target_name(rule) != "SNAT":
        return None
    return IPv4Address(target[_HEAD_SIZE + 8 : _HEAD_SIZE + 12])


def nat_ports(rule: bytes) -> Ports | None:
    """The ports of `snat` or `masquerade`; None = it leaves them alone, or is another target."""
    target = rule[target_at(rule) :]
    if len(target) != len(masquerade()) or target_name(rule) not in ("SNAT", "MASQUERADE"):
        return None
    first, last = struct.unpack_from("!HH", target, _HEAD_SIZE + 16)
    return (first, last) if first else None


# -- a whole table, as the kernel gives it ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that was read: `entry` in written form with counters zero."""

    entry: bytes
    packets: int
    octets: int

    @property
    def target(self) -> str:
        return target_name(self.entry)


@dataclass(frozen=True, slots=True)
class Span:
    """Where the rules of a chain lie in the blob: [start, end)."""

    start: int
    end: int


def _cleaned(modules: bytes) -> bytes:
    """Matches, or a target: with zeros behind their names. The kernel writes names only up to their zero, and what was
    in the reader's memory before stays behind it."""
    cleaned, at = b"", 0
    while at < len(modules):
        size = max(int.from_bytes(modules[at : at + 2], sys.byteorder), _HEAD_SIZE)
        name = modules[at + 2 : at + 31].partition(b"\0")[0].ljust(29, b"\0")
        cleaned += modules[at : at + 2] + name + modules[at + 31 : at + size]
        at += size
    return cleaned


def _chain_heads(blob: bytes | bytearray) -> Iterator[tuple[int, str]]:
    """(offset of the first rule, name) of each user-defined chain in order; of the end of the table too."""
    # The name is looked for, not the whole head: a search for mostly zeros, among zeros, takes five times as long.
    at = blob.find(b"ERROR")
    while at >= 0:
        start = at - 2 + _CHAIN_HEAD_SIZE - ENTRY_SIZE
        head = blob[max(start - _CHAIN_HEAD_SIZE, 0) : start]
        # The same word in the text of a comment is no head.
        if head[_OFFSETS_AT : _OFFSETS_AT + 4] == _CHAIN_HEAD_OFFSETS and head[112:120] == _CHAIN_HEAD:
            yield start, _text(head[144:])
        at = blob.find(b"ERROR", at + _CHAIN_HEAD_SIZE - ENTRY_SIZE)


Jump = tuple[str, int, Rule]  # chain, position, the rule there


@dataclass(frozen=True)
class Image:
    """One reading of a table. Rules are decoded only where somebody asks."""

    blob: bytes | bytearray  # as it came: to copy 4 MB would take as long as to find the chains in them
    chains: Mapping[str, Span] = field(default_factory=dict)

    @classmethod
    def parse(cls, blob: bytes | bytearray, hooks: Mapping[str, tuple[int, int]]) -> Image:
        """`hooks`: built-in chain -> (offset of its first rule, offset of its policy), from IPT_SO_GET_INFO.

        Goes from head to head: 1 ms for the 21,000 rules of 10,000 accounts, of which a change concerns two.
        """
        chains = {name: Span(*offsets) for name, offsets in hooks.items()}
        heads = list(_chain_heads(blob))
        for (start, name), (following, _) in pairwise(heads):  # the last one is the end of the table
            end = following - _CHAIN_HEAD_SIZE - _CHAIN_END_SIZE
            if _OFFSETS.unpack_from(blob, end + _OFFSETS_AT) != (ENTRY_SIZE, _CHAIN_END_SIZE):
                raise ValueError(f"chain {name} does not end with its RETURN")
            chains[name] = Span(start, end)
        return cls(blob, chains)

    @cached_property
    def _names(self) -> Mapping[int, str]:
        """Offset of a chain's first rule -> its name: what a jump in read form points to."""
        return {span.start: name for name, span in self.chains.items()}

    def offsets(self, span: Span) -> Iterator[tuple[int, int]]:
        """(offset, size) of every rule of a span."""
        offset = span.start
        while offset < span.end:
            size: int = _OFFSETS.unpack_from(self.blob, offset + _OFFSETS_AT)[1]
            yield offset, size
            offset += size

    def rules(self, chain: str) -> list[Rule]:
        """The rules of a chain in order; none if there is no such chain."""
        span = self.chains.get(chain)
        return [] if span is None else [self._rule(offset, size) for offset, size in self.offsets(span)]

    def _rule(self, offset: int, size: int) -> Rule:
        raw = bytes(self.blob[offset : offset + size])
        packets, octets = _COUNTERS.unpack_from(raw, _COUNTERS_AT)
        at, _ = _OFFSETS.unpack_from(raw, _OFFSETS_AT)
        head = raw[:84] + _NFCACHE_AND_OFFSETS.pack(0, at, size, 0) + bytes(16) + _cleaned(raw[ENTRY_SIZE:at])
        return Rule(head + self._target(_cleaned(raw[at:]), offset + size), packets, octets)

    def _target(self, target: bytes, following: int) -> bytes:
        if target[2] or len(target) != JUMP_SIZE:
            return target
        (verdict,) = _VERDICT.unpack_from(target, _HEAD_SIZE)
        if verdict == following:  # a rule without target: goes on to the next one
            return jump("")
        return jump(_VERDICTS.get(verdict) or self._names.get(verdict, f"?{verdict}"))

    def jumps_from_outside(self, own: Collection[str]) -> list[Jump]:
        """(chain, position, rule) of each rule outside the chains `own` that jumps or goes into one of them."""
        starts = {self.chains[name].start for name in own if name in self.chains}
        found = []
        for chain, span in self.chains.items():
            if chain in own:
                continue
            for position, (offset, size) in enumerate(self.offsets(span)):
                at = offset + _OFFSETS.unpack_from(self.blob, offset + _OFFSETS_AT)[0]
                if (
                    self.blob[at : at + 3] == _JUMP_HEAD
                    and _VERDICT.unpack_from(self.blob, at + _HEAD_SIZE)[0] in starts
                ):
                    found.append((chain, position, self._rule(offset, size)))
        return found
