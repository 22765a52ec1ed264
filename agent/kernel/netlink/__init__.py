"""The language of the kernel's sockets: framing, batches, deadlines."""

from agent.kernel.netlink.framing import (
    HEADER_BYTES,
    NETLINK_NETFILTER,
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Refusal,
    attribute,
    attributes,
    message,
    nested,
    split,
)
from agent.kernel.netlink.sender import ListingRefused, Netlink

__all__ = [
    "HEADER_BYTES",
    "NETLINK_NETFILTER",
    "NLA_TYPE_MASK",
    "NLM_F_CREATE",
    "NLM_F_EXCL",
    "NLM_F_REPLACE",
    "ListingRefused",
    "Netlink",
    "Refusal",
    "attribute",
    "attributes",
    "message",
    "nested",
    "split",
]
