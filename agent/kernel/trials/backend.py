"""Which way packets are marked, translated and let through on this host: legacy iptables, or nftables.

Owns the choice; changes nothing. Called at start, and by the doctor.
"""

from __future__ import annotations

import os
import re
from typing import Literal, get_args

from agent.errors import KernelError
from agent.kernel.iptables import tables
from agent.kernel.nftables import nft

Backend = Literal["iptables", "nftables"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
OLDEST = (5, 7)  # commit 28f8bfd1ac94, "Support iif matches in POSTROUTING"
_TABLES = ("mangle", "nat", "filter")


def choose_backend(configured: str) -> Backend:
    """What `marks.backend` of agent.toml ("auto", "iptables", "nftables") comes to on this host.

    "auto" is iptables where its three legacy tables can be had, because that is the way of the specification and what
    `iptables-legacy` shows; else nftables. Tried by reading; takes some milliseconds. Raises KernelError, with all
    reasons, where it cannot work here.
    """
    asked = BACKENDS if configured == "auto" else tuple(one for one in BACKENDS if one == configured)
    reasons = []
    for backend in asked:
        reason = refusal(backend)
        if not reason:
            return backend
        reasons.append(reason)
    raise KernelError("no way to mark packets: " + "; ".join(reasons), retry=False)


def refusal(backend: Backend) -> str:
    """Why a backend cannot be used here; "" = it can, or may in a moment: no trouble of the moment changes the way."""
    if _linux(os.uname().release) < OLDEST:
        return f"Linux {os.uname().release} does not tell a rule in POSTROUTING where a packet came in; 5.7 does"
    try:
        if backend == "nftables":
            nft.check()
        else:
            for table in _TABLES:
                tables.info(table)
    except KernelError as error:
        return "" if error.retry else str(error)
    return ""


def _linux(release: str) -> tuple[int, ...]:
    """6.1.0-28-amd64 -> (6, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])
