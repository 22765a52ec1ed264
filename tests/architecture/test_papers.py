"""The papers speak of what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPERS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A path from the root of the checkout: starts with one of its folders, and is not the tail of a longer path.
PATH = re.compile(r"(?<![\w/.:-])((?:agent|gateway|protos|tests|systemd|docs|bench|scripts|\.ci)/[\w./-]*\w)")
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def missing_paths(paper: Path) -> list[str]:
    text = paper.read_text()
    named = [(name, ROOT / name) for name in PATH.findall(text)]
    linked = [(name, paper.parent / name) for name in LINK.findall(text)]
    return [name for name, path in named + linked if not path.exists()]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: str(paper.relative_to(ROOT)))
def test_every_path_that_a_paper_names_exists(paper: Path) -> None:
    assert missing_paths(paper) == []


def test_a_wrong_path_is_noticed(tmp_path: Path) -> None:
    paper = tmp_path / "paper.md"
    paper.write_text("`agent/model.py`, `agent/modle.py`, /var/lib/wirelane-agent/agent.db, [a](nowhere.md)\n")
    assert missing_paths(paper) == ["agent/modle.py", "nowhere.md"]
