"""The glossary against the code: what a thing is not called no module and no class is called, and no word of it is
dead.

Names of functions and variables are left out: there the words of Linux, SQL and gRPC stand as well, and mean theirs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSES = ("agent", "gateway")
SOURCES = sorted(path for house in HOUSES for path in (ROOT / house).rglob("*.py") if "migrations" not in path.parts)
OTHERS = (path for house in ("tests", "bench") for path in (ROOT / house).rglob("*.py") if path != Path(__file__))
TEXT = "\n".join(path.read_text() for path in (*SOURCES, *OTHERS)).lower()
# name -> whose word it is there
OF_OTHERS = {
    "health": "what a load balancer asks (/healthz)",
    "client": "of gRPC, which calls the other process",
    "Conflict": "HTTP's own word for its status 409",
    "JoinToken": "the glossary's own join token",
    "join_tokens": "the glossary's own join token",
    "Sa": "IKE's own word, in the file that speaks to charon",
    "engine": "SQLAlchemy's",
    "Engine": "SQLAlchemy's",
    "_Connection": "SQLAlchemy's",
    "Device": "WireGuard's own, of its control protocol",
    "ip_forward": "Linux's own name of the setting",
    "Move": "the glossary's own move of a server",
    "offline": "what the command line does while the agent does not run",
    "Scope": "which devices a reading looks at",
    "target": "where an agent is called, of a node",
    "Version": "a revision together with whose it is",
}


def rows() -> Iterator[tuple[list[str], list[str]]]:
    """The words of each line, and what is not said for them; plain ones only."""
    lines = (ROOT / "docs/glossary.md").read_text().splitlines()
    for line in lines[lines.index("|---|---|---|---|") + 1 :]:
        if not line.startswith("|"):
            break
        word, _, _, nots = (cell.strip() for cell in line.strip("|").split("|"))
        yield words(word), [one for one in words(nots) if one != "-"]


def words(cell: str) -> list[str]:
    return [one for one in re.split(r", ", re.sub(r" ?\([^)]*\)", "", cell)) if one]


def names() -> Iterator[str]:
    for path in SOURCES:
        yield path.stem
        yield from (node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef))


def parts(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


def test_no_module_and_no_class_has_a_name_that_the_glossary_rules_out() -> None:
    ruled_out = {one.lower(): word for said, nots in rows() for word in said[:1] for one in nots}
    found = {name for name in names() for part in parts(name) if part in ruled_out}
    assert found == OF_OTHERS.keys(), found ^ OF_OTHERS.keys()


@pytest.mark.parametrize("said", [said for said, _ in rows()], ids=lambda said: said[0])
def test_a_word_of_the_glossary_is_used(said: list[str]) -> None:
    """In the code or its tests, in any form: an identifier, a comment, a message. Of several words the first."""
    for word in said:
        stem = re.escape(word.lower().split()[0].removesuffix("s"))
        assert re.search(rf"(?<![a-z]){stem}", TEXT), f"nobody says {word!r}"
