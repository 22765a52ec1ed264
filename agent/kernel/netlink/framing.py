"""PURE: netlink messages as bytes, both ways (netlink(7)).

Owns headers, attributes, and what an error message says; the only place that takes a datagram apart. Opens nothing.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

# linux/netlink.h
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_CAPPED = 0x100  # in an error message: the refused request is not repeated in it
NLM_F_ACK_TLVS = 0x200  # in an error message: attributes follow
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
NETLINK_NETFILTER = 12  # Python has no name for it
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence number, port
_ATTRIBUTE = struct.Struct("=HH")  # length with these four bytes, type
HEADER_BYTES = HEADER.size


@dataclass(frozen=True, slots=True)
class Refusal:
    """Linux said no to one message of a batch."""

    index: int  # of the message in the batch
    errno: int
    text: str  # the kernel's own words where it has any, else those of strerror(3)


def attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from offset `start` to the end, by type; of a repeated one the last."""
    found = {}
    end = len(data)
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            break
        found[kind & NLA_TYPE_MASK] = data[start + 4 : start + length]
        start += length + 3 & ~3
    return found


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request; `Netlink` fills in the sequence number."""
    return HEADER.pack(HEADER_BYTES + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def nested(data: bytes) -> list[bytes]:
    """The members of an array of attributes; their types are mere numbers."""
    members = []
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length = _ATTRIBUTE.unpack_from(data, offset)[0]
        if length < 4:
            break
        members.append(data[offset + 4 : offset + length])
        offset += length + 3 & ~3
    return members


def split(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """What one recv brought, as (type, flags, sequence, whole message)."""
    found = []
    offset, end = 0, len(data)
    while offset + HEADER_BYTES <= end:
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        found.append((kind, flags, sequence, data[offset : offset + length]))
        offset += max(length, HEADER_BYTES) + 3 & ~3
    return found


def refusal_in(data: bytes, flags: int, index: int) -> Refusal | None:
    """Reads an NLMSG_ERROR or NLMSG_DONE; None when it says that all went well."""
    if len(data) < HEADER_BYTES + 4:
        return None
    code = -struct.unpack_from("=i", data, HEADER_BYTES)[0]
    if code <= 0:
        return None
    text = os.strerror(code)
    kind = HEADER.unpack_from(data)[1]
    if flags & NLM_F_ACK_TLVS:
        start = HEADER_BYTES + 4
        if kind == NLMSG_ERROR:  # the refused request's header follows the code, and its body if not capped
            refused = struct.unpack_from("=I", data, start)[0]
            start += HEADER_BYTES if flags & NLM_F_CAPPED else refused + 3 & ~3
        spoken = attributes(data, start).get(NLMSGERR_ATTR_MSG)
        if spoken:
            text = spoken.rstrip(b"\0").decode(errors="replace")
    return Refusal(index, code, text)
