"""What the API sets of the installation and of the page of its links, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from gateway.link_page import DEFAULTS
from gateway.one_time_links import OneTimeLinks
from gateway.store import Store, Transaction, settings, tables
from gateway.store.one_time_links import ShownLink
from gateway.tuning import Tuning
from tests.contract.test_store import one_account

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


async def test_the_page_of_links_is_the_same_for_every_gateway_and_sealed(store: Store) -> None:
    here, other = OneTimeLinks(store), OneTimeLinks(store)
    assert await other.page() == DEFAULTS
    await here.set_page("config", {"title": "Ours", "css": "b {}"}, {"link_days": 3})
    await other.set_page("config", {"css": ""})
    await other.set_page("config_ikev2", {"enable": False})
    found = await here.page()
    assert found["config"] == {**DEFAULTS["config"], "title": "Ours"}
    assert found["config_ikev2"] == {**DEFAULTS["config_ikev2"], "enable": False}
    assert await here.days() == await other.days() == 3

    async def read(tx: Transaction) -> list[str]:
        return [row.value for row in await tx.all(select(tables.settings))]

    assert not any("Ours" in value for value in await store.read(read))


async def test_links_are_listed_page_by_page_until_nobody_can_open_them(store: Store) -> None:
    _, account = await one_account(store)
    now = [1_700_000_000.0]
    links = OneTimeLinks(store, now=lambda: now[0])
    used = await links.create(account.name)
    now[0] += 5
    await links.create(account.name)

    async def listed() -> list[tuple[str, int, int]]:
        found = list[ShownLink]()
        await links.visit(found.extend)
        assert len({one.digest for one in found}) == len(found)
        return [(one.account, one.created, one.expires) for one in found]

    first, second = (1_700_000_000, 1_700_864_000), (1_700_000_005, 1_700_864_005)
    assert await listed() == [(account.name, *first), (account.name, *second)]
    lease = await links.lease(used)
    assert lease is not None and await links.use_up(lease)
    assert await listed() == [(account.name, *second)]
    now[0] = 1_700_864_005
    assert await listed() == []
