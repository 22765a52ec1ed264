"""What an honest client of IPsec would not send: any packet, in the session of somebody who is in.

The keys are read from what the client's charon logs of them (`both_client`). Source: RFC 4303, RFC 4106, RFC 3948.
"""

from __future__ import annotations

import itertools
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NAT_T = 4500  # UDP
NEXT = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}


@dataclass
class Session:
    """The way from the client to its server. `encapsulated`: in UDP."""

    key: bytes
    salt: bytes
    spi: bytes
    encapsulated: bool
    # Beyond what the client has sent itself: a number comes once.
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100_000))

    @classmethod
    def of(cls, says: Path, encapsulated: bool) -> Session:
        text = says.read_text()
        _, _, behind = text.rpartition("encryption initiator key => 36 bytes")
        digits = "".join(re.findall(r"^\d+\[CHD\] +\d+: ((?:[0-9A-F]{2} )+)", behind, re.MULTILINE)[:3]).split()
        secret = bytes(int(one, 16) for one in digits)[:36]
        (spi,) = re.findall(r"established with SPIs [0-9a-f]{8}_i ([0-9a-f]{8})_o", text)
        return cls(secret[:32], secret[32:], bytes.fromhex(spi), encapsulated)

    def send(self, packet: bytes, client: str, server: str) -> None:
        """In the client's namespace, between the two outer addresses."""
        number = next(self.numbers)
        head, nonce = self.spi + struct.pack("!I", number), struct.pack("!Q", number)
        padding = bytes(range(1, 1 + -(len(packet) + 2) % 4))
        plain = packet + padding + bytes((len(padding), NEXT[packet[0] >> 4]))
        sealed = head + nonce + AESGCM(self.key).encrypt(self.salt + nonce, plain, head)
        if self.encapsulated:
            sealed = struct.pack("!HHHH", NAT_T, NAT_T, 8 + len(sealed), 0) + sealed
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 17 if self.encapsulated else 50) as door:
            door.bind((client, 0))  # not by the tunnel itself
            door.sendto(sealed, (server, 0))


def udp_ipv6(source: str, target: str, port: int, data: bytes) -> bytes:
    """A whole packet."""
    ends = IPv6Address(source).packed + IPv6Address(target).packed
    length = 8 + len(data)
    ports = struct.pack("!HHH", 4000, port, length)
    pseudo = ends + struct.pack("!II", length, socket.IPPROTO_UDP) + ports + b"\0\0" + data + b"\0" * (length % 2)
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + ends
    return head + ports + struct.pack("!H", ~total & 0xFFFF or 0xFFFF) + data
