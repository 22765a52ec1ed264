"""docs/performance.md and its picture, made from the JSON files of the last runs. Called by `scripts/bench --page`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.chart import Line, svg
from bench.table import Cell, Result, Table, bar_table, load

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = "performance.svg"
HEAD = """# Performance
<!-- Made by `scripts/bench --page` from bench/results: change those, not this. -->
Every figure is measured in the lab (`scripts/lab`: network namespaces, userspace WireGuard) in the same run as what
one would use instead, so that it is a ratio, which travels better between machines than seconds do. *batch* is the best
that ready tools do with prepared files; *shell* is one process for each step of each account, as panels do it.
"""
COMMAND = "sudo scripts/bench"


def write(results: Path, docs: Path = DOCS) -> None:
    """Raises FileNotFoundError where there are no results."""
    from bench.__main__ import QUESTIONS

    found = [load(results / f"{name}.json") for name in QUESTIONS if (results / f"{name}.json").exists()]
    if not found:
        raise FileNotFoundError(f"no results in {results}: run {COMMAND} first")
    lines = curve(found)
    if lines:
        picture = svg("Cold restore: seconds until everything is there again", "accounts", "seconds", lines)
        (docs / PICTURE).write_text(picture)
    (docs / "performance.md").write_text(page(found, bool(lines)))


def page(results: Sequence[Result], has_picture: bool) -> str:
    parts = [HEAD.rstrip(), _machine(results), "## Promised and measured", _bars(results).markdown()]
    for result in results:
        parts.append(f"## {result.question}")
        if result.name == "restore" and has_picture:
            parts.append(f"![Seconds of a cold restore by number of accounts]({PICTURE})")
        for table in result.tables:
            parts += [f"**{table.title}**", table.markdown()]
        parts += result.notes
    return "\n\n".join(parts) + "\n"


def _machine(results: Sequence[Result]) -> str:
    lines = []
    for result in results:
        told = result.machine
        line = (
            f"{told['cores']} cores ({told['processor']}), {told['memory']} of memory, Linux {told['kernel']}, "
            f"Python {told['python']}, {result.taken}"
        )
        if line not in lines:
            lines.append(line)
    return "Machine: " + "; ".join(lines) + f". Command: `{COMMAND}`; a line of it again: `{COMMAND} NAME`."


def _bars(results: Sequence[Result]) -> Table:
    judged = [(result.name, *bar_table([bar]).rows[0]) for result in results for bar in result.bars]
    return Table("", ("question", "bar", "measured", "promised", "verdict"), judged)


def curve(results: Sequence[Result]) -> list[Line]:
    """Agent, batch and shell of the cold restore; the last backend's where there are several."""
    tables = [table for one in results if one.name == "restore" for table in one.tables if "Cold" in table.title]
    lines = []
    for number, table in enumerate(tables):
        backend = table.title.rpartition(" ")[2]
        lines.append(Line(f"agent, {backend}", _points(table, "agent, s")))
        if number == len(tables) - 1:
            lines.append(Line(f"batch, {backend}", _points(table, "batch, s")))
            carried = [_number(row[0]) for row in table.rows if str(_cell(table, row, "shell, s")).endswith("*")]
            lines.append(Line("shell", _points(table, "shell, s"), min(carried, default=0)))
    return lines


def _points(table: Table, column: str) -> list[tuple[float, float]]:
    return [(_number(row[0]), _number(_cell(table, row, column))) for row in table.rows]


def _cell(table: Table, row: Sequence[Cell], column: str) -> Cell:
    return row[list(table.columns).index(column)]


def _number(cell: Cell) -> float:
    return float(str(cell).replace(",", "").rstrip("*"))
