"""Connections to SQLite: none is left open, whoever stopped waiting for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.store import onetrip


@pytest.mark.parametrize("turns", range(4))  # of the loop, before the one who asked goes away
def test_who_goes_away_while_a_connection_opens_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    opened: list[sqlite3.Connection] = []

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(real(*arguments, **options, check_same_thread=False))
        return opened[-1]

    async def story() -> None:
        task = asyncio.create_task(onetrip.connect(str(tmp_path / "x.db"), 1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await (await task).close()

    real: Callable[..., sqlite3.Connection] = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    asyncio.run(story())
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
    assert len(opened) == bool(turns)
