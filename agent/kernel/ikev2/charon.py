"""charon's control socket (vici), through strongSwan's own library.

Everything has a deadline: charon drops an answer that is too large for it and says nothing, and the library would wait
for ever. Lists come in parts and are safe. Protocol: src/libcharon/plugins/vici/README.md of strongSwan.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from itertools import chain
from pathlib import Path
from typing import Any

import vici
from vici.exception import CommandException, DeserializationException, EventUnknownException, SessionException

from agent.errors import KernelError
from agent.model import Address

ANSWER_SECONDS = 5.0
READ_SECONDS = 2.0  # of what a pass reads: one who hangs must not hold up the others
END_MILLISECONDS = "1000"  # for the other side to hear that it is over


@dataclass(frozen=True, slots=True)
class Sa:
    """A session of somebody who is in."""

    number: str
    username: str
    endpoint: str
    address: IPv4Address | None
    addresses: tuple[Address, ...]  # of either family
    age: int  # seconds
    rx_bytes: int
    tx_bytes: int


class Charon:
    def __init__(self, control: Path, seconds: float = ANSWER_SECONDS) -> None:
        """`seconds`: for an answer."""
        self._control, self._seconds = control, seconds

    @contextmanager
    def session(self) -> Iterator[Any]:
        """Raises KernelError, also for what is asked inside."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self._seconds)
                connection.connect(str(self._control))
                yield vici.Session(connection)
        except (OSError, SessionException, CommandException, EventUnknownException, DeserializationException) as error:
            raise KernelError(f"charon (strongSwan): {error or type(error).__name__}") from error

    @contextmanager
    def listening(self, events: Iterable[str], seconds: float) -> Iterator[Iterator[Mapping[str, Any] | None]]:
        """Yields what charon tells from now on, and None each time that it was silent for so long."""
        with self.session() as session:
            told = session.listen(list(events), timeout=seconds)
            try:
                first = next(told)  # registers
                yield ((said if name else None) for name, said in chain((first,), told))
            finally:
                with suppress(OSError, SessionException):  # it says good-bye, perhaps to nobody
                    told.close()

    def version(self) -> str:
        """ "5.9.8"."""
        with self.session() as session:
            return bytes(session.version()["version"]).decode()

    def connections(self) -> list[str]:
        with self.session() as session:
            return [name.decode() for name in session.get_conns().get("conns", [])]

    def sas(self) -> list[Sa]:
        with self.session() as session:
            return [sa for event in session.list_sas() for sa in map(_sa, event.values()) if sa]

    def end(self, numbers: list[str]) -> None:
        """The client is told and need not be there to hear it."""
        with self.session() as session:
            for number in numbers:
                asked = {"ike-id": number, "force": "yes", "timeout": END_MILLISECONDS}
                try:
                    list(session.terminate(asked))  # a generator: nothing is sent before somebody reads
                except CommandException:
                    if any(sa.number == number for sa in self.sas()):
                        raise


def _sa(held: Mapping[str, Any]) -> Sa | None:
    if held.get("state") != b"ESTABLISHED":
        return None
    # What the client calls itself is no proof of anything; the name that the password belongs to is.
    name = held.get("remote-eap-id") or held.get("remote-id", b"")
    children = held.get("child-sas", {}).values()
    addresses = addresses_of(held)
    return Sa(
        held["uniqueid"].decode(),
        name.decode(errors="replace"),
        held.get("remote-host", b"").decode(),
        next((address for address in addresses if isinstance(address, IPv4Address)), None),
        addresses,
        int(held.get("established", b"0")),
        sum(int(child.get("bytes-in", b"0")) for child in children),
        sum(int(child.get("bytes-out", b"0")) for child in children),
    )


def addresses_of(held: Mapping[str, Any]) -> tuple[Address, ...]:
    """Which a session's client has in the tunnel."""
    found = []
    for text in held.get("remote-vips", []):
        with suppress(ValueError):
            found.append(ip_address(text.decode()))
    return tuple(found)
