"""docs/api.md is what the calls say of themselves, and the errors that they declare are errors of ours."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gateway.http.v1 import CALLS
from gateway.http.v1.paper import paper

ROOT = Path(__file__).parents[2]
LEAST_LETTERS = 10  # that a pattern says of itself: one that is all gap would fit everything


def test_the_paper_is_fresh() -> None:
    assert (ROOT / "docs/api.md").read_text() == paper(), "run scripts/api"


def test_every_call_is_in_it() -> None:
    text = paper()
    for call in CALLS:
        path = call.path.removeprefix("/api/v1")
        assert f"### {call.method} {path}\n" in text or f"`{path}`" in text.rpartition("## Not served")[2]


def texts(node: ast.AST) -> Iterator[re.Pattern[str]]:
    """With gaps where values stand."""
    for one in ast.walk(node):
        parts = one.values if isinstance(one, ast.JoinedStr) else [one]
        found = [p.value if isinstance(p, ast.Constant) and isinstance(p.value, str) else None for p in parts]
        if sum(len(text or "") for text in found) >= LEAST_LETTERS:
            yield re.compile("".join(".+" if text is None else re.escape(text) for text in found))


def known() -> Iterator[re.Pattern[str]]:
    """What is raised. In the files of the calls themselves that is what has a name: the rest is what they declare."""
    for path in (ROOT / "gateway").glob("*.py"):
        yield from texts(ast.parse(path.read_text()))
    for path in (ROOT / "gateway/http/v1").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant | ast.JoinedStr):
                yield from texts(node)


def test_declared_errors_are_texts_of_the_gateway() -> None:
    patterns = list(known())
    declared = {text for call in CALLS for text in call.errors}
    assert len(declared) > 30
    strange = [text for text in declared if not any(pattern.fullmatch(text) for pattern in patterns)]
    assert strange == ["Node ... is not available"], "two parts that meet when it is raised"


def test_an_example_of_an_edit_replaces_no_key() -> None:
    for call in CALLS:
        assert set(call.typical) <= {field.name for field in call.fields}
    examples = re.findall(r"^curl .*-X PUT.*", paper(), re.M)
    assert len(examples) > 10
    assert [line for line in examples if re.search(r"-d (private|public|preshared)_key=", line)] == []
