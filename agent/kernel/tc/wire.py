"""Traffic control as Linux spells it: the messages for our qdiscs, filters, classes and leaves, and what they say.

Pure: bytes in, bytes out. Owns every number that shapes (burst, quantum, leaf sizes). Opens no socket and
decides nothing. Called by the shaper.
Layouts: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from agent.kernel.netlink import (
    HEADER_BYTES,
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attribute,
    attributes,
    message,
)
from agent.kernel.tc import classifier

RTM_GETLINK, IFLA_QDISC = 18, 6
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TCA_KIND, TCA_OPTIONS, TCA_CHAIN = 1, 2, 11
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_DIRECT_QLEN = 1, 2, 5
DIRECT_PACKETS = 1000  # that may wait for the interface without a class; the usual txqueuelen
TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS_GEN = 4, 5, 9
TCA_FQ_CODEL_TARGET, TCA_FQ_CODEL_LIMIT, TCA_FQ_CODEL_FLOWS, TCA_FQ_CODEL_MEMORY_LIMIT = 1, 2, 5, 9

ROOT = 0xFFFFFFFF  # TC_H_ROOT, as a parent
HANDLE = classifier.MAJOR  # `1:`, our root qdisc
PROGRAM = classifier.packed(classifier.PROGRAM)
FILTER_PRIORITY = 1
FILTER_HANDLE = 1
ETH_P_ALL = 0x0003
FILTER_INFO = FILTER_PRIORITY << 16 | (ETH_P_ALL << 8)  # the protocol is in network byte order
# HTB has no name to carry. `r2q` takes part only in classes without a quantum, and ours all have one: it is our sign.
SIGN = 0x574C

BYTES_PER_MEGABIT = 125_000  # a rate of 1 Mbit/s is 10^6 bit/s
TICKS_PER_SECOND = 15_625_000  # of 64 ns, the unit of bursts since Linux 2.6.31 (/proc/net/psched)
MIN_BURST = 15 * 1024  # bytes
BURST_TICKS = TICKS_PER_SECOND // 1000  # but never less than 1 ms of the rate: timers are late by some 10 us
QUANTUM = 3_028  # bytes of one turn among classes that may send: two full Ethernet frames. Explicit: no r2q warning
LINKLAYER_ETHERNET = 1  # the kernel computes transmission times itself: no rate tables in the message

FLOWS = 64  # of a leaf; 1024 (the default) are 70 kB, too much ten thousand times
FULL_PACKET = 1514  # bytes
MIN_FQ_CODEL_PACKETS = 1_000
MIN_FQ_CODEL_BYTES = 1 << 20  # of memory, which is about twice the length of the packets
MAX_FQ_CODEL_BYTES = 32 << 20  # the kernel's default
# A TCP sender near by hands over 64 kB at once, which stay one packet until after this queue (GSO). Where such a packet
# can never enter, TCP falls to 5 % of the rate (measured at 1, 2 and 5 Mbit/s); with this it holds 90-95 %.
MIN_BFIFO_BYTES = 65_536 + 15_000

_LINK = struct.Struct("=4xi8x")  # ifinfomsg: index
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
HTB_OPT = struct.Struct("=BBHhHI BBHhHI IIIII")  # ratespec rate, ceil; buffer, cbuffer, quantum, level, prio
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_HEAD = struct.Struct(f"={HEADER_BYTES}x4xiIIIHH")  # ifindex, handle, parent, info; the first attribute
BODY = HEADER_BYTES + _TCMSG.size  # where attributes begin


def text_of_id(number: int) -> str:
    """As tc writes handles and class ids: `1:`, `1:109`."""
    minor = number & 0xFFFF
    return f"{number >> 16:x}:{minor:x}" if minor else f"{number >> 16:x}:"


# -- what is found ------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """A qdisc, class or filter: the head of its message. (A tuple: twenty thousand of them are made in a resync.)"""

    ifindex: int
    handle: int
    parent: int
    info: int  # of a class: the handle of its leaf; of a filter: priority and protocol
    kind: str
    options: bytes


def parse(data: bytes) -> Found:
    """Reads the kind, which the kernel puts first, and the options: next, or behind the chain of a filter."""
    ifindex, handle, parent, info, length, number = _HEAD.unpack_from(data)
    if number != TCA_KIND:
        raise ValueError("a traffic control message does not begin with its kind")
    kind = data[BODY + 4 : BODY + length - 1].decode()
    start = BODY + (length + 3 & ~3)
    options = b""
    while start < len(data):
        length, number = _ATTRIBUTE.unpack_from(data, start)
        if number & NLA_TYPE_MASK == TCA_OPTIONS:
            options = data[start + 4 : start + length]
            break
        start += length + 3 & ~3
    return Found(ifindex, handle, parent, info, kind, options)


# -- root qdisc and classifier ------------------------------------------------------------------------------------


def _body(ifindex: int, handle: int, parent: int, info: int = 0) -> bytes:
    return _TCMSG.pack(0, ifindex, handle, parent, info)


def get_root(ifindex: int) -> bytes:
    return message(RTM_GETQDISC, 0, _body(ifindex, 0, ROOT))


def list_devices() -> bytes:
    return message(RTM_GETLINK, 0, bytes(_LINK.size))


def has_htb(device: bytes) -> bool:
    """Is HTB the root of it? `device`: as `list_devices` shows it."""
    return b"htb\0" in device and attributes(device, HEADER_BYTES + _LINK.size).get(IFLA_QDISC) == b"htb\0"


def index_of(device: bytes) -> int:
    return int(_LINK.unpack_from(device, HEADER_BYTES)[0])


def list_qdiscs() -> bytes:
    """Of all devices: the kernel takes no filter here."""
    return message(RTM_GETQDISC, 0, _body(0, 0, 0))


def add_root(ifindex: int) -> bytes:
    """Refused (EEXIST) by the kernel where anything but its own default is there."""
    glob = struct.pack("=5I", 3, SIGN, 0, 0, 0)  # tc_htb_glob: version, rate2quantum, default class, debug, out
    # Else it would be the interface's txqueuelen: with 0, as some drivers have it, everything that has no class is
    # dropped, the administrator's own connection first.
    queue = attribute(TCA_HTB_DIRECT_QLEN, struct.pack("=I", DIRECT_PACKETS))
    options = attribute(TCA_KIND, b"htb\0") + attribute(TCA_OPTIONS, attribute(TCA_HTB_INIT, glob) + queue)
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, _body(ifindex, HANDLE, ROOT) + options)


def delete_root(ifindex: int) -> bytes:
    return message(RTM_DELQDISC, 0, _body(ifindex, HANDLE, ROOT))


def is_htb_like_ours(root: Found | None) -> bool:
    """HTB `1:` default 0, whoever made it."""
    return root is not None and root.kind == "htb" and root.handle == HANDLE and _glob(root)[1] == 0


def is_signed(root: Found | None) -> bool:
    return root is not None and is_htb_like_ours(root) and _glob(root)[0] == SIGN


def lets_unclassified_through(root: Found) -> bool:
    """A queue of no length drops all of it; Linux cannot change it in a root that stands."""
    queue = attributes(root.options).get(TCA_HTB_DIRECT_QLEN, b"")
    return len(queue) != 4 or bool(struct.unpack("=I", queue)[0])


def _glob(root: Found) -> tuple[int, int]:
    """rate2quantum and default class of an HTB."""
    glob = attributes(root.options).get(TCA_HTB_INIT, b"")
    if len(glob) < 12:
        return (-1, -1)
    _, sign, default = struct.unpack_from("=3I", glob)
    return sign, default


def list_filters(ifindex: int) -> bytes:
    """Of the first chain, the only one that packets enter."""
    return message(RTM_GETTFILTER, 0, _body(ifindex, 0, HANDLE) + attribute(TCA_CHAIN, bytes(4)))


def put_filter(ifindex: int) -> bytes:
    """Makes the classifier, or puts our program in the place of another one without a gap."""
    program = attribute(TCA_BPF_OPS_LEN, struct.pack("=H", len(classifier.PROGRAM))) + attribute(TCA_BPF_OPS, PROGRAM)
    attached = attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, program)
    body = _body(ifindex, FILTER_HANDLE, HANDLE, FILTER_INFO)
    return message(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, body + attached)


def delete_filter(ifindex: int, info: int, handle: int = 0) -> bytes:
    """One filter, or with handle 0 all of that priority."""
    return message(RTM_DELTFILTER, 0, _body(ifindex, handle, HANDLE, info))


def is_in_our_place(found: Found) -> bool:
    """Is it a BPF filter (or the head of their list, which has handle 0) at our priority."""
    return found.kind == "bpf" and found.info == FILTER_INFO


def is_our_filter(found: Found) -> bool:
    """Compared by its instructions: the kernel keeps no name for a classic program."""
    options = attributes(found.options)
    return (
        is_in_our_place(found)
        and found.handle == FILTER_HANDLE
        and options.get(TCA_BPF_OPS) == PROGRAM
        and options.keys() <= {TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS_GEN}  # no direct-action, action or class id
    )


# -- classes ------------------------------------------------------------------------------------------------------


def list_classes(ifindex: int) -> bytes:
    """Those of the root only: fq_codel shows its busy flows as classes."""
    return message(RTM_GETTCLASS, 0, _body(ifindex, 0, HANDLE))


def get_class(ifindex: int, minor: int) -> bytes:
    return message(RTM_GETTCLASS, 0, _body(ifindex, HANDLE | minor, 0))


def put_class(ifindex: int, minor: int, rate: int) -> bytes:
    """Makes the class, or changes its rate in place: what is queued stays queued."""
    return message(RTM_NEWTCLASS, NLM_F_CREATE, _body(ifindex, HANDLE | minor, ROOT) + _class_attributes(rate))


def delete_class(ifindex: int, minor: int) -> bytes:
    return message(RTM_DELTCLASS, 0, _body(ifindex, HANDLE | minor, 0))


def htb_opt(rate: int) -> bytes:
    """struct tc_htb_opt for a rate in Mbit/s, as the kernel takes it and gives it back."""
    speed = rate * BYTES_PER_MEGABIT
    burst = max(-(-MIN_BURST * TICKS_PER_SECOND // speed), BURST_TICKS)
    spec = (0, LINKLAYER_ETHERNET, 0, 0, 0, speed)
    return HTB_OPT.pack(*spec, *spec, burst, burst, QUANTUM, 0, 0)


@lru_cache(1024)
def _class_attributes(rate: int) -> bytes:
    return attribute(TCA_KIND, b"htb\0") + attribute(TCA_OPTIONS, attribute(TCA_HTB_PARMS, htb_opt(rate)))


@lru_cache(1024)
def rate_of(options: bytes) -> int:
    """Mbit/s of a class that is exactly as we make it, else -1 (other ceil, burst, quantum, odd rate, inner class)."""
    opt = attributes(options).get(TCA_HTB_PARMS, b"")
    if len(opt) != HTB_OPT.size:
        return -1
    rate = int(HTB_OPT.unpack(opt)[5]) // BYTES_PER_MEGABIT
    return rate if rate > 0 and htb_opt(rate) == opt else -1


# -- leaves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leaf:
    """The queue of a class. For `fq_codel` the limit is in packets, for `bfifo` in bytes."""

    kind: str
    limit: int
    memory: int = 0  # bytes; fq_codel only
    target: int = 0  # ms; fq_codel only


@lru_cache(1024)
def leaf_for(rate: int, kind: str) -> Leaf:
    """About 100 ms of the rate (Mbit/s): more only makes people wait, less starves one fast connection.

    fq_codel holds the wait at `target` by itself, so its limits are bounds of memory; the target must let one full
    packet through (tc-fq_codel(8)), which takes longer than the default 5 ms below 3 Mbit/s.
    """
    content = rate * BYTES_PER_MEGABIT // 10
    if kind == "bfifo":
        return Leaf(kind, max(content, MIN_BFIFO_BYTES))
    memory = min(max(2 * content, MIN_FQ_CODEL_BYTES), MAX_FQ_CODEL_BYTES)
    target = max(5, -(-3 * FULL_PACKET * 1000 // (2 * rate * BYTES_PER_MEGABIT)))
    return Leaf(kind, max(content // FULL_PACKET, MIN_FQ_CODEL_PACKETS), memory, target)


@lru_cache(1024)
def leaf_of(kind: str, options: bytes) -> Leaf:
    """The leaf as found. Its number of flows is left out: the kernel cannot change it in place."""
    if kind == "bfifo" and len(options) >= 4:
        return Leaf(kind, struct.unpack_from("=I", options)[0])
    if kind != "fq_codel":
        return Leaf(kind, 0)
    found = attributes(options)
    numbers = (TCA_FQ_CODEL_LIMIT, TCA_FQ_CODEL_MEMORY_LIMIT, TCA_FQ_CODEL_TARGET)
    limit, memory, target = (struct.unpack_from("=I", found.get(number, bytes(4)))[0] for number in numbers)
    return Leaf(kind, limit, memory, round(target / 1000))  # us, kept by the kernel in units of 1.024 us


def add_leaf(ifindex: int, minor: int, leaf: Leaf) -> bytes:
    """For a class that has no leaf but the kernel's own; else refused (EEXIST)."""
    flags = NLM_F_CREATE | NLM_F_EXCL
    return message(RTM_NEWQDISC, flags, _leaf_body(ifindex, minor) + _leaf_attributes(leaf, True))


