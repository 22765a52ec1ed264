"""What the kernel's ESP keeps of a charon that was killed: states and policies, by which its sessions go on without it.

Nobody manages those: who is switched off meanwhile would go on passing packets, and the next charon knows nothing of
them. Ours bear the number of our interface; others' are left alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from agent.errors import KernelError
from agent.kernel.netlink import HEADER_BYTES, Netlink, attribute, attributes, message

# linux/xfrm.h
NETLINK_XFRM = 6
XFRM_MSG_DELSA, XFRM_MSG_GETSA = 0x11, 0x12
XFRM_MSG_DELPOLICY, XFRM_MSG_GETPOLICY = 0x14, 0x15
XFRMA_IF_ID = 31
XFRM_ID = 0x776C696B  # of the connection and its interface; ours by its number too
_STATE_BYTES, _POLICY_BYTES = 224, 168  # xfrm_usersa_info, xfrm_userpolicy_info
_ID, _FAMILY = 56, 212  # in a state: xfrm_id (daddr, spi, proto), behind its selector; family
_SELECTOR_BYTES, _INDEX = 56, 156  # in a policy: index and direction
_WHICH_STATE = struct.Struct("=20sHBx")  # xfrm_usersa_id: daddr and spi, family, proto
_WHICH_POLICY = struct.Struct("=56sIB3x")  # xfrm_userpolicy_id


def forget() -> None:
    """Ends all that was left. Nothing where the kernel has no IPsec. Raises KernelError."""
    try:
        netlink = Netlink(NETLINK_XFRM)
    except KernelError:
        return
    with netlink:
        netlink.send([*_states(netlink), *_policies(netlink)])  # what is refused is gone already


def _states(netlink: Netlink) -> Iterator[bytes]:
    for found in netlink.dump(message(XFRM_MSG_GETSA, 0, b""), torn_will_do=True):
        state = found[HEADER_BYTES:]
        if _is_ours(state, _STATE_BYTES):
            (family,), protocol = struct.unpack_from("=H", state, _FAMILY), state[_ID + 20]
            yield message(XFRM_MSG_DELSA, 0, _WHICH_STATE.pack(state[_ID : _ID + 20], family, protocol))


def _policies(netlink: Netlink) -> Iterator[bytes]:
    for found in netlink.dump(message(XFRM_MSG_GETPOLICY, 0, b""), torn_will_do=True):
        policy = found[HEADER_BYTES:]
        if _is_ours(policy, _POLICY_BYTES):
            (index,), direction = struct.unpack_from("=I", policy, _INDEX), policy[_INDEX + 4]
            which = _WHICH_POLICY.pack(policy[:_SELECTOR_BYTES], index, direction)
            yield message(XFRM_MSG_DELPOLICY, 0, which + attribute(XFRMA_IF_ID, struct.pack("=I", XFRM_ID)))


def _is_ours(body: bytes, size: int) -> bool:
    return attributes(body, size).get(XFRMA_IF_ID) == struct.pack("=I", XFRM_ID)
