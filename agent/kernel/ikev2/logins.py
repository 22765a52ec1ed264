"""Logins: the way in of IKEv2, the second kind of tunnel. A row for FreeRADIUS, and the sessions that came by it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from agent.errors import KernelError
from agent.kernel.ikev2 import programs, radius
from agent.kernel.ikev2.charon import READ_SECONDS, Charon
from agent.kernel.ikev2.files import Paths
from agent.kernel.ikev2.leftovers import forget
from agent.kernel.ikev2.users import NOWHERE, Users
from agent.model import NO_SECRET
from agent.objects import Diff, LoginRow, Scope


class Logins:
    """`Part[str, LoginRow]`."""

    def __init__(self, folder: Path) -> None:
        self._paths = paths = Paths(folder)
        self._users = Users(paths.users)
        self._charon, self._reading = Charon(paths.control), Charon(paths.control, READ_SECONDS)

    def read(self, scope: Scope) -> dict[str, LoginRow]:
        """A session of somebody without a row is a login that nobody wants. {} where the list cannot be used: it is
        made anew, with the programs. Raises KernelError where it is only kept from us for a moment."""
        try:
            rows = self._users.read()
        except KernelError:
            if self._users.is_right():
                raise
            return {}
        try:
            strays = {sa.username for sa in self._reading.sas()} - rows.keys() if self._is_running() else set()
        except KernelError:  # it does not answer, and is started anew
            strays = set()
        return rows | {name: LoginRow(name, NO_SECRET, NOWHERE) for name in strays}

    def apply(self, diff: Diff[str, LoginRow]) -> Mapping[str, KernelError]:
        """Who goes or changes is out when this returns. Raises KernelError."""
        if ending := (*diff.remove, *diff.change):
            self._users.switch_off(ending)
            self._end(frozenset(ending))
            self._users.delete(diff.remove)
        self._users.put((*diff.change.values(), *diff.add.values()))
        asked, is_there = radius.started(self._paths.asked), radius.identity(self._paths.users) is not None
        if is_there and (asked is None or not asked.reads(self._paths.users)):
            raise KernelError(f"the list of IKEv2 logins ({self._paths.users}) is not the one that FreeRADIUS reads")
        return {}

    def _end(self, usernames: Collection[str]) -> None:
        if self._is_running():
            self._charon.end([sa.number for sa in self._charon.sas() if sa.username in usernames])
        else:  # nobody can tell any more whose session is whose
            forget()

    def _is_running(self) -> bool:
        charon = programs.remembered(self._paths.running).get("charon")
        if charon is None:  # somebody took that file away: it is asked where there is something to ask
            return self._paths.control.exists()
        return charon.is_alive()
