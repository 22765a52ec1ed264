"""The parts of the kernel that servers and accounts are made of, and their one order.

Built from left to right, the servers' before the accounts'; removed from right to left, those that go first before
anything is built (steps.py). So a way in never stands without what shapes and counts it, and a way out not without its
classes. A new kind of object is a file here, a door in agent/kernel and a word in this list.
"""

from __future__ import annotations

from typing import Any

from agent.parts.classes import CLASSES
from agent.parts.forwarding import FORWARDING
from agent.parts.links import LINKS
from agent.parts.marks import MARKS
from agent.parts.part import AccountPart, Part, Place, ServerPart
from agent.parts.peers import PEERS
from agent.parts.qdiscs import QDISCS

__all__ = [
    "ACCOUNT_PARTS",
    "CLASSES",
    "FORWARDING",
    "LINKS",
    "MARKS",
    "PARTS",
    "PEERS",
    "QDISCS",
    "SERVER_PARTS",
    "AccountPart",
    "Part",
    "Place",
    "ServerPart",
]

PARTS: tuple[Part[Any, Any], ...] = (LINKS, QDISCS, CLASSES, FORWARDING, MARKS, PEERS)
SERVER_PARTS: tuple[ServerPart[Any, Any], ...] = tuple(part for part in PARTS if isinstance(part, ServerPart))
ACCOUNT_PARTS: tuple[AccountPart[Any, Any], ...] = tuple(part for part in PARTS if isinstance(part, AccountPart))
