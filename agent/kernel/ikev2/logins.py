"""Logins: the way in of IKEv2, the second kind of tunnel. A row for FreeRADIUS, and the sessions that came by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.ikev2 import programs
from agent.kernel.ikev2.charon import Charon
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.leftovers import forget
from agent.kernel.ikev2.users import Users
from agent.model import NO_SECRET
from agent.objects import Diff, LoginRow, Scope

NOWHERE = IPv4Address("0.0.0.0")


class Logins:
    """`Part[str, LoginRow]`."""

    def __init__(self, folder: Path) -> None:
        paths = Paths(folder)
        self._running, self._users, self._charon = paths.running, Users(paths.users), Charon(paths.control)

    def read(self, scope: Scope) -> dict[str, LoginRow]:
        """A session of somebody without a row is a login that nobody wants."""
        rows = self._users.read()
        if not rows and not self._is_running():
            return {}
        strays = {sa.username for sa in self._charon.sas()} - rows.keys() if self._is_running() else set()
        return rows | {name: LoginRow(name, NO_SECRET, NOWHERE) for name in strays}

    def apply(self, diff: Diff[str, LoginRow]) -> Mapping[str, KernelError]:
        """Who goes or changes is out when this returns. Raises KernelError."""
        if ending := (*diff.remove, *diff.change):
            self._users.switch_off(ending)
            self._end(frozenset(ending))
            self._users.delete(diff.remove)
        self._users.put((*diff.change.values(), *diff.add.values()))
        return {}

    def _end(self, usernames: Collection[str]) -> None:
        if self._is_running():
            self._charon.end([sa.number for sa in self._charon.sas() if sa.username in usernames])
        else:  # nobody can tell any more whose session is whose
            forget()

    def _is_running(self) -> bool:
        charon = programs.remembered(self._running).get("charon")
        return charon is not None and charon.is_alive()
