"""The command line, as far as it goes without a lab."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from bench.__main__ import QUESTIONS, main
from bench.asked import Asked


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_can_be_asked(name: str) -> None:
    module = import_module(f"bench.{name}")
    assert isinstance(module.QUESTION, str)
    assert callable(module.run)


def test_every_file_with_a_question_is_one() -> None:
    folder = Path(import_module("bench").__file__ or "").parent
    asking = {path.stem for path in folder.glob("*.py") if "\nQUESTION = " in path.read_text()}
    assert asking == set(QUESTIONS)


def test_the_questions_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert "restore     Cold restore" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["speed"], ["--accounts", "5"], ["--accounts", "40000"], ["--backend", "bpf"]])
def test_what_cannot_be_asked_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2


def test_bars_speak_of_the_full_size() -> None:
    assert Asked(10_000).is_full_size
    assert not Asked(9_999).is_full_size
