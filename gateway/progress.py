"""What commands say: sentences, tables, and how far a long one is, with a bar on a terminal, a line every few seconds
elsewhere, and nothing of one that is over at once. Called by the command line.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

REDRAW_SECONDS = 0.1
LINE_SECONDS = 2.0
BAR_WIDTH = 24


class Progress:
    """`part` is what is done, from 0 to 1; None = nobody knows."""

    def __init__(self, what: str, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._now = now
        self._started = now()
        self._is_terminal = self._stream.isatty()
        self._due = self._started + (0 if self._is_terminal else LINE_SECONDS)
        self._width = 0  # of what stands in the terminal's line

    @property
    def seconds(self) -> float:
        return self._now() - self._started

    def show(self, count: int, part: float | None, note: str = "") -> None:
        if self._now() < self._due:
            return
        self._due = self._now() + (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS)
        rate = count / self.seconds if self.seconds > 0 else 0.0
        words = [f"{count}", "" if part is None else f"{part:.0%}", f"{rate:.0f}/s", self._left(part), note]
        text = "  ".join(filter(None, words))
        if self._is_terminal:
            self._draw(f"{self._what} {_bar(part)} {text}")
        else:
            print(f"{self._what}: {text}", file=self._stream, flush=True)

    def clear(self) -> None:
        """Before anything else is printed, and at the end."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
            self._due = self._now()

    def _left(self, part: float | None) -> str:
        """How long it will still take, once that can be told."""
        if not part or self.seconds < 1:
            return ""
        seconds = round(self.seconds * (1 - part) / part)
        return f"{seconds // 60}:{seconds % 60:02} left"

    def _draw(self, text: str) -> None:
        line = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)


def _bar(part: float | None) -> str:
    if part is None:
        return ""
    full = round(BAR_WIDTH * min(part, 1.0))
    return f"[{'#' * full}{'.' * (BAR_WIDTH - full)}]"


def plain(text: str) -> str:
    """What others say, an agent or a file's name, fit for a terminal: without anything that moves its cursor."""
    return "".join(char if char.isprintable() else "?" for char in text)


def explain(text: str) -> None:
    """One sentence, one line: what somebody put into a name makes no line of its own."""
    print(plain(" ".join(text.split())), file=sys.stderr, flush=True)


def printed_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    rows = [[plain(text) for text in row] for row in rows]
    widths = [max(len(line[column]) for line in (titles, *rows)) for column in range(len(titles))]
    for line in (titles, *rows):
        print("  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
