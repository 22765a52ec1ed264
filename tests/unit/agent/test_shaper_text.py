"""The bytes and the text of classes, against layouts and lines written down by hand."""

from __future__ import annotations

import struct

import pytest

from agent.kernel.netlink import attribute, attributes
from agent.kernel.tc import printed, wire
from agent.model import MAX_RATE

SPEED = 125_000  # bytes per second of 1 Mbit/s


def htb_opt(rate: int, ceil: int, buffer: int, quantum: int = 3_000, prio: int = 0, level: int = 0) -> bytes:
    """struct tc_htb_opt, spelled out: two struct tc_ratespec of 12 bytes, five words."""
    spec = [struct.pack("=BBHhHI", 0, 1, 0, 0, 0, speed) for speed in (rate, ceil)]
    return b"".join(spec) + struct.pack("=5I", buffer, buffer, quantum, level, prio)


def class_message(opt: bytes, *, leaf: int = 0, parent: int = 0xFFFFFFFF, stats: bytes = b"") -> bytes:
    body = struct.pack("=BBHiIII", 0, 0, 0, 7, 0x10109, parent, leaf << 16)
    body += attribute(1, b"htb\0") + attribute(2, attribute(1, opt)) + attribute(7, stats)
    return struct.pack("=IHHII", 16 + len(body), 40, 2, 1, 1) + body


def test_text_is_the_example_of_the_v1_documents() -> None:
    burst = 640 * 15_625 // 1000  # 1600 bytes at 20 Mbit/s are 640 us, a tick is 64 ns
    message = class_message(htb_opt(20 * SPEED, 20 * SPEED, burst), leaf=0xCB97)
    assert printed.class_lines(message) == (
        "class htb 1:109 root leaf cb97: prio 0 rate 20Mbit ceil 20Mbit burst 1600b cburst 1600b \n"
        " Sent 0 bytes 0 pkt (dropped 0, overlimits 0 requeues 0) \n"
        " backlog 0b 0p requeues 0\n"
    )


def test_text_shows_counters_backlog_and_estimator() -> None:
    stats = attribute(1, struct.pack("=QIxxxx", 5_000_000_000, 7))
    stats += attribute(8, struct.pack("=Q", 5_000_000_000))  # packets beyond 2^32
    stats += attribute(3, struct.pack("=5I", 12, 15_360, 3, 4, 5)) + attribute(5, struct.pack("=QQ", 125_000, 90))
    message = class_message(htb_opt(SPEED, 2 * SPEED, 1_920_000), parent=0x10001, stats=stats)
    assert printed.class_lines(message) == (
        "class htb 1:109 parent 1:1 prio 0 rate 1Mbit ceil 2Mbit burst 15Kb cburst 30Kb \n"
        " Sent 5000000000 bytes 5000000000 pkt (dropped 3, overlimits 5 requeues 4) \n"
        " rate 1Mbit 90pps backlog 15Kb 12p requeues 4\n"
    )


def test_an_inner_class_has_no_priority_in_its_text() -> None:
    message = class_message(htb_opt(SPEED, SPEED, 1_920_000, level=1))
    assert printed.class_lines(message).startswith(
        "class htb 1:109 root rate 1Mbit ceil 1Mbit burst 15Kb cburst 15Kb \n"
    )


@pytest.mark.parametrize(
    ("bytes_per_second", "text"),
    [
        (0, "0bit"),
        (1, "8bit"),
        (125, "1Kbit"),
        (200, "1600bit"),
        (125_000, "1Mbit"),
        (187_500, "1500Kbit"),
        (125_000_000, "1Gbit"),
        (312_500_000, "2500Mbit"),
        (1_250_000_000, "10Gbit"),
        (125_001_000, "1Gbit"),
        (8_000_125, "64001Kbit"),
        (154_320_987, "1234Mbit"),
    ],
)
def test_rates_are_spelled_as_tc_does(bytes_per_second: int, text: str) -> None:
    assert printed.rate_text(bytes_per_second) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0b"),
        (1023, "1023b"),
        (1024, "1Kb"),
        (1039, "1Kb"),
        (1040, "1040b"),
        (15_345, "15Kb"),
        (15_344, "15344b"),
        (1_250_000, "1250000b"),
        (1_048_576, "1Mb"),
        (1_049_599, "1Mb"),
        (1_049_600, "1025Kb"),
        (3_145_728, "3Mb"),
    ],
)
def test_sizes_are_spelled_as_tc_does(size: int, text: str) -> None:
    assert printed.size_text(size) == text


