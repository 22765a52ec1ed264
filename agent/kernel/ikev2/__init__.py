"""IKEv2: strongSwan's charon with one connection for all accounts, and FreeRADIUS, which knows them.

Both are processes of ours with files of ours, in a folder of the agent's own (/run, so nothing of it outlives a boot):
nothing of /etc/strongswan.d or /etc/freeradius is read or changed. They outlive the agent, as wireguard-go does.
"""

from agent.kernel.ikev2.esp import choose as choose_esp
from agent.kernel.ikev2.esp import describe
from agent.kernel.ikev2.gate import Gates
from agent.kernel.ikev2.logins import Logins
from agent.kernel.ikev2.responder import Esp, Responders, lost_processes, missing, version
from agent.kernel.ikev2.routes import keep as keep_routes
from agent.kernel.ikev2.sessions import disconnect, sessions

__all__ = [
    "Esp",
    "Gates",
    "Logins",
    "Responders",
    "choose_esp",
    "describe",
    "disconnect",
    "keep_routes",
    "lost_processes",
    "missing",
    "sessions",
    "version",
]
