"""The latest series of gateways' certificates that has called this node. Earlier ones are refused: an operator has
revoked them. The number stands in the name that the authority signed, so nobody can make one up, and no list of refused
certificates has to come here. Kept in a file beside the identity; a new enrolment forgets it. Called by callers.py.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from agent.errors import IdentityError
from agent.identity import SERIES_FILE, write_private

log = logging.getLogger("agent.rpc")


class Series:
    """`directory`: of the identity."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / SERIES_FILE
        self._latest = 0

    def read(self) -> None:
        """What was kept, also when it is less than what was known: this node was enrolled anew."""
        try:
            self._latest = int(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            self._latest = 0

    async def refusal(self, series: int) -> str:
        """Of a certificate that holds otherwise; "" = it is of the latest series, or begins a later one."""
        if series < self._latest:
            return (
                f"your certificate was revoked: it is of series {series}, and one of series {self._latest} has called; "
                "if your database was restored, `wirelane-gateway gateway revoke` begins another series"
            )
        if series > self._latest:
            self._latest = series
            try:
                await asyncio.to_thread(write_private, self._path, f"{series}\n".encode())
            except IdentityError as error:  # then a restart of the agent forgets it, until the next call
                log.error("fleet series=%d kept in memory only: %s", series, error)
        return ""
