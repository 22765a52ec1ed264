"""Packets of our own on the loopback, for trials: sent, answered, and found in a class.

Owns the sockets while a call lasts. Called by the probe and by the trials of nftables, in a scratch network namespace.
"""

from __future__ import annotations

import socket

from agent.errors import KernelError
from agent.kernel.tc import printed, shaper

WAIT_SECONDS = 1.0  # for one packet
SO_MARK = 36  # asm-generic/socket.h
LOOPBACK = "lo"
ADDRESS = "198.51.100.1"  # its own, which masquerading takes
MINOR = 0x109
MARK = 109
PAYLOAD = bytes(100)  # a datagram of 128 bytes with its headers
DATAGRAM = 128


def open_socket(address: str = "127.0.0.1") -> socket.socket:
    door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    door.settimeout(WAIT_SECONDS)
    door.bind((address, 0))
    return door


def send(count: int, mark: int = 0) -> None:
    with open_socket() as receiver, open_socket() as sender:
        sender.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        for _ in range(count):
            sender.sendto(PAYLOAD, receiver.getsockname())
            receiver.recv(2048)


def talk(source: str = "127.0.0.1") -> str:
    """A question and its answer; the address that the question seemed to come from."""
    with open_socket() as receiver, open_socket(source) as sender:
        sender.sendto(PAYLOAD, receiver.getsockname())
        _, seen = receiver.recvfrom(2048)
        receiver.sendto(PAYLOAD, seen)
        sender.recv(2048)
    return str(seen[0])


def connect() -> None:
    """A TCP connection, with its SYNs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), WAIT_SECONDS).close()


def packets_in_class() -> int:
    """What the class of MARK has let through. Raises KernelError where there is none."""
    data = shaper.read_class(LOOPBACK, MINOR)
    if data is None:
        raise KernelError("the class is not there")
    return printed.class_counters(data).packets
