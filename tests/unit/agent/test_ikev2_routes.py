"""Which routes lead to clients of IKEv2, by what charon tells and lists; without charon and without routes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from agent.kernel.ikev2 import routes
from agent.kernel.ikev2.charon import Sa, addresses_of
from agent.model import Address

BOTH = ["10.0.0.2", "fd77::2"]
Event = dict[str, Any]


def session(number: int, *addresses: str) -> Event:
    return {"uniqueid": str(number).encode(), "remote-vips": [one.encode() for one in addresses]}


def comes(number: int, *addresses: str) -> Event:
    return {"up": b"yes", "conn": session(number, *addresses)}


def goes(number: int, *addresses: str) -> Event:
    return {"conn": session(number, *addresses)}


def rekeyed(old: int, new: int) -> Event:
    return {"conn": {"old": session(old), "new": session(new)}}


class Charon:
    """Says what it is given. `listed`: the sessions of its list."""

    def __init__(self, listed: Mapping[int, list[str]], told: list[Event]) -> None:
        self._listed, self._told = listed, told
        self.stop = threading.Event()

    @contextmanager
    def listening(self, events: tuple[str, ...], seconds: float) -> Iterator[Iterator[Event | None]]:
        assert events == ("child-updown", "ike-rekey")

        def told() -> Iterator[Event | None]:
            yield None
            yield from self._told
            self.stop.set()
            yield None

        yield told()

    def sas(self) -> list[Sa]:
        found = ((number, addresses_of(session(number, *held))) for number, held in self._listed.items())
        return [Sa(str(number), "user", "192.0.2.1", None, addresses, 0, 0, 0) for number, addresses in found]


def after(monkeypatch: pytest.MonkeyPatch, listed: Mapping[int, list[str]], *told: Event) -> list[str]:
    """The routes that there are."""
    there: set[Address] = set()
    charon = Charon(listed, list(told))

    def change(_: object, verb: str, address: Address) -> None:
        there.add(address) if verb == "replace" else there.discard(address)

    monkeypatch.setattr(routes, "_make_equal", lambda _, wanted: there.update(wanted))
    monkeypatch.setattr(routes, "_change", change)
    monkeypatch.setattr(routes, "IPRoute", lambda: threading.Lock())
    routes._follow(charon, charon.stop)  # type: ignore[arg-type]
    return sorted(map(str, there))


@pytest.mark.parametrize(
    ("listed", "told", "there"),
    [
        ({1: BOTH}, [], BOTH),
        ({}, [comes(1, *BOTH)], BOTH),
        ({1: BOTH}, [goes(1, *BOTH)], []),
        ({1: BOTH}, [comes(1, *BOTH)], BOTH),
        ({1: BOTH}, [comes(1, *BOTH), goes(1, *BOTH)], []),  # told of while the list was read, which has it too
        ({1: BOTH}, [comes(2, *BOTH), goes(1, *BOTH)], BOTH),  # a second device takes over
        ({2: BOTH}, [comes(2, *BOTH), goes(1, *BOTH)], BOTH),
        ({1: BOTH}, [rekeyed(1, 7), goes(7, *BOTH)], []),
        ({1: BOTH}, [rekeyed(1, 7), comes(8, *BOTH), goes(7, *BOTH)], BOTH),
        ({1: BOTH, 3: ["10.0.0.3"]}, [goes(3, "10.0.0.3")], BOTH),
    ],
)
def test_routes_follow_who_is_in(
    monkeypatch: pytest.MonkeyPatch, listed: Mapping[int, list[str]], told: list[Event], there: list[str]
) -> None:
    assert after(monkeypatch, listed, *told) == there
