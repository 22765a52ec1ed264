"""The layouts in which kernels list an element, against bytes that Linux 6.18 gave and against others that may come."""

from __future__ import annotations

import struct
import sys

import pytest

from agent.kernel.netlink import attribute, message
from agent.kernel.nftables.readout import Element, _parsed

# A dump of two elements; libnftables 1.0.6 had written them.
GIVEN = bytes.fromhex(
    "07000100 776c0000 0c000200 746f7761 72647300 94000300"
    "48000100 0c000100 08000100 0a010202 0c000200 08000100 6d000000 2c000700 0c000100 636f756e74657200 1c000200"
    "0c000100 0000200000000000 0c000200 0000000000000003"
    "48000100 0c000100 08000100 0a010201 0c000200 08000100 00a00000 2c000700 0c000100 636f756e74657200 1c000200"
    "0c000100 0000000000000007 0c000200 0000000000000001"
)


def parsed(*elements: bytes) -> list[tuple[bytes, Element]]:
    listed = attribute(1, b"wl\0") + attribute(2, b"towards\0") + attribute(3, b"".join(elements))
    return list(_parsed([message(0xA0C, 0, struct.pack("=BBH", 2, 0, 0) + listed)]))


def counter(packets: int, octets: int, *, padded: bool = False) -> bytes:
    padding = attribute(3, b"") if padded else b""
    numbers = padding + attribute(1, struct.pack(">Q", octets)) + padding + attribute(2, struct.pack(">Q", packets))
    return attribute(1, b"counter\0") + attribute(2, numbers)


def element(address: bytes, mark: int, *rest: bytes) -> bytes:
    value = mark.to_bytes(4, sys.byteorder)
    return attribute(1, attribute(1, attribute(1, address)) + attribute(2, attribute(1, value)) + b"".join(rest))


ONE = bytes([10, 0, 0, 1])


@pytest.mark.skipif(sys.byteorder != "little", reason="these bytes are of a little-endian machine")
def test_what_linux_gave_is_read() -> None:
    assert list(_parsed([message(0xA0C, 0, struct.pack("=BBH", 2, 0, 0) + GIVEN)])) == [
        (bytes([10, 1, 2, 2]), (0x6D, 3, 1 << 45)),
        (bytes([10, 1, 2, 1]), (0xA000, 1, 7)),
    ]


@pytest.mark.parametrize(
    "rest",
    [
        [attribute(7, counter(3, 4))],  # one expression
        [attribute(7, counter(3, 4, padded=True))],  # on machines that align numbers to eight bytes
        [attribute(11, attribute(1, counter(3, 4)))],  # a list of expressions
        [attribute(0x8007, counter(3, 4)), attribute(6, b"user data")],
        [attribute(3, bytes(4)), attribute(7, counter(3, 4))],  # flags
    ],
)
def test_every_layout_says_the_same(rest: list[bytes]) -> None:
    usual = element(bytes([10, 0, 0, 2]), 8, attribute(7, counter(5, 6)))
    assert parsed(usual, element(ONE, 7, *rest), usual) == [
        (bytes([10, 0, 0, 2]), (8, 5, 6)),
        (ONE, (7, 3, 4)),
        (bytes([10, 0, 0, 2]), (8, 5, 6)),
    ]


def test_an_element_that_counts_nothing_has_counted_nothing() -> None:
    quota = attribute(1, b"quota\0") + attribute(2, attribute(1, bytes(8)))
    assert parsed(element(ONE, 7)) == parsed(element(ONE, 7, attribute(7, quota))) == [(ONE, (7, 0, 0))]


def test_what_is_no_address_with_a_mark_is_left_out() -> None:
    assert parsed(element(bytes(8), 7), element(ONE, 7)) == [(ONE, (7, 0, 0))]
    assert parsed() == []
    assert parsed(b"\x48\0") == []
