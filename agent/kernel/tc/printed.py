"""What `tc -s class show` prints for an HTB class, and `tc -s qdisc show` for its root, from the kernel's own message.

Pure. Owns the spelling of iproute2 6.1: its rounding, its units, its blanks at the ends of lines. Called by the
shaper; the counters are also what the probe looks at. Layouts: linux/gen_stats.h, linux/pkt_sched.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from agent.kernel.netlink import attributes
from agent.kernel.tc import wire

TCA_STATS2 = 7
TCA_STATS_BASIC, TCA_STATS_RATE_EST, TCA_STATS_QUEUE, TCA_STATS_RATE_EST64, TCA_STATS_PKT64 = 1, 2, 3, 5, 8
TCA_HTB_RATE64, TCA_HTB_CEIL64 = 6, 7
TICKS_PER_MICROSECOND = 15.625


@dataclass(frozen=True, slots=True)
class ClassCounters:
    """What went through a class, and what waits in its leaf."""

    bytes: int = 0
    packets: int = 0
    drops: int = 0
    overlimits: int = 0
    requeues: int = 0
    backlog_bytes: int = 0
    backlog_packets: int = 0
    speed: tuple[int, int] | None = None  # bytes and packets per second; only with HTB's estimator switched on


def class_counters(data: bytes) -> ClassCounters:
    """From a class's whole message."""
    found = attributes(attributes(data, wire.BODY).get(TCA_STATS2, b""))
    count, packets = struct.unpack_from("=QI", found.get(TCA_STATS_BASIC, bytes(12)))
    if TCA_STATS_PKT64 in found:
        (packets,) = struct.unpack_from("=Q", found[TCA_STATS_PKT64])
    waiting, backlog, drops, requeues, overlimits = struct.unpack_from("=5I", found.get(TCA_STATS_QUEUE, bytes(20)))
    speed = None
    if TCA_STATS_RATE_EST64 in found:
        speed = struct.unpack_from("=QQ", found[TCA_STATS_RATE_EST64])
    elif TCA_STATS_RATE_EST in found:
        speed = struct.unpack_from("=II", found[TCA_STATS_RATE_EST])
    return ClassCounters(count, packets, drops, overlimits, requeues, backlog, waiting, speed)


def class_lines(data: bytes) -> str:
    """The first three lines that tc prints for the class, from its whole message."""
    return f"{_class_line(wire.parse(data))}\n{_count_lines(class_counters(data))}"


def root_lines(data: bytes) -> str:
    """The three lines that tc prints for an HTB at the root, from its whole message."""
    found = wire.parse(data)
    options = attributes(found.options)
    _, quantum, default, _, direct = struct.unpack_from("=5I", options.get(wire.TCA_HTB_INIT, bytes(20)))
    (queue,) = struct.unpack_from("=I", options.get(wire.TCA_HTB_DIRECT_QLEN, bytes(4)))
    users = f"refcnt {found.info} " if found.info != 1 else ""
    return (
        f"qdisc {found.kind} {wire.text_of_id(found.handle)} root {users}r2q {quantum} default {default:#x} "
        f"direct_packets_stat {direct} direct_qlen {queue}\n{_count_lines(class_counters(data))}"
    ).replace("default 0x0 ", "default 0 ")


def _count_lines(counters: ClassCounters) -> str:
    speed = ""
    if counters.speed is not None:
        speed = f" rate {rate_text(counters.speed[0])} {counters.speed[1]}pps"
    return (
        f" Sent {counters.bytes} bytes {counters.packets} pkt (dropped {counters.drops}, "
        f"overlimits {counters.overlimits} requeues {counters.requeues}) \n"
        f"{speed} backlog {size_text(counters.backlog_bytes)} {counters.backlog_packets}p "
        f"requeues {counters.requeues}\n"
    )


def _class_line(found: wire.Found) -> str:
    place = "root" if found.parent == wire.ROOT else f"parent {wire.text_of_id(found.parent)}"
    leaf = f"leaf {found.info >> 16:x}: " if found.info else ""
    options = attributes(found.options)
    opt = wire.HTB_OPT.unpack_from(options.get(wire.TCA_HTB_PARMS, bytes(wire.HTB_OPT.size)))
    overhead, rate, ceil, buffer, cbuffer, level, priority = (opt[i] for i in (2, 5, 11, 12, 13, 15, 16))
    rate = struct.unpack("=Q", options[TCA_HTB_RATE64])[0] if TCA_HTB_RATE64 in options else rate
    ceil = struct.unpack("=Q", options[TCA_HTB_CEIL64])[0] if TCA_HTB_CEIL64 in options else ceil
    return (
        f"class {found.kind} {wire.text_of_id(found.handle)} {place} {leaf}"
        + (f"prio {priority} " if level == 0 else "")
        + f"rate {rate_text(rate)} "
        + (f"overhead {overhead} " if overhead else "")
        + f"ceil {rate_text(ceil)} burst {size_text(_burst(rate, buffer))} cburst {size_text(_burst(ceil, cbuffer))} "
    )


def _burst(rate: int, ticks: int) -> int:
    """Bytes sent in so many ticks, rounded down twice as tc does: to whole microseconds, then to whole bytes."""
    return int(rate * float(int(ticks / TICKS_PER_MICROSECOND)) / 1_000_000)


def rate_text(bytes_per_second: int) -> str:
    """tc's print_rate: the largest unit that is whole, or that leaves at least four digits."""
    rate = bytes_per_second * 8
    unit = 0
    while unit < 4 and rate >= 1000 and (rate % 1000 == 0 or rate >= 1_000_000):
        rate //= 1000
        unit += 1
    return f"{rate}{('', 'K', 'M', 'G', 'T')[unit]}bit"


def size_text(size: int) -> str:
    """tc's print_size: binary units where the value is within a hair of a whole one."""
    mega, kilo = round(size / 2**20), round(size / 2**10)
    if size >= 2**20 and abs(mega * 2**20 - size) < 1024:
        return f"{mega:g}Mb"
    if size >= 2**10 and abs(kilo * 2**10 - size) < 16:
        return f"{kilo:g}Kb"
    return f"{size}b"
