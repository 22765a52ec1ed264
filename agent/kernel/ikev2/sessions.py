"""Who is in by IKEv2 now, and how somebody is put out. Live reads; on any thread."""

from __future__ import annotations

import time
from pathlib import Path

from agent.kernel.ikev2 import programs
from agent.kernel.ikev2.charon import Charon
from agent.kernel.ikev2.files import Paths
from agent.objects import SessionState


def sessions(folder: Path) -> list[SessionState]:
    """[] also where no responder runs. Raises KernelError."""
    if not _runs(folder):
        return []
    now = int(time.time())
    return [
        SessionState(sa.username, sa.endpoint, sa.address, now - sa.age, sa.rx_bytes, sa.tx_bytes)
        for sa in Charon(Paths(folder).control).sas()
    ]


def disconnect(folder: Path, username: str) -> bool:
    """Was anybody in by that name? Raises KernelError."""
    if not _runs(folder):
        return False
    charon = Charon(Paths(folder).control)
    numbers = [sa.number for sa in charon.sas() if sa.username == username]
    charon.end(numbers)
    return bool(numbers)


def _runs(folder: Path) -> bool:
    charon = programs.remembered(Paths(folder).running).get("charon")
    return charon is not None and charon.is_alive()
