"""WireGuard: links and their peers, by the kernel or by a process; and which of them are ours."""

from agent.kernel.wireguard.door import Mode
from agent.kernel.wireguard.links import Links, choose_mode
from agent.kernel.wireguard.ownership import Ownership
from agent.kernel.wireguard.peers import Peers

__all__ = ["Links", "Mode", "Ownership", "Peers", "choose_mode"]
