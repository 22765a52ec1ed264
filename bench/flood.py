"""A program: small packets as fast as one CPU sends them, by several ways in turns, and what each way took.

Reads one JSON object: ways (target, sources), rounds, packets. Prints one: for each way the nanoseconds of each round.

It runs on one CPU. Between network namespaces a packet passes the whole way, the forwarding host's rules included,
within the call that sends it; so the time of the calls is the time of the way.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import sys
import time
from ipaddress import IPv4Address
from typing import Any

TOGETHER = 256  # messages for one call
PORT = 9  # discard
PAYLOAD = bytes(22)  # 64 bytes on an Ethernet wire
IP_PKTINFO = 8  # linux/in.h; Python has no name for it
SOURCE_PORT = 9_009
PAUSE_SECONDS = 0.02


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_ulong),  # an int, and what fills struct msghdr up
        ("sent", ctypes.c_uint),
    )


class Way:
    """Messages to one target, from each of the sources by turns, made once."""

    def __init__(self, target: str, sources: list[str]) -> None:
        address = struct.pack("=H2s4s8x", socket.AF_INET, PORT.to_bytes(2, "big"), IPv4Address(target).packed)
        self._kept: list[Any] = [ctypes.create_string_buffer(address, 16), ctypes.create_string_buffer(PAYLOAD)]
        vector = _Vector(ctypes.addressof(self._kept[1]), len(PAYLOAD))
        self._kept.append(vector)
        self.messages = (_Message * TOGETHER)()
        for number in range(TOGETHER):
            source = IPv4Address(sources[number % len(sources)]).packed
            # cmsghdr (length, level, type), in_pktinfo (interface, source, unused)
            control = struct.pack("=Qii i4s4x4x", 28, socket.IPPROTO_IP, IP_PKTINFO, 0, source)
            self._kept.append(ctypes.create_string_buffer(control, 32))
            self.messages[number] = _Message(
                ctypes.addressof(self._kept[0]), 16, ctypes.addressof(vector), 1, ctypes.addressof(self._kept[-1]), 32
            )


def _send(libc: Any, sock: socket.socket, way: Way, packets: int) -> int:
    """Nanoseconds for so many packets."""
    began = time.perf_counter_ns()
    for _ in range(packets // TOGETHER):
        done = libc.sendmmsg(sock.fileno(), way.messages, TOGETHER, 0)
        if done != TOGETHER:
            raise OSError(ctypes.get_errno(), f"sendmmsg: {done} of {TOGETHER} messages")
    return time.perf_counter_ns() - began


def main(asked: dict[str, Any]) -> list[list[int]]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    libc = ctypes.CDLL(None, use_errno=True)
    ways = [Way(way["target"], way["sources"]) for way in asked["ways"]]
    times: list[list[int]] = [[] for _ in ways]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.bind(("", SOURCE_PORT))
        for way in ways:
            _send(libc, sock, way, asked["packets"])  # caches, conntrack
        for _ in range(asked["rounds"]):
            for taken, way in zip(times, ways, strict=True):
                taken.append(_send(libc, sock, way, asked["packets"]))
            time.sleep(PAUSE_SECONDS)
    return times


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
