"""gateway/progress.py: a bar on a terminal, lines elsewhere, silence while it is short."""

from __future__ import annotations

import io

import pytest

from gateway.progress import Progress, printed_table


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_every_two_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress("imported", stream, clock)
    for step in range(1, 6):
        clock.now = step
        progress.show(step * 100, step / 10, "0 refused")
    progress.clear()
    assert stream.getvalue() == (
        "imported: 200  20%  100/s  0:08 left  0 refused\nimported: 400  40%  100/s  0:06 left  0 refused\n"
    )


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress("imported", stream, clock)
    clock.now = 0.5
    progress.show(50, 0.5, "1 refused")
    clock.now = 0.55
    progress.show(51, 0.5)  # too soon to be seen
    drawn = stream.getvalue()
    assert drawn == "\rimported [############............] 50  50%  100/s  1 refused"
    progress.clear()
    assert stream.getvalue()[len(drawn) :] == "\r" + " " * (len(drawn) - 1) + "\r"


def test_without_an_end_there_is_no_bar() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress("imported", stream, clock)
    clock.now = 2
    progress.show(50, None)
    assert stream.getvalue() == "\rimported  50  25/s"


def test_a_table_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    printed_table(("NAME", "STATE"), [("fra", "problem: \x1b[2J\rgone\nOK")])
    assert capsys.readouterr().out == "NAME  STATE\nfra   problem: ?[2J?gone?OK\n"
