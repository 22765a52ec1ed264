"""Marks and forwarding by nftables, the bound on connections, and what other tables of this host do to our packets."""

from agent.kernel.nftables import bounded, foreign
from agent.kernel.nftables.bounded import Bounded
from agent.kernel.nftables.filter import Filters
from agent.kernel.nftables.forwarding import NftForwardings
from agent.kernel.nftables.forwarding_ipv6 import BothFamilies
from agent.kernel.nftables.marks import NftablesMarks
from agent.kernel.nftables.ports import Ports
from agent.kernel.nftables.shown import shown
from agent.kernel.nftables.watch import watch

__all__ = [
    "BothFamilies",
    "Bounded",
    "Filters",
    "NftForwardings",
    "NftablesMarks",
    "Ports",
    "bounded",
    "foreign",
    "shown",
    "watch",
]
