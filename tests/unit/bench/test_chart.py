"""The curve and the page around it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench.chart import Line, svg
from bench.page import curve, write
from bench.table import Bar, Cell, Result, Table

COLUMNS = ("accounts", "agent, s", "batch, s", "agent / batch", "shell, s", "shell / agent")
ROWS: list[list[Cell]] = [[100, 0.9, 0.2, 4.5, "3.0", 3.3], [10_000, 8.0, 6.0, 1.3, "1,300.0*", 160.0]]
RESTORE = Result(
    "restore",
    "How long?",
    10_000,
    [Table("Cold restore, iptables", COLUMNS, ROWS)],
    [Bar("against batch", 1.3, 1.5, "x")],
    machine={"cores": "2", "processor": "any", "memory": "4 GB", "kernel": "6.1", "python": "3.11"},
)


def test_decades_are_equally_far_apart() -> None:
    drawn = svg("t", "x", "y", [Line("a", [(1, 1), (10, 10), (100, 100)])])
    circles = [element for element in ElementTree.fromstring(drawn).iter() if element.tag.endswith("circle")]
    across = [float(circle.get("cx", "")) for circle in circles]
    assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)
    assert float(circles[0].get("cy", "")) > float(circles[2].get("cy", ""))  # up is more


def test_what_was_carried_is_dashed() -> None:
    measured = svg("t", "x", "y", [Line("a", [(1, 1), (10, 10)])])
    carried = svg("t", "x", "y", [Line("a", [(1, 1), (10, 10)], carried=10)])
    assert "dasharray" not in measured
    assert "dasharray" in carried


def test_names_cannot_break_the_picture() -> None:
    drawn = svg("a < b & c", "x", "y", [Line("<", [(1, 1)])])
    assert "a < b & c" in "".join(ElementTree.fromstring(drawn).itertext())


@pytest.mark.parametrize("points", [[], [(0, 1)], [(1, -1)]])
def test_there_is_no_logarithm_of_nothing(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        svg("t", "x", "y", [Line("a", points)])


def test_the_curve_is_the_table_of_the_restore() -> None:
    agent, batch, shell = curve([RESTORE])
    assert list(agent.points) == [(100, 0.9), (10_000, 8.0)]
    assert batch.points[-1] == (10_000.0, 6.0)
    assert shell.points[-1] == (10_000.0, 1300.0)
    assert shell.carried == 10_000


def test_the_page_is_made_of_the_files(tmp_path: Path) -> None:
    RESTORE.save(tmp_path / "results")
    write(tmp_path / "results", tmp_path)
    text = (tmp_path / "performance.md").read_text()
    assert "| restore | against batch | 1.3 x | at most 1.5 x | held |" in text
    assert "](performance.svg)" in text
    ElementTree.parse(tmp_path / "performance.svg")


def test_there_is_no_page_without_results(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no results"):
        write(tmp_path, tmp_path)
