"""Tables, bars and their way through JSON."""

from __future__ import annotations

from pathlib import Path

from bench.table import Bar, Result, Table, load, shown

TABLE = Table("Times", ("accounts", "way", "s"), [[100, "agent", 0.51234], [10_000, "shell", 1234.5]])


def test_a_table_for_a_terminal() -> None:
    assert TABLE.text() == (
        "Times\naccounts  way        s\n--------  -----  -----\n     100  agent  0.512\n  10,000  shell  1,234"
    )


def test_a_table_for_a_page() -> None:
    assert TABLE.markdown().splitlines()[-1] == "| 10,000 | shell | 1,234 |"


def test_a_bar_is_held_from_its_own_side() -> None:
    assert Bar("ratio", 1.5, 1.5, "x").held
    assert not Bar("rate", 199.0, 200.0, "a second", at_most=False).held
    assert Bar("ratio", 2.0, 1.5, "x").verdict == "MISSED"
    assert Bar("ratio", 2.0, 1.5, "x", judged=False).verdict == "not judged at this size"


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    result = Result("restore", "How long?", 100, [TABLE], [Bar("ratio", 2.0, 1.5, "x")], ["note"], {"cores": "2"})
    back = load(result.save(tmp_path))
    assert back.text() == result.text()
    assert back.bars == result.bars


def test_three_digits_are_shown() -> None:
    assert [shown(cell) for cell in (0.0, 1.2345, 12.345, 123.45, 12_345, None, "x")] == [
        *("0", "1.23", "12.3", "123", "12,345", "-", "x")
    ]
