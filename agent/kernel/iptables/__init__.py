"""Marks and forwarding by legacy iptables."""

from agent.kernel.iptables.forwarding import Forwardings
from agent.kernel.iptables.marks import IptablesMarks

__all__ = ["Forwardings", "IptablesMarks"]
