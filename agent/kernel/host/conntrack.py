"""The connections that Linux remembers: who gets an address next gets nothing that was sent to the former.

Owns nothing: it deletes entries of connection tracking that speak of the addresses it is told, whoever made them, and
touches no other. Called by the one writer, between the peers that go and those that come; and by the warnings.

Why: an answer from the internet is led to the address that once asked, for as long as Linux remembers the question:
30 s for UDP, five days for TCP. Taking the peer away does not end that, it only leaves the answers without a way.

An entry has two tuples. The one that began: its source is the address where the account asked. And the reply: its
source is the address where somebody else began, also where the destination was translated.

Measured: one address costs 17 ms where there are 10,000 entries and 140 ms where there are 250,000 (the kernel looks
for two tuples); to read them all and pick costs 30 and 430 ms, for one address or a thousand. So one or two are asked
for one by one.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection, Iterable
from socket import AF_INET, AF_INET6

from agent.errors import KernelError
from agent.kernel.netlink import (
    HEADER_BYTES,
    NETLINK_NETFILTER,
    Netlink,
    Refusal,
    attribute,
    attributes,
    message,
)
from agent.model import Address
from agent.objects import Port, Scope

ASK_AT_MOST = 2  # addresses looked for one by one
FULL_SHARE = 0.9  # of the table, from which on the operator is warned

# linux/netfilter/nfnetlink_conntrack.h; 1 << 8 is NFNL_SUBSYS_CTNETLINK
_GET, _DELETE, _GET_STATS = 1 << 8 | 1, 1 << 8 | 2, 1 << 8 | 5
_ORIG, _REPLY, _ZONE, _FILTER = 1, 2, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_PROTOCOLS = {b"\6": "tcp", b"\x11": "udp"}
_IP_SOURCE = {4: 1, 16: 3}  # by the length of an address
_BY_SOURCE = struct.pack("=I", 1)  # CTA_FILTER_FLAG(CTA_IP_SRC)
_BY_NOTHING = struct.pack("=I", 0)
_NESTED = 0x8000
_OF = {length: struct.pack("=BBH", family, 0, 0) for length, family in ((4, AF_INET), (16, AF_INET6))}  # nfgenmsg
_IPV4 = _OF[4]
_STATS_ENTRIES, _STATS_MOST = 1, 2
_LENGTH = struct.Struct("=H")
# Where the parts of an entry lie: the tuple that began is the first attribute, the reply the next; in each the source
# comes after three heads of four bytes (tuple, IP, source).
_ORIG_AT = HEADER_BYTES + len(_IPV4)
_SOURCE_AT = 12


def forget(addresses: Collection[Address]) -> int:
    """No packet is led to or from these addresses by what was before. Returns how many entries went.

    Raises KernelError; with retry False where the kernel cannot be asked.
    """
    return sum(_forget(length, {a.packed for a in addresses if len(a.packed) == length}) for length in _OF)


def forget_led(ports: Collection[Port]) -> None:
    """Nobody is led on by one of these ports who came in by it. Raises KernelError, as `forget`."""
    if not ports:
        return
    led, some = {(one.protocol, one.port, one.address.packed, one.to_port) for one in ports}, set[bytes]()
    some.update(one.address.packed for one in ports)
    with Netlink(NETLINK_NETFILTER) as netlink:
        found: dict[bytes, None] = {}
        for request in _requests(4, some):
            entries = netlink.dump(request, torn_will_do=True, keep=lambda entry: _sources(entry, 4)[1] in some)
            found |= {_name(entry): None for entry in entries if _led(entry) in led}
        _delete_all(netlink, 4, found)


def _led(entry: bytes) -> tuple[str, int, bytes, int]:
    """Protocol, the port that was asked for, and who answers."""
    parts = attributes(entry, _ORIG_AT)
    first, reply = (attributes(parts[one]) for one in (_ORIG, _REPLY))
    asked, answers = (attributes(one.get(_TUPLE_PROTO, b"")) for one in (first, reply))
    port, to_port = (int.from_bytes(of.get(key, b""), "big") for of, key in ((asked, 3), (answers, 2)))
    protocol = _PROTOCOLS.get(asked.get(1, b""), "")
    return protocol, port, attributes(reply[_TUPLE_IP]).get(_IP_SOURCE[4], b""), to_port


def _forget(length: int, some: Collection[bytes]) -> int:
    """Of one family: addresses of this length."""
    if not some:
        return 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        if not _entries(netlink):
            return 0
        found: dict[bytes, None] = {}  # an entry may be found by both tuples
        for request in _requests(length, some):
            entries = netlink.dump(
                request, torn_will_do=True, keep=lambda entry: any(one in some for one in _sources(entry, length))
            )
            found |= dict.fromkeys(map(_name, entries))
        return _delete_all(netlink, length, found)


def _delete_all(netlink: Netlink, length: int, found: Collection[bytes]) -> int:
    refusals = netlink.send([message(_DELETE, 0, _OF[length] + name) for name in found])
    for refusal in refusals:
        if refusal.errno != errno.ENOENT:  # gone by itself meanwhile
            raise KernelError(f"connection tracking: an entry could not be deleted: {refusal.text}")
    return len(found) - len(refusals)


def warnings(scope: Scope) -> Iterable[str]:
    """What a kernel without this netlink family means for the node."""
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            entries, most = _entries(netlink), _stats(netlink).get(_STATS_MOST, 0)
        if most and entries >= most * FULL_SHARE:
            yield (
                f"Linux remembers {entries:,} connections of at most {most:,}: without room no new one passes, whoever "
                "begins it; raise net.netfilter.nf_conntrack_max, or lower connections_per_account in agent.toml"
            )
    except KernelError as error:
        if not error.retry:
            yield (
                f"connections of a deleted or disabled account are not forgotten ({error}): who gets its address next "
                "may receive what was sent to it; load the module nf_conntrack_netlink"
            )


def _entries(netlink: Netlink) -> int:
    """How many there are in this namespace."""
    return _stats(netlink).get(_STATS_ENTRIES, 1)


def _stats(netlink: Netlink) -> dict[int, int]:
    answer = netlink.ask(message(_GET_STATS, 0, _IPV4))
    if isinstance(answer, Refusal):
        temporary = answer.errno in (errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN)
        raise KernelError(f"connection tracking: netlink: {answer.text}", retry=temporary)
    return {kind: int.from_bytes(number, "big") for kind, number in attributes(answer or b"", _ORIG_AT).items()}


def _requests(length: int, some: Collection[bytes]) -> list[bytes]:
    if len(some) > ASK_AT_MOST:
        return [message(_GET, 0, _OF[length])]
    return [message(_GET, 0, _OF[length] + _selecting(tuple_, raw)) for raw in some for tuple_ in (_ORIG, _REPLY)]


def _selecting(tuple_: int, source: bytes) -> bytes:
    """Older kernels (before 5.8) show everything all the same."""
    named = attribute(_TUPLE_IP | _NESTED, attribute(_IP_SOURCE[len(source)], source))
    by = {which: _BY_SOURCE if which == tuple_ else _BY_NOTHING for which in (_ORIG, _REPLY)}
    flags = b"".join(attribute(which, flag) for which, flag in by.items())
    return attribute(tuple_ | _NESTED, named) + attribute(_FILTER | _NESTED, flags)


def _sources(entry: bytes, length: int) -> tuple[bytes, bytes]:
    """Of both tuples. Written for speed: once for each of perhaps 250,000 entries."""
    reply_at = _ORIG_AT + _LENGTH.unpack_from(entry, _ORIG_AT)[0]
    first, second = _ORIG_AT + _SOURCE_AT, reply_at + _SOURCE_AT
    return entry[first : first + length], entry[second : second + length]


def _name(entry: bytes) -> bytes:
    """What it is deleted by: the tuple that began, and its zone if it has one."""
    parts = attributes(entry, _ORIG_AT)
    zone = attribute(_ZONE, parts[_ZONE]) if _ZONE in parts else b""
    return attribute(_ORIG | _NESTED, parts[_ORIG]) + zone
