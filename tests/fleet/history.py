"""What happened, in order, for people: a line for each call and each trouble. Thread-safe. Called by all here."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

CONTEXT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Event:
    """`at`: seconds since the start. `about`: an account's name; "" = it concerns everybody."""

    at: float
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:9.3f} s  {self.about or '*':6} {self.text}"


@dataclass(frozen=True, slots=True)
class Violation:
    """`promise`: the number in the list of `verdicts.PROMISES`; 0 = of the calls' answers."""

    promise: int
    about: str
    text: str

    def __str__(self) -> str:
        return f"({self.promise}) {self.about or 'all'}: {self.text}"


class History:
    def __init__(self, file: Path | None = None) -> None:
        self.began = time.monotonic()
        self.events: list[Event] = []
        self.violations: list[Violation] = []
        self._lock = threading.Lock()
        self._file = file.open("w", buffering=1) if file else None

    def add(self, about: str, text: str) -> None:
        with self._lock:
            event = Event(time.monotonic() - self.began, about, text)
            self.events.append(event)
            if self._file:
                self._file.write(f"{event}\n")

    def violated(self, promise: int, about: str, text: str) -> None:
        found = Violation(promise, about, text)
        self.add(about, f"VIOLATION {found}")
        with self._lock:
            self.violations.append(found)

    def of(self, about: str, lines: int = 60) -> str:
        """The last lines of one account, and of what concerned everybody in between."""
        with self._lock:
            mine = [event for event in self.events if event.about in (about, "")]
        own = [index for index, event in enumerate(mine) if event.about == about]
        return "\n".join(map(str, mine[own[max(0, len(own) - lines // 2)] if own else 0 :][-lines:]))

    def report(self, most: int = 5) -> str:
        """Every violation, and the history of the first accounts that are concerned."""
        blocks = [f"{len(self.violations)} violation(s)", *map(str, self.violations[:50])]
        for about in list(dict.fromkeys(found.about for found in self.violations))[:most]:
            blocks.append(f"\n-- history of {about or 'all'}\n{self.of(about)}")
        return "\n".join(blocks)

    def close(self) -> None:
        if self._file:
            self._file.close()
