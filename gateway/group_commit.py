"""Group commit: callers that come while a transaction is under way share the next one.

Owns: who shares a transaction. Never knows what is in it. Called by creation.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.errors import DatabaseUnavailable

T = TypeVar("T")
R = TypeVar("R")

# How many may share a transaction while others wait. Half of them: the node applies these while the others are written,
# where all of them together would let the agent wait for the database, and then the database for the agent.
FEW_TOGETHER = 8
MOST_TOGETHER = 500


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T, R]):
    asked: T
    outcome: R | Exception | None = None


class GroupCommit(Generic[T, R]):
    """`commit`: one transaction for all that is asked: what became of each, or its error, in the same order."""

    def __init__(self, commit: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._commit = commit
        self._waiting: list[_Waiting[T, R]] = []
        self._turn = asyncio.Lock()

    async def one(self, asked: T) -> R:
        """Raises its error. The first of those who share a transaction runs it for all; if it is cancelled, the next
        one begins again."""
        mine = _Waiting[T, R](asked)
        self._waiting.append(mine)
        try:
            async with self._turn:
                while mine.outcome is None:
                    half = -(-len(self._waiting) // 2)
                    await self._serve(self._waiting[: min(max(half, FEW_TOGETHER), MOST_TOGETHER)])
        finally:
            self._waiting = [each for each in self._waiting if each is not mine and each.outcome is None]
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome

    async def _serve(self, together: Sequence[_Waiting[T, R]]) -> None:
        try:
            outcomes = await self._commit([each.asked for each in together])
        except DatabaseUnavailable as error:
            for each in together:
                each.outcome = DatabaseUnavailable(error.reason, error.state)
        except Exception as error:  # whose fault it is shows when each is alone
            if len(together) > 1:
                for each in together:
                    await self._serve([each])
            else:
                together[0].outcome = error
        else:
            for each, outcome in zip(together, outcomes, strict=True):
                each.outcome = outcome
