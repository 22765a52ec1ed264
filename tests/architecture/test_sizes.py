"""Small enough to read: a file of 400 lines or a function of 40 hides a second idea."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES = 400
FUNCTION_LINES = 40  # without the docstring

# What may be longer, and why. "file" or "file::function".
EXCEPTIONS = {
    "gateway/store/migrations/versions/v0001_first.py::_installation": "columns of tables, nothing else",
}


def sources() -> list[Path]:
    return [path for room in ("agent", "gateway", "bench") for path in sorted((ROOT / room).rglob("*.py"))]


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def too_long() -> dict[str, int]:
    found: dict[str, int] = {}
    for path in sources():
        text = path.read_text()
        name = str(path.relative_to(ROOT))
        if (lines := text.count("\n")) > FILE_LINES:
            found[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > FUNCTION_LINES:
                found[f"{name}::{node.name}"] = function_lines(node)
    return found


def test_no_file_and_no_function_is_too_long_to_read() -> None:
    assert {name: lines for name, lines in too_long().items() if name not in EXCEPTIONS} == {}


def test_every_exception_is_still_needed() -> None:
    assert set(EXCEPTIONS) <= set(too_long())
