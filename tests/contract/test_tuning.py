"""What the API sets instead of the configuration, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest

from gateway.store import Store, settings
from gateway.tuning import Tuning

pytestmark = pytest.mark.anyio

OF_FILE = Tuning(collect_seconds=12.5, usage_months=0)


async def test_what_is_set_wins_until_it_is_given_up_and_the_rest_stays_the_files(store: Store) -> None:
    assert await store.read(lambda tx: settings.tuning(tx, OF_FILE)) == OF_FILE
    for months in (7, 9):
        await store.change(lambda tx: settings.tune(tx, {"usage_months": months, "link_days": 3}))  # noqa: B023
    assert await store.read(settings.set_by_api) == {"usage_months": 9, "link_days": 3}
    found = await store.read(lambda tx: settings.tuning(tx, OF_FILE))
    assert found == Tuning(collect_seconds=12.5, usage_months=9, link_days=3)
    await store.change(lambda tx: settings.tune(tx, {"usage_months": None, "collect_seconds": None}))
    assert await store.read(settings.set_by_api) == {"link_days": 3}
