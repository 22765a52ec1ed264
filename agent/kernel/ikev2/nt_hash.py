"""What MSCHAPv2 knows of a password: MD4 of its UTF-16 (RFC 2759, section 8.3). PURE.

OpenSSL 3 has MD4 no more, for nothing may rest on it; MSCHAPv2 does, inside what IKEv2 encrypts. FreeRADIUS asks for
this and not for the password, a text that it might expand. The algorithm: RFC 1320, whose vectors the tests try.
"""

from __future__ import annotations

import struct

_MASK = 0xFFFFFFFF
_START = 0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476
# Of each round: its constant, the order of the words, and by how much is rotated.
_ROUNDS = (
    (0, tuple(range(16)), (3, 7, 11, 19)),
    (0x5A827999, (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), (3, 5, 9, 13)),
    (0x6ED9EBA1, (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15), (3, 9, 11, 15)),
)


def nt_hash(password: str) -> str:
    """32 hexadecimal digits."""
    return md4(password.encode("utf-16-le")).hex()


def md4(data: bytes) -> bytes:
    padded = data + b"\x80" + bytes(-(len(data) + 9) % 64) + struct.pack("<Q", 8 * len(data) & (1 << 64) - 1)
    state = _START
    for at in range(0, len(padded), 64):
        state = tuple((a + b) & _MASK for a, b in zip(state, _block(state, padded[at : at + 64]), strict=True))  # type: ignore[assignment]
    return struct.pack("<4I", *state)


def _block(state: tuple[int, int, int, int], block: bytes) -> tuple[int, int, int, int]:
    a, b, c, d = state
    words = struct.unpack("<16I", block)
    for number, (constant, order, turns) in enumerate(_ROUNDS):
        for step, word in enumerate(order):
            mixed = (b & c | ~b & d, b & c | b & d | c & d, b ^ c ^ d)[number] & _MASK
            total = (a + mixed + words[word] + constant) & _MASK
            turn = turns[step % 4]
            a, b, c, d = d, (total << turn | total >> 32 - turn) & _MASK, b, c
    return a, b, c, d