def change_leaf(ifindex: int, minor: int, leaf: Leaf) -> bytes:
    """In place: what is queued stays queued. Refused where there is none of ours or one of another kind."""
    return message(RTM_NEWQDISC, 0, _leaf_body(ifindex, minor) + _leaf_attributes(leaf, False))


def add_fq_codel_root(ifindex: int, flows: int) -> bytes:
    """For a trial: with 0 flows it is always refused, as wrong (EINVAL) where the kernel knows fq_codel."""
    options = attribute(TCA_FQ_CODEL_FLOWS, struct.pack("=I", flows))
    body = _body(ifindex, HANDLE, ROOT) + attribute(TCA_KIND, b"fq_codel\0") + attribute(TCA_OPTIONS, options)
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, body)


def delete_leaf(ifindex: int, minor: int) -> bytes:
    return message(RTM_DELQDISC, 0, _body(ifindex, 0, HANDLE | minor))


def _leaf_body(ifindex: int, minor: int) -> bytes:
    return _body(ifindex, minor << 16, HANDLE | minor)


@lru_cache(1024)
def _leaf_attributes(leaf: Leaf, new: bool) -> bytes:
    kind = attribute(TCA_KIND, leaf.kind.encode() + b"\0")
    if leaf.kind == "bfifo":
        return kind + attribute(TCA_OPTIONS, struct.pack("=I", leaf.limit))
    numbers = {
        TCA_FQ_CODEL_TARGET: leaf.target * 1000,  # us
        TCA_FQ_CODEL_LIMIT: leaf.limit,
        TCA_FQ_CODEL_MEMORY_LIMIT: leaf.memory,
    }
    if new:  # fixed for the life of the leaf: naming it in a change is refused
        numbers[TCA_FQ_CODEL_FLOWS] = FLOWS
    options = b"".join(attribute(number, struct.pack("=I", value)) for number, value in numbers.items())
    return kind + attribute(TCA_OPTIONS, options)