def test_class_of_every_rate_reads_back_as_that_rate() -> None:
    for rate in range(1, MAX_RATE + 1):
        assert wire.rate_of(attribute(1, wire.htb_opt(rate))) == rate


def test_class_lets_a_burst_of_15_kilobytes_or_a_millisecond_through() -> None:
    for rate in (1, 7, 20, 122, 123, 1000, MAX_RATE):
        ticks = struct.unpack_from("=I", wire.htb_opt(rate), 24)[0]
        sent = rate * SPEED * ticks * 64e-9
        assert max(15_360, rate * 125) <= sent < max(15_360, rate * 125) + rate * SPEED * 64e-9 + 1


@pytest.mark.parametrize("offset", [2, 6, 8, 20, 24, 28, 32, 36, 40])
def test_class_that_differs_in_any_field_has_no_rate(offset: int) -> None:
    """overhead, mpu, rate, ceil, burst, cburst, quantum, level, priority"""
    opt = bytearray(wire.htb_opt(20))
    opt[offset] ^= 1
    assert wire.rate_of(attribute(1, bytes(opt))) == -1


def test_class_message_has_no_rate_tables() -> None:
    message = wire.put_class(7, 0x109, 20)
    assert len(message) == struct.unpack_from("=I", message)[0] == 96
    assert struct.unpack_from("=HH", message, 4) == (40, 0x1 | 0x400)  # RTM_NEWTCLASS; REQUEST | CREATE
    assert struct.unpack_from("=BBHiIII", message, 16) == (0, 0, 0, 7, 0x10109, 0xFFFFFFFF, 0)


def test_bfifo_holds_a_tenth_of_a_second_but_always_a_full_segment() -> None:
    assert wire.leaf_for(20, "bfifo") == wire.Leaf("bfifo", 250_000)
    assert wire.leaf_for(MAX_RATE, "bfifo") == wire.Leaf("bfifo", 125_000_000)
    assert wire.leaf_for(1, "bfifo").limit > 65_536


def test_fq_codel_stays_small_and_lets_a_full_packet_through_at_any_rate() -> None:
    for rate in (1, 2, 3, 20, 100, 1000, MAX_RATE):
        leaf = wire.leaf_for(rate, "fq_codel")
        assert leaf.limit >= 1000
        assert 1 << 20 <= leaf.memory <= 32 << 20
        assert leaf.target >= 5
        assert leaf.target / 1000 * rate * SPEED >= 1514
    assert wire.leaf_for(20, "fq_codel").target == 5


def test_fq_codel_reads_back_as_written_in_spite_of_the_kernels_rounding() -> None:
    leaf = wire.leaf_for(1, "fq_codel")
    numbers = attributes(attributes(wire.add_leaf(7, 0x109, leaf), wire.BODY)[2])
    assert struct.unpack("=I", numbers[5]) == (64,)  # flows
    target = struct.unpack("=I", numbers[1])[0]
    numbers[1] = struct.pack("=I", ((target * 1000 >> 10) << 10) // 1000)  # kept in units of 1024 ns
    found = b"".join(attribute(number, value) for number, value in numbers.items())
    assert wire.leaf_of("fq_codel", found) == leaf


def test_fq_codel_is_changed_without_naming_its_flows() -> None:
    options = attributes(attributes(wire.change_leaf(7, 0x109, wire.leaf_for(1, "fq_codel")), wire.BODY)[2])
    assert options.keys() == {1, 2, 9}


@pytest.mark.parametrize(("number", "text"), [(0x10000, "1:"), (0x10109, "1:109"), (0x1FFFE, "1:fffe"), (0, "0:")])
def test_ids_are_spelled_in_hex(number: int, text: str) -> None:
    assert wire.text_of_id(number) == text
