"""Who encrypts the packets of IKEv2: the kernel, where it can, else charon itself. Found out by doing it.

A state with a number of ours is added for an address of loopback and taken away again: nothing ever matches it. And an
XFRM interface is asked for, which is how such packets get a device of their own: by a request that is wrong in itself,
so that it is refused in any case, as unknown or as wrong. No link comes and goes for it, in no namespace.
"""

from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.ikev2 import programs
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.leftovers import NETLINK_XFRM, XFRM_ID, XFRM_MSG_DELSA
from agent.kernel.ikev2.responder import Esp, missing, occupied, version
from agent.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, Refusal, attribute, message
from agent.model import IKEV2_DEVICE

# linux/xfrm.h
XFRM_MSG_NEWSA = 0x10
XFRMA_ALG_AEAD = 18
XFRM_MODE_TUNNEL = 1
# linux/rtnetlink.h, linux/if_link.h
RTM_NEWLINK = 16
IFLA_IFNAME, IFLA_LINKINFO = 3, 18
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
IFLA_XFRM_IF_ID = 2
_INTERFACE = struct.Struct("=BxHiII")  # ifinfomsg
_SELECTOR = struct.Struct("=16s16sHHHHHBBBxxxiI")  # xfrm_selector: 56 bytes
_ID = struct.Struct("!16s4sB3x")  # xfrm_id: daddr, spi, proto
_LIFETIME = struct.Struct("=8Q")  # xfrm_lifetime_cfg
_CURRENT = struct.Struct("=4Q")  # xfrm_lifetime_cur
_STATS = struct.Struct("=3I")
_TAIL = struct.Struct("=IIHBBB7x")  # seq, reqid, family, mode, replay window, flags; padded to 8
_AEAD = struct.Struct("=64sII")  # name, bits of the key, bits of the check value
_DELETE = struct.Struct("=16s4sHBx")  # xfrm_usersa_id
_NUMBER = struct.pack("!I", XFRM_ID)
_HERE, _THERE = (socket.inet_aton(text) for text in ("127.0.0.1", "127.0.0.2"))


def choose(configured: str) -> Esp:
    """What `ikev2.esp` of agent.toml ("auto", "kernel", "userspace") comes to. Raises KernelError."""
    if configured == "userspace":
        return "userspace"
    reason = lacking()
    if not reason:
        return "kernel"
    if configured == "kernel":
        raise KernelError(f"ikev2.esp = kernel: {reason}; set it to auto", retry=False)
    return "userspace"


def describe(configured: str, folder: Path) -> str:
    """For the doctor: could a server have IKEv2 here, and who would encrypt."""
    running, _ = version(folder)
    if reason := missing() or ("" if running or programs.running(Paths(folder)) else occupied()):
        return f"IKEv2: no server can have it here: {reason}"
    try:
        chosen = choose(configured)
    except KernelError as error:
        return f"IKEv2: no server can have it here: {error}"
    by = "charon itself" if chosen == "userspace" else "the kernel"
    return (
        f"IKEv2: {running or 'off, a server may have it'}; packets are encrypted by {by} (ikev2.esp = {configured!r})"
    )


def lacking() -> str:
    """ "" or what this kernel lacks for it."""
    try:
        with Netlink(NETLINK_XFRM) as netlink:
            answer = netlink.ask(_new_state())
            if isinstance(answer, Refusal):
                return f"this kernel has no ESP ({answer.text})"
            netlink.ask(_old_state())
    except KernelError as error:
        return f"this kernel has no IPsec ({error})"
    with Netlink() as netlink:
        refusal = netlink.ask(_no_interface())
    if isinstance(refusal, Refusal) and refusal.errno == errno.EINVAL:
        return ""
    return f"this kernel has no XFRM interfaces ({refusal.text if isinstance(refusal, Refusal) else 'no answer'})"


def _new_state() -> bytes:
    unlimited = (1 << 64) - 1
    body = b"".join(
        (
            _SELECTOR.pack(bytes(16), bytes(16), 0, 0, 0, 0, socket.AF_INET, 0, 0, 0, 0, 0),
            _ID.pack(_THERE, _NUMBER, socket.IPPROTO_ESP),
            _HERE.ljust(16, b"\0"),
            _LIFETIME.pack(*[unlimited] * 4, 0, 0, 0, 0),
            _CURRENT.pack(0, 0, 0, 0),
            _STATS.pack(0, 0, 0),
            _TAIL.pack(0, 0, socket.AF_INET, XFRM_MODE_TUNNEL, 32, 0),
        )
    )
    key = bytes(range(20))  # rfc4106: 16 bytes of AES and 4 of salt; it protects nothing
    aead = _AEAD.pack(b"rfc4106(gcm(aes))", len(key) * 8, 128) + key
    return message(XFRM_MSG_NEWSA, 0, body + attribute(XFRMA_ALG_AEAD, aead))


def _old_state() -> bytes:
    return message(XFRM_MSG_DELSA, 0, _DELETE.pack(_THERE, _NUMBER, socket.AF_INET, socket.IPPROTO_ESP))


def _no_interface() -> bytes:
    """Of number 0, which none can have."""
    number = attribute(IFLA_XFRM_IF_ID, bytes(4))
    kind = attribute(IFLA_INFO_KIND, b"xfrm\0") + attribute(IFLA_INFO_DATA, number)
    name = attribute(IFLA_IFNAME, f"{IKEV2_DEVICE}0".encode() + b"\0")
    body = _INTERFACE.pack(0, 0, 0, 0, 0) + name + attribute(IFLA_LINKINFO, kind)
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)
