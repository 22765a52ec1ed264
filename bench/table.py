"""What a question answers: tables, bars, and the JSON that the page is made of. Pure but for `save` and `load`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise and what was measured. `judged` is False where the promise speaks of another size."""

    text: str
    measured: float
    limit: float
    unit: str
    at_most: bool = True
    judged: bool = True

    @property
    def held(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit

    @property
    def verdict(self) -> str:
        if not self.judged:
            return "not judged at this size"
        return "held" if self.held else "MISSED"

    def cells(self) -> list[Cell]:
        sign = "at most" if self.at_most else "at least"
        return [
            self.text,
            f"{shown(self.measured)} {self.unit}",
            f"{sign} {shown(self.limit)} {self.unit}",
            self.verdict,
        ]


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def text(self) -> str:
        """For a terminal: aligned columns, numbers to the right."""
        lines = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        right = [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

        def aligned(line: Sequence[str]) -> str:
            padded = (
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(line, widths, right, strict=True)
            )
            return "  ".join(padded).rstrip()

        rule = "  ".join("-" * width for width in widths)
        return "\n".join([self.title, aligned(lines[0]), rule, *(aligned(line) for line in lines[1:])])

    def markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(slots=True)
class Result:
    """The answer to one question."""

    name: str
    question: str
    accounts: int
    tables: list[Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=dict)
    taken: str = ""  # the day

    def text(self) -> str:
        parts = [table.text() for table in self.tables]
        if self.bars:
            parts.append(bar_table(self.bars).text())
        parts += self.notes
        return "\n\n".join([f"== {self.name}: {self.question} ({self.accounts:,} accounts)", *parts])

    def save(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        return path


def load(path: Path) -> Result:
    found = json.loads(path.read_text())
    found["tables"] = [Table(**table) for table in found["tables"]]
    found["bars"] = [Bar(**bar) for bar in found["bars"]]
    return Result(**found)


def bar_table(bars: Sequence[Bar]) -> Table:
    return Table("Bars", ("bar", "measured", "promised", "verdict"), [bar.cells() for bar in bars])


def shown(cell: Cell) -> str:
    """Three digits are all that a measurement is worth."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        if abs(cell) >= 100:
            return f"{cell:,.0f}"
        return f"{cell:.3g}" if cell else "0"
    return f"{cell:,}" if isinstance(cell, int) else cell
