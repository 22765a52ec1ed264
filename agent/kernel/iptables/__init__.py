"""Marks and forwarding by legacy iptables."""

from agent.kernel.iptables.forwarding import Forwardings
from agent.kernel.iptables.marks import IptablesMarks
from agent.kernel.iptables.shown import shown
from agent.kernel.iptables.strangers import watch

__all__ = ["Forwardings", "IptablesMarks", "shown", "watch"]
