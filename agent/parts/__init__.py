"""The parts of the kernel that servers and accounts are made of, and their one order.

Built from left to right, the servers' before the accounts'; removed from right to left, those that go first before
anything is built (steps.py). So a way in never stands without what shapes and counts it, and a way out not without its
classes. A new kind of object is a file here, a door in agent/kernel and a word in this list.
"""

from __future__ import annotations

from typing import Any

from agent.parts.classes import CLASSES
from agent.parts.filter import FILTER
from agent.parts.forwarding import FORWARDING
from agent.parts.gate import GATE
from agent.parts.links import LINKS
from agent.parts.logins import LOGINS
from agent.parts.marks import MARKS
from agent.parts.part import AccountPart, Part, Place, ServerPart
from agent.parts.peers import PEERS
from agent.parts.ports import PORTS
from agent.parts.qdiscs import QDISCS
from agent.parts.responder import RESPONDER

__all__ = [
    "ACCOUNT_PARTS",
    "CLASSES",
    "FILTER",
    "FORWARDING",
    "GATE",
    "LINKS",
    "LOGINS",
    "MARKS",
    "PARTS",
    "PEERS",
    "PORTS",
    "QDISCS",
    "RESPONDER",
    "SERVER_PARTS",
    "WAYS_IN",
    "AccountPart",
    "Part",
    "Place",
    "ServerPart",
]

PARTS: tuple[Part[Any, Any], ...] = (
    *(LINKS, RESPONDER, QDISCS, CLASSES, FILTER, FORWARDING),
    *(MARKS, PEERS, LOGINS, PORTS, GATE),
)
SERVER_PARTS: tuple[ServerPart[Any, Any], ...] = tuple(part for part in PARTS if isinstance(part, ServerPart))
WAYS_IN: tuple[AccountPart[Any, Any], ...] = (PEERS, LOGINS)  # of an account; each stands for a kind of tunnel
ACCOUNT_PARTS: tuple[AccountPart[Any, Any], ...] = tuple(part for part in PARTS if isinstance(part, AccountPart))
