"""gateway/group_commit.py: who shares a transaction. What a shared create does: test_creation.py."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.group_commit import FEW_TOGETHER, MOST_TOGETHER, GroupCommit

pytestmark = pytest.mark.anyio


async def sizes_of(callers: int) -> list[int]:
    """How many shared each transaction, when so many ask at once."""
    sizes = []

    async def commit(asked: Sequence[int]) -> list[int]:
        sizes.append(len(asked))
        await asyncio.sleep(0)
        return [-each for each in asked]

    group = GroupCommit[int, int](commit)
    numbers = range(1, callers + 1)
    assert await asyncio.gather(*map(group.one, numbers)) == [-each for each in numbers]
    return sizes


async def test_the_node_has_something_to_apply_while_the_other_half_is_written() -> None:
    assert await sizes_of(101) == [1, 50, 25, 13, 8, 4]


async def test_a_few_are_not_halved() -> None:
    assert await sizes_of(1 + FEW_TOGETHER) == [1, FEW_TOGETHER]


async def test_a_transaction_has_an_end_however_many_wait() -> None:
    sizes = await sizes_of(1 + 3 * MOST_TOGETHER)
    assert sizes[:3] == [1, MOST_TOGETHER, MOST_TOGETHER] and sum(sizes) == 1 + 3 * MOST_TOGETHER
